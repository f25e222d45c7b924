"""The Inception network of December 2015, which defines FID, sFID and the Inception Score.

Szegedy et al. 2016 (arXiv 1512.00567), as in Google's TensorFlow graph `inception-2015-12-05`: 1,008 logits, average
pooling that does not count the padding, and max pooling in the last block. Its weights are not part of this package:
pass the path or the URL of the published file, `...-inception-2015-12-05-6726825d.pth`.
"""

import hashlib
from pathlib import Path
from pickle import UnpicklingError
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, max_pool2d

from hf_ddpm.data.options import one_of
from hf_ddpm.errors import UserError, quoted

SHA256_BEGINS = "6726825d"  # the start of the hash of the published file, whose name ends with it
SIZE = 299
SPATIAL_CHANNELS = 7  # the channels of 17x17 positions that sFID uses


class InceptionFeatures(NamedTuple):
    """The outputs that the metrics use.

    pool: (B, 2048), for FID, KID and precision. spatial: (B, 2023), 17x17 positions with 7 channels, for sFID. logits:
    (B, 1008) without the bias, for the Inception Score.
    """

    pool: Tensor
    spatial: Tensor
    logits: Tensor


class _Convolution(nn.Module):
    """Convolution, batch normalisation, ReLU. With `keep`, padding keeps the size (divided by the stride)."""

    def __init__(self, inputs: int, outputs: int, kernel: tuple[int, int], stride: int = 1, keep: bool = True) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2) if keep else (0, 0)
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.bn(self.conv(x)).relu()
        return h


class _Block(nn.Module):
    """Parallel branches of convolutions, whose outputs are concatenated in order; a pool without convolution is last.

    Args:
        inputs: The number of channels of x.
        pool: "average" and "max" keep the size; "reduce" is max pooling with stride 2, which is itself an output.
        plan: For each convolution its name, its input ("x", "pool" or an earlier convolution), the number of its
            channels, and its kernel; a kernel that ends with "/2" has stride 2.
    """

    def __init__(self, inputs: int, pool: str, plan: str) -> None:
        super().__init__()
        self.pool, self._sources, channels = pool, {}, {"x": inputs, "pool": inputs}
        for name, source, outputs, kernel in map(str.split, plan.strip().splitlines()):
            (height, width), halves = map(int, kernel.removesuffix("/2").split("x")), kernel.endswith("/2")
            convolution = _Convolution(channels[source], int(outputs), (height, width), 1 + halves, keep=not halves)
            self.add_module(name, convolution)
            self._sources[name], channels[name] = source, int(outputs)
        self._ends = [name for name in self._sources if name not in self._sources.values()]
        self._ends += ["pool"] if pool == "reduce" else []
        self.outputs = sum(channels[name] for name in self._ends)

    def forward(self, x: Tensor) -> Tensor:
        h = {"x": x, "pool": self._pooled(x)}
        for name, source in self._sources.items():
            h[name] = self.get_submodule(name)(h[source])
        return torch.cat([h[name] for name in self._ends], dim=1)

    def _pooled(self, x: Tensor) -> Tensor:
        if self.pool == "reduce":
            return max_pool2d(x, 3, stride=2)
        if self.pool == "max":
            return max_pool2d(x, 3, stride=1, padding=1)
        return avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


_A = """
branch1x1 x 64 1x1
branch5x5_1 x 48 1x1
branch5x5_2 branch5x5_1 64 5x5
branch3x3dbl_1 x 64 1x1
branch3x3dbl_2 branch3x3dbl_1 96 3x3
branch3x3dbl_3 branch3x3dbl_2 96 3x3
branch_pool pool {pool} 1x1
"""
_B = """
branch3x3 x 384 3x3/2
branch3x3dbl_1 x 64 1x1
branch3x3dbl_2 branch3x3dbl_1 96 3x3
branch3x3dbl_3 branch3x3dbl_2 96 3x3/2
"""
_C = """
branch1x1 x 192 1x1
branch7x7_1 x {c} 1x1
branch7x7_2 branch7x7_1 {c} 1x7
branch7x7_3 branch7x7_2 192 7x1
branch7x7dbl_1 x {c} 1x1
branch7x7dbl_2 branch7x7dbl_1 {c} 7x1
branch7x7dbl_3 branch7x7dbl_2 {c} 1x7
branch7x7dbl_4 branch7x7dbl_3 {c} 7x1
branch7x7dbl_5 branch7x7dbl_4 192 1x7
branch_pool pool 192 1x1
"""
_D = """
branch3x3_1 x 192 1x1
branch3x3_2 branch3x3_1 320 3x3/2
branch7x7x3_1 x 192 1x1
branch7x7x3_2 branch7x7x3_1 192 1x7
branch7x7x3_3 branch7x7x3_2 192 7x1
branch7x7x3_4 branch7x7x3_3 192 3x3/2
"""
_E = """
branch1x1 x 320 1x1
branch3x3_1 x 384 1x1
branch3x3_2a branch3x3_1 384 1x3
branch3x3_2b branch3x3_1 384 3x1
branch3x3dbl_1 x 448 1x1
branch3x3dbl_2 branch3x3dbl_1 384 3x3
branch3x3dbl_3a branch3x3dbl_2 384 1x3
branch3x3dbl_3b branch3x3dbl_2 384 3x1
branch_pool pool 192 1x1
"""


def _as_guided_diffusion(pixels: Tensor) -> Tensor:
    return (resize_like_tensorflow_1(pixels, SIZE) - 128) / 128


def _as_pytorch_fid(pixels: Tensor) -> Tensor:
    return interpolate(pixels, size=(SIZE, SIZE), mode="bilinear", align_corners=False) / 127.5 - 1


Preprocessing = Literal["guided-diffusion", "pytorch-fid"]
# From pixels in 0 .. 255 to the network's input; each key is the program whose numbers it reproduces.
PREPROCESSING = {"guided-diffusion": _as_guided_diffusion, "pytorch-fid": _as_pytorch_fid}


class Inception2015(nn.Module):
    """The network; modules and weights have the names of torchvision's Inception, which the published file uses.

    Args:
        preprocessing: The preprocessing of images, a key of `PREPROCESSING`.
    """

    def __init__(self, preprocessing: Preprocessing = "guided-diffusion") -> None:
        super().__init__()
        self._prepared = PREPROCESSING[one_of("preprocessing", preprocessing, Preprocessing)]
        self.Conv2d_1a_3x3 = _Convolution(3, 32, (3, 3), 2, keep=False)
        self.Conv2d_2a_3x3 = _Convolution(32, 32, (3, 3), keep=False)
        self.Conv2d_2b_3x3 = _Convolution(32, 64, (3, 3))
        self.Conv2d_3b_1x1 = _Convolution(64, 80, (1, 1))
        self.Conv2d_4a_3x3 = _Convolution(80, 192, (3, 3), keep=False)
        self.Mixed_5b = _Block(192, "average", _A.format(pool=32))
        self.Mixed_5c = _Block(256, "average", _A.format(pool=64))
        self.Mixed_5d = _Block(288, "average", _A.format(pool=64))
        self.Mixed_6a = _Block(288, "reduce", _B)
        self.Mixed_6b = _Block(768, "average", _C.format(c=128))
        self.Mixed_6c = _Block(768, "average", _C.format(c=160))
        self.Mixed_6d = _Block(768, "average", _C.format(c=160))
        self.Mixed_6e = _Block(768, "average", _C.format(c=192))
        self.Mixed_7a = _Block(768, "reduce", _D)
        self.Mixed_7b = _Block(1280, "average", _E)
        self.Mixed_7c = _Block(2048, "max", _E)
        self.fc = nn.Linear(2048, 1008)

    def forward(self, images: Tensor) -> InceptionFeatures:
        """Compute the features of images (B, 3, H, W) or (B, 1, H, W), uint8."""
        x = self._prepared(images.float())
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x.expand(-1, 3, -1, -1))))
        x = max_pool2d(x, 3, stride=2)  # (B, 64, 73, 73)
        x = max_pool2d(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)), 3, stride=2)  # (B, 192, 35, 35)
        for name in ("5b", "5c", "5d", "6a", "6b", "6c"):
            x = self.get_submodule(f"Mixed_{name}")(x)  # (B, 768, 17, 17)
        spatial = self.Mixed_6d.get_submodule("branch1x1")(x)[:, :SPATIAL_CHANNELS]
        for name in ("6d", "6e", "7a", "7b", "7c"):
            x = self.get_submodule(f"Mixed_{name}")(x)  # (B, 2048, 8, 8)
        pool = x.mean(dim=(2, 3))
        return InceptionFeatures(pool, spatial.permute(0, 2, 3, 1).flatten(1), pool @ self.fc.weight.T)


def resize_like_tensorflow_1(images: Tensor, size: int) -> Tensor:
    """Resize images bilinearly like `tf.image.resize_bilinear` of TensorFlow 1, that is without half-pixel centres.

    Pixel i of the output reads position i * H / size of the input, between its two neighbours; the last pixel is
    repeated. Parmar et al. 2022 (arXiv 2104.11222) show how much FID depends on it.

    Args:
        images: Float images (B, C, H, W).
        size: The height and width of the output.
    """
    rows, columns = (_interpolation(length, size).to(images) for length in images.shape[-2:])
    return rows @ images @ columns.T


def _interpolation(length: int, size: int) -> Tensor:
    """Return the matrix (size, length) that interpolates a line."""
    place = torch.arange(size, dtype=torch.float32) * (length / size)
    below = place.floor().long().clamp(max=length - 1)
    above, weight = (below + 1).clamp(max=length - 1), place - below
    matrix = torch.zeros(size, length)
    matrix.scatter_add_(1, below[:, None], 1 - weight[:, None])
    return matrix.scatter_add_(1, above[:, None], weight[:, None])


def load_inception(source: str, preprocessing: Preprocessing = "guided-diffusion") -> Inception2015:
    """Load the network with the weights of the published file, in evaluation mode.

    Args:
        source: The file, or its URL, from which it is downloaded once into the cache of `torch.hub`.
        preprocessing: The preprocessing of images, a key of `PREPROCESSING`.

    Raises:
        UserError: If the file does not exist, or is another file.
    """
    file = _downloaded(source) if source.startswith(("http://", "https://")) else Path(source).expanduser()
    try:
        found = hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"the Inception network cannot be read from {source!r} ({quoted(error)})") from error
    if not found.startswith(SHA256_BEGINS):
        raise UserError(
            f"{source!r} is not the Inception network of FID: its SHA-256 begins with {found[:8]}, but that of "
            f"...-inception-2015-12-05-{SHA256_BEGINS}.pth begins with {SHA256_BEGINS}; use that file"
        )
    return inception_of(file, preprocessing)


def inception_of(file: Path, preprocessing: Preprocessing = "guided-diffusion") -> Inception2015:
    """Load the network with the weights of any file of its layout; only the published file defines FID.

    Raises:
        UserError: If the file contains pickled code, or other weights.
    """
    network = Inception2015(preprocessing)
    try:
        network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    except (OSError, RuntimeError, UnpicklingError, ValueError, TypeError, AttributeError, EOFError) as error:
        raise UserError(f"{file} does not contain the Inception network ({quoted(error)})") from error
    return network.eval().requires_grad_(False)


def _downloaded(address: str) -> Path:
    file = Path(torch.hub.get_dir()) / "checkpoints" / address.rsplit("/", 1)[-1]
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(address, str(file), hash_prefix=SHA256_BEGINS)
        except (OSError, RuntimeError, ValueError) as error:
            raise UserError(f"{address} cannot be downloaded ({quoted(error)}): pass the path of the file") from error
    return file

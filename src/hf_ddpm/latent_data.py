"""Training images as latents of a frozen VAE, which are the x_0 of a latent diffusion model.

The VAE is an `HFVAE`, or diffusers' `AutoencoderKL` or `AutoencoderTiny`. Its latents are scaled to unit variance by a
factor that is measured on the training images and saved in its config (Rombach et al. 2022, arXiv 2112.10752).
"""

import hashlib
import itertools
import math
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import Tensor

from hf_ddpm.checkpoint import INDEX, failed_opening_as_user_error, find_folder, hint_at_checkpoint
from hf_ddpm.data import Batch, ImageData
from hf_ddpm.data.facts import DataFacts, LatentFacts, describe
from hf_ddpm.data.order import BatchPlan, SampleOrder, position_uniforms
from hf_ddpm.data.sources import origin_of
from hf_ddpm.errors import UserError, quoted
from hf_ddpm.gate.checked_files import CheckedFiles
from hf_ddpm.models.vae import HFVAE
from hf_ddpm.models.vae_networks import unit_scale
from hf_ddpm.pipelines.image_space import encode_moments
from hf_ddpm.sampling import mixed_seed
from hf_ddpm.weights import weights_sha256

VAES: dict[str, Any] = {"HFVAE": HFVAE, "AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}
CONFIG = "config.json"
MEASURED_IMAGES = 1024  # the number of images on which the scale is measured
ENCODED_AT_ONCE = 64
_NOISE_OF_LATENTS = 0x1A7E  # separates these random numbers from t, noise and dropout of the same step


def open_vae(source: str) -> Any:
    """Open a VAE from a folder or the Hub, either on its own or as the `vae` of a saved pipeline.

    Raises:
        UserError: If it does not exist, if it is a model of another class, or if files are missing, corrupted or
            truncated.
    """
    with failed_opening_as_user_error(f"latents.vae={source!r} cannot be opened as a VAE", None):
        files = _find_vae(source)
        name = files.json(CONFIG).get("_class_name")
        if name not in [*VAES]:
            raise UserError(f"its class is {name!r}, but must be one of {', '.join(VAES)}")
        vae = files.open_network(VAES[name])
        vae.register_to_config(_name_or_path=source)  # instead of a folder in a cache
    if vae.config.get("network") == "mlp":
        raise UserError(
            f"latents.vae={source!r} is an MLP, whose latents have no height and width: use a convolutional VAE, such "
            "as that of the recipe mnist-vae-conv"
        )
    return vae.eval().requires_grad_(False)


def _find_vae(source: str) -> CheckedFiles:
    """Return the files of a VAE in a folder or a repository, or in its subfolder vae."""
    folder = find_folder(source)
    if folder is None:
        try:
            return CheckedFiles(source, CONFIG)
        except FileNotFoundError:
            return CheckedFiles(source, CONFIG, "vae")
    if (folder / INDEX).is_file():
        if not (folder / "vae").is_dir():
            raise UserError("it has no folder vae: use the checkpoint of a VAE, such as that of mnist-vae-conv")
        return CheckedFiles(folder, CONFIG, "vae")
    if not (folder / CONFIG).is_file():
        raise UserError(hint_at_checkpoint(folder))
    return CheckedFiles(folder, CONFIG)


def latent_shape(vae: Any, image_size: tuple[int, int]) -> tuple[int, int, int]:
    """Return the latent shape (J, h, w) for an image size, by encoding an image.

    Raises:
        UserError: If the VAE does not support the size.
    """
    x_0 = torch.zeros(1, vae.config["in_channels"], *image_size, device=vae.device, dtype=vae.dtype)
    try:
        with torch.no_grad():
            moments = encode_moments(vae, x_0)
    except (ValueError, RuntimeError) as error:
        raise UserError(f"latents.vae does not support images of {image_size[0]}x{image_size[1]}: {error}") from error
    return moments.shape[1] // 2, moments.shape[2], moments.shape[3]


class EncodedBatch(NamedTuple):
    """The images of a step as the output of the VAE's encoder, before latents are drawn.

    moments: float32 (b, 2J, h, w), the mean and then the variance of q(z|x_0). labels, indices: see `Batch`.
    """

    moments: Tensor
    labels: Tensor | None
    indices: Tensor


class LatentData:
    """Batches of latents with unit variance, encoded from the images of an `ImageData`, whose interface it shares.

    Each time an image is seen, a new z is drawn from q(z|x_0), as a function of the seed and the position in the run.

    Args:
        vae: The VAE, from `open_vae`, on the device that encodes. It is not changed: to save it beside the model that
            learns these latents, set `scaling_factor=scale` in its config.
        block: The keyword arguments of `ImageData`.
        seed: The seed of the images that the scale is measured on.
        cache: Whether to encode every image once (and its mirror image, if images are mirrored) into the cache of
            `datasets`, and to read it from there.

    Attributes:
        scale: 1 / std of the VAE's latents of these images.

    Raises:
        UserError: If the images do not fit the VAE, cannot be decoded or cannot be cached, or if the VAE has diverged.
    """

    def __init__(self, vae: Any, block: dict[str, Any], *, seed: int, cache: bool = False) -> None:
        self._vae, self._flip = vae, bool(block.get("horizontal_flip"))
        self._vae_source = vae.config.get("_name_or_path")
        self._vae_origin = None if self._vae_source is None else origin_of(self._vae_source)
        self.images = ImageData(**(block | {"horizontal_flip": False}))  # this class flips them, cached or not
        _check_images(vae, self.images, block, cache)
        shape = latent_shape(vae, self.images.image_size)
        self.channels, self.image_size = shape[0], shape[1:]
        self.num_images, self.num_classes = self.images.num_images, self.images.num_classes
        self.contents = self.images.contents
        self.scale = self._measured_scale(seed)
        self._store = _EncodedOnce(vae, self.images, shape, self._flip) if cache else None

    @property
    def skipped(self) -> int:
        """The number of undecodable images so far."""
        return self.images.skipped

    @property
    def facts(self) -> DataFacts:
        """The facts of the images, with those of their encoding."""
        latents = LatentFacts(
            source=self._vae_source,
            origin=self._vae_origin,
            vae=type(self._vae).__name__,
            shape=(self.channels, *self.image_size),
            scaling_factor=self.scale,
            cached=self._store is not None,
        )
        return replace(self.images.facts, latents=latents)

    @property
    def description(self) -> str:
        """The facts as sentences, for the log."""
        return describe(self.facts)

    def batches(
        self,
        *,
        batch_size: int,
        seed: int,
        start_step: int = 0,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = "cpu",
    ) -> Generator[Batch, None, None]:
        """Yield the batches of the steps `start_step`, `start_step` + 1, ... without end, like `ImageData.batches`."""
        plan = BatchPlan(seed, batch_size, start_step, rank, world_size)
        steps = self._store.batches(plan) if self._store else self._encoded(plan, self._flip)
        with closing(steps):
            for step, batch in enumerate(steps, start_step):
                mean, variance = batch.moments.to(device).chunk(2, dim=1)
                z = mean + variance.sqrt() * _noise(plan, step, mean)
                labels = None if batch.labels is None else batch.labels.to(device)
                yield Batch(self.scale * z, labels, batch.indices)

    def _encoded(self, plan: BatchPlan, flip: bool) -> Generator[EncodedBatch, None, None]:
        where = {"rank": plan.rank, "world_size": plan.world_size, "device": self._vae.device}
        batches = self.images.batches(batch_size=plan.batch_size, seed=plan.seed, start_step=plan.start_step, **where)
        with closing(batches):
            for step, batch in enumerate(batches, plan.start_step):
                x_0 = batch.x_0
                if flip:
                    x_0 = torch.where(_mirrored(plan, step).to(x_0.device), x_0.flip(-1), x_0)
                yield EncodedBatch(_moments(self._vae, x_0), batch.labels, batch.indices)

    def _measured_scale(self, seed: int) -> float:
        """Measure 1 / std of the latents of the first images in the order of the seed."""
        count = min(MEASURED_IMAGES, self.num_images or MEASURED_IMAGES)
        with closing(self._encoded(BatchPlan(seed, ENCODED_AT_ONCE), flip=False)) as batches:
            moments = torch.cat([next(batches).moments for _ in range(-(-count // ENCODED_AT_ONCE))])
        try:
            return unit_scale(*moments.double().chunk(2, dim=1))
        except ValueError as error:
            raise UserError(f"latents.vae: {error}; use another VAE") from error


class _EncodedOnce:
    """The moments of every image in Arrow files of the `datasets` cache, found by a fingerprint of VAE and images."""

    def __init__(self, vae: Any, images: ImageData, shape: tuple[int, int, int], mirrored: bool) -> None:
        from datasets import Features, List, Value

        self._shape = (-1, 2 * shape[0], *shape[1:])  # the shape of moments
        self._flip, self._labelled = mirrored, images.num_classes is not None
        numbers = List(Value("float32"), length=2 * math.prod(shape))
        columns = {"row": Value("int64"), "label": Value("int64"), "moments": numbers}
        network = {key: value for key, value in vae.config.items() if key[0] != "_" and key != "scaling_factor"}
        made_of = [weights_sha256(vae), str(sorted(network.items())), images.fingerprint, str(mirrored)]
        self._rows = _rows_in_cache(
            features=Features(columns | ({"mirrored": numbers} if mirrored else {})),
            gen_kwargs={"vae": vae, "images": images, "mirrored": mirrored},
            fingerprint=hashlib.sha256(" ".join(made_of).encode()).hexdigest()[:32],
        )
        self._place_of = _places(self._rows["row"][:], images.num_images or 0)

    def batches(self, plan: BatchPlan) -> Generator[EncodedBatch, None, None]:
        """Yield the moments of one step after another, in the order of `ImageData`."""
        order = SampleOrder(len(self._place_of), plan.seed)
        for step in itertools.count(plan.start_step):
            read = self._rows[self._place_of[order.rows(plan.first_position(step), plan.local_size)]]
            columns = {name: torch.from_numpy(values) for name, values in read.items()}
            moments = columns["moments"].view(self._shape)
            if self._flip:
                moments = torch.where(_mirrored(plan, step), columns["mirrored"].view(self._shape), moments)
            yield EncodedBatch(moments, columns["label"] if self._labelled else None, columns["row"])


def _rows_in_cache(**of_generator: Any) -> Any:
    """Return the dataset of `_encoded_rows`, which is created or read from the cache of `datasets`.

    Raises:
        UserError: If an image cannot be decoded, or if the cache cannot be written or is damaged.
    """
    from datasets import Dataset, config
    from datasets.exceptions import DatasetGenerationError

    try:
        return Dataset.from_generator(_encoded_rows, **of_generator).with_format("numpy")
    except (DatasetGenerationError, OSError, ValueError) as error:
        cause = error.__cause__ if isinstance(error, DatasetGenerationError) else error
        if isinstance(cause, UserError):  # about an image
            raise cause from None
        if not isinstance(cause, (OSError, ValueError)):
            raise
        folder = Path(config.HF_DATASETS_CACHE) / "generator" / f"default-fingerprint={of_generator['fingerprint']}"
        raise UserError(
            f"encoded images cannot be written to or read from {folder} ({quoted(cause)}): free disk space, "
            "delete this folder if it exists, or pass --latents.cache false"
        ) from error


def _encoded_rows(vae: Any, images: ImageData, mirrored: bool) -> Iterator[dict[str, Any]]:
    """Yield one epoch of the images as rows of the cache."""
    left = images.num_images or 0
    with closing(images.batches(batch_size=ENCODED_AT_ONCE, seed=0, device=vae.device)) as batches:
        while left > 0:
            batch = next(batches)
            columns = {"row": batch.indices, "moments": _moments(vae, batch.x_0).flatten(1)}
            columns["label"] = torch.full_like(batch.indices, -1) if batch.labels is None else batch.labels
            if mirrored:
                columns["mirrored"] = _moments(vae, batch.x_0.flip(-1)).flatten(1)
            arrays = {name: values.cpu().numpy() for name, values in columns.items()}
            for i in range(min(left, len(batch.indices))):
                yield {name: values[i] for name, values in arrays.items()}
            left -= len(batch.indices)


def _places(rows: np.ndarray, num_images: int) -> np.ndarray:
    """Return the position of each dataset row in the cache; a bad row, which is missing, has that of the next one."""
    place_of = np.full(num_images, -1)
    place_of[rows] = np.arange(len(rows))
    good = np.flatnonzero(place_of >= 0)
    return place_of[good[np.searchsorted(good, np.arange(num_images)) % len(good)]]


@torch.no_grad()
def _moments(vae: Any, x_0: Tensor) -> Tensor:
    """Compute the mean and variance of q(z|x_0), float32 (B, 2J, h, w)."""
    return encode_moments(vae, x_0.to(vae.dtype)).float()


def _mirrored(plan: BatchPlan, step: int) -> Tensor:
    """Return which images of a step are mirrored, (b, 1, 1, 1): the same ones that `ImageData` would mirror."""
    chance = position_uniforms(plan.seed, plan.first_position(step), plan.local_size)[:, 0]
    return torch.from_numpy(chance < 0.5)[:, None, None, None]


def _noise(plan: BatchPlan, step: int, mean: Tensor) -> Tensor:
    """Draw standard normal noise with the shape of `mean`: the part of this process of the noise of the whole batch."""
    generator = torch.Generator().manual_seed(mixed_seed(plan.seed, step, _NOISE_OF_LATENTS))
    whole = torch.randn(plan.batch_size, *mean.shape[1:], generator=generator)
    start = plan.rank * plan.local_size
    return whole[start : start + plan.local_size].to(mean.device)


def _check_images(vae: Any, images: ImageData, block: dict[str, Any], cache: bool) -> None:
    channels = vae.config["in_channels"]
    if images.channels != channels:
        raise UserError(
            f"latents.vae encodes images with {channels} channel(s), but data.channels is {images.channels}: "
            f"pass --channels {channels}"
        )
    changing = block.get("binarize") == "dynamic" or block.get("resize") == "random_crop" or images.num_images is None
    if cache and changing:
        raise UserError(
            "latents.cache stores each image once, but a stream, resize='random_crop' and binarize='dynamic' give it "
            "anew each time: pass --latents.cache false"
        )

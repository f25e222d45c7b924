"""Black-and-white images drawn from grey images: an element is white with its intensity as the probability.

Latent variable models are usually compared by their likelihoods of binarised digits. "static" draws each image once, so
that there is one fixed set of binary images (Larochelle & Murray 2011); "dynamic" draws an image again each time it is
used (Burda et al. 2016, arXiv 1509.00519, sec. 5, after Salakhutdinov & Murray 2008).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from hf_ddpm.data.options import at_least, one_of
from hf_ddpm.data.order import BatchPlan
from hf_ddpm.data.raw import to_device
from hf_ddpm.data.resize import Resize
from hf_ddpm.errors import UserError

Binarize = Literal["static", "dynamic"]

_STATIC, _DYNAMIC = 0x0B15, 0x0B1D  # second half of the Philox key: separates the two from any other use of a seed
_PER_BLOCK = 8  # 32-bit words per count of Philox, which returns four words of 64 bits


def binarized(x_0: Tensor, uniforms: Tensor) -> Tensor:
    """Return white (1) where u < y with y = (x + 1) / 2, and black (-1) elsewhere: white has probability y.

    This runs for every batch, so nothing is checked. Black stays black and white stays white for any u in [0, 1).

    Args:
        x_0: Images, float, any shape, in [-1, 1]; values outside would become black or white.
        uniforms: Uniform numbers in [0, 1), with the same shape and device; if they are multiples of 2^-n, the error in
            probability is below 2^-n.

    Returns:
        Tensor: -1 or 1, with the shape and dtype of x_0.
    """
    return (uniforms < (x_0 + 1) / 2).to(x_0.dtype).mul_(2).sub_(1)


@dataclass(frozen=True)
class Binarization:
    """How a dataset is binarised: "static" with a seed of its own, or "dynamic" with the seed of the run."""

    kind: Binarize
    seed: int

    def __call__(self, x_0: Tensor, rows: Tensor, plan: BatchPlan, step: int) -> Tensor:
        """Binarise the part of `step` of one process, (b, C, H, W); rows: int64 (b,), on the CPU."""
        size = x_0[0].numel()
        if self.kind == "static":
            uniforms = row_uniforms(self.seed, rows.tolist(), size)
        else:
            uniforms = run_uniforms(plan.seed, plan.first_position(step), len(x_0), size)
        return binarized(x_0, to_device(torch.from_numpy(uniforms).view(x_0.shape), x_0.device))


def binarization(kind: Binarize | None, seed: int, *, streaming: bool, resize: Resize) -> Binarization | None:
    """Check the options `binarize` and `binarize_seed` of `ImageData`, and return the binarisation, if there is one.

    Raises `UserError` for an unknown kind, a seed outside 0 .. 2^63 - 1, and "static" for streams and random crops, in
    which the elements of an image are not always the same.
    """
    if at_least("binarize_seed", seed, 0) >= 2**63:
        raise UserError(f"binarize_seed is {seed}; it must be below 2**63 ({2**63})")
    if kind is None:
        return None
    if one_of("binarize", kind, Binarize) == "static" and (streaming or resize == "random_crop"):
        # a stream has positions instead of rows, and the bits of a crop would not move with the image
        what = "a stream does not number its images" if streaming else "resize 'random_crop' changes them each time"
        remedy = "set streaming to false" if streaming else "set another resize"
        raise UserError(f"binarize is 'static', which draws each image once, but {what}; {remedy}, or use 'dynamic'")
    return Binarization(kind, seed)


def run_uniforms(seed: int, start: int, count: int, size: int) -> np.ndarray:
    """Draw uniform numbers in [0, 1) for the elements of images at `count` positions of a run, float32 (count, size).

    They are a function of only the seed, the position and the size, for any `start` and `count`.
    """
    blocks = -(-size // _PER_BLOCK)
    philox = np.random.Philox(key=_key(seed, _DYNAMIC), counter=start * blocks)
    return _uniforms(philox.random_raw(count * blocks * 4), count)[:, :size]


def row_uniforms(seed: int, rows: Sequence[int], size: int) -> np.ndarray:
    """Draw the uniform numbers of rows of a dataset, in any order: a function of the seed, the row and the size."""
    blocks = -(-size // _PER_BLOCK)
    philox = np.random.Philox(key=_key(seed, _STATIC))
    state = philox.state  # setting it takes a quarter of the time of a new generator for each row
    words = np.empty((len(rows), blocks * 4), dtype=np.uint64)
    for place, row in enumerate(rows):
        state["state"]["counter"][0] = row * blocks
        philox.state = state
        words[place] = philox.random_raw(blocks * 4)
    return _uniforms(words, len(rows))[:, :size]


def _key(seed: int, use: int) -> np.ndarray:
    return np.array([seed, use], dtype=np.uint64)


def _uniforms(words: np.ndarray, count: int) -> np.ndarray:
    """Return k / 2^24 of the upper 24 bits of each half, (count, ...) float32: exact, below 1, in any numpy version."""
    halves = words.astype("<u8", copy=False).view("<u4").reshape(count, -1)
    return (halves >> 8).astype(np.float32) * np.float32(2**-24)

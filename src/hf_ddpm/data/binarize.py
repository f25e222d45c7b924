"""Black-and-white images drawn from grey ones: an element is white with its intensity as probability.

Likelihoods of binarised digits are the usual measure of latent variable models. "static" draws each image once, so that
there is one fixed set of binary images (Larochelle & Murray 2011); "dynamic" draws an image anew each time it is seen
(Burda et al. 2016, arXiv 1509.00519, sec. 5, after Salakhutdinov & Murray 2008).
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
_PER_BLOCK = 8  # 32-bit words of one count of Philox, which makes four of 64 bits


def binarized(x_0: Tensor, uniforms: Tensor) -> Tensor:
    """White (1) where u < y with y = (x + 1) / 2, else black (-1): white has probability y.

    Written for every batch, so nothing is checked. Black stays black and white stays white for any u in [0, 1).

    Args:
        x_0: float, any shape, in [-1, 1]; what lies outside would become black or white.
        uniforms: of the same shape and device, in [0, 1); a multiple of 2^-n errs by less than 2^-n in probability.

    Returns:
        -1 or 1, of the shape and dtype of x_0.
    """
    return (uniforms < (x_0 + 1) / 2).to(x_0.dtype).mul_(2).sub_(1)


@dataclass(frozen=True)
class Binarization:
    """How a data set is binarised: "static" with a seed of its own, or "dynamic" with that of the run."""

    kind: Binarize
    seed: int

    def __call__(self, x_0: Tensor, rows: Tensor, plan: BatchPlan, step: int) -> Tensor:
        """The part of `step` that one process has, (b, C, H, W), in black and white; rows: int64 (b,), on the CPU."""
        size = x_0[0].numel()
        if self.kind == "static":
            uniforms = row_uniforms(self.seed, rows.tolist(), size)
        else:
            uniforms = run_uniforms(plan.seed, plan.first_position(step), len(x_0), size)
        return binarized(x_0, to_device(torch.from_numpy(uniforms).view(x_0.shape), x_0.device))


def binarization(kind: Binarize | None, seed: int, *, streaming: bool, resize: Resize) -> Binarization | None:
    """The options `binarize` and `binarize_seed` of `ImageData`, checked against those they depend on.

    Raises `UserError` for another kind, a seed outside 0 .. 2^63 - 1, and static where no image keeps its elements.
    """
    if at_least("binarize_seed", seed, 0) >= 2**63:
        raise UserError(f"binarize_seed is {seed}; it must be below 2**63, {2**63}")
    if kind is None:
        return None
    if one_of("binarize", kind, Binarize) == "static" and (streaming or resize == "random_crop"):
        # a stream knows positions, not rows; and bits drawn for the window of a crop would not move with the image
        what = "a stream does not number its images" if streaming else "resize 'random_crop' cuts them anew each time"
        remedy = "set streaming to false" if streaming else "take another resize"
        raise UserError(f"binarize is 'static', one draw for each image, but {what}; {remedy}, or use 'dynamic'")
    return Binarization(kind, seed)


def run_uniforms(seed: int, start: int, count: int, size: int) -> np.ndarray:
    """Uniform numbers for the elements of the images at `count` positions of a run, (count, size) float32 in [0, 1).

    A function of the seed, the position and the size only, whatever `start` and `count` are.
    """
    blocks = -(-size // _PER_BLOCK)
    philox = np.random.Philox(key=_key(seed, _DYNAMIC), counter=start * blocks)
    return _uniforms(philox.random_raw(count * blocks * 4), count)[:, :size]


def row_uniforms(seed: int, rows: Sequence[int], size: int) -> np.ndarray:
    """The same for rows of a data set, in any order and however often: a function of the seed, the row and the size."""
    blocks = -(-size // _PER_BLOCK)
    philox = np.random.Philox(key=_key(seed, _STATIC))
    state = philox.state  # setting it costs a quarter of a new generator for each row
    words = np.empty((len(rows), blocks * 4), dtype=np.uint64)
    for place, row in enumerate(rows):
        state["state"]["counter"][0] = row * blocks
        philox.state = state
        words[place] = philox.random_raw(blocks * 4)
    return _uniforms(words, len(rows))[:, :size]


def _key(seed: int, use: int) -> np.ndarray:
    return np.array([seed, use], dtype=np.uint64)


def _uniforms(words: np.ndarray, count: int) -> np.ndarray:
    """k / 2^24 of the upper 24 bits of each half, (count, ...) float32: exact, below 1, and numpy fixes these words."""
    halves = words.astype("<u8", copy=False).view("<u4").reshape(count, -1)
    return (halves >> 8).astype(np.float32) * np.float32(2**-24)

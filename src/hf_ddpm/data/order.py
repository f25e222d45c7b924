"""The order of images in the endless stream of training samples: a pure function of the seed and the position.

The stream concatenates one permutation of the dataset per epoch. Step k of a run with global batch size B contains the
positions k * B .. (k + 1) * B - 1, and process r uses the r-th of `world_size` equal, contiguous parts of them. No
state is carried from one step to the next, so resuming at step k takes no time and returns what an uninterrupted run
would have used, and one process with 8 images uses the same samples as two with 4.
"""

from dataclasses import dataclass

import numpy as np

from hf_ddpm.errors import UserError

_AUGMENTATION = 0x0A06  # second half of the Philox key: separates augmentation from any other use of the seed


@dataclass(frozen=True)
class BatchPlan:
    """What a process reads: the seed, the global batch size, and the rank of the process among `world_size`.

    Raises `UserError` for a batch size that is not a positive multiple of `world_size`, a rank outside 0 .. world_size
    - 1, a negative seed or a negative step.
    """

    seed: int
    batch_size: int
    start_step: int = 0
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.batch_size % self.world_size:
            raise UserError(
                f"the global batch size {self.batch_size} cannot be divided equally by {self.world_size} process(es); "
                f"choose a positive multiple of {self.world_size}"
            )
        if not 0 <= self.rank < self.world_size:
            raise UserError(f"rank {self.rank} is outside 0..{self.world_size - 1}")
        if self.seed < 0 or self.start_step < 0:
            raise UserError(f"seed and start_step must be 0 or more, got {self.seed} and {self.start_step}")

    @property
    def local_size(self) -> int:
        """The number of images per step in this process."""
        return self.batch_size // self.world_size

    def first_position(self, step: int) -> int:
        """Return the global position of this process's first image in `step`."""
        return step * self.batch_size + self.rank * self.local_size


class SampleOrder:
    """The rows at the positions of the stream: one permutation of 0 .. num_images - 1 per epoch.

    The permutation of epoch e depends only on (seed, e). It takes O(num_images) work once per epoch; positions can be
    read in any order.
    """

    def __init__(self, num_images: int, seed: int) -> None:
        self._num_images = num_images
        self._seed = seed
        self._epoch = -1
        self._permutation = np.empty(0, dtype=np.int64)

    def rows(self, start: int, count: int) -> np.ndarray:
        """Return the rows at positions start .. start + count - 1, int64 (count,); they may span several epochs."""
        positions = np.arange(start, start + count, dtype=np.int64)
        epochs, offsets = np.divmod(positions, self._num_images)
        rows = np.empty(count, dtype=np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            rows[here] = self._permutation_of(int(epoch))[offsets[here]]
        return rows

    def _permutation_of(self, epoch: int) -> np.ndarray:
        if epoch != self._epoch:
            self._permutation = np.random.default_rng([self._seed, epoch]).permutation(self._num_images)
            self._epoch = epoch
        return self._permutation


def position_uniforms(seed: int, start: int, count: int) -> np.ndarray:
    """Draw uniform numbers in [0, 1) for each position, (count, 4) float64: [flip, crop across, crop down, crop size].

    Position p is counter p of a Philox generator with the seed as its key, so the numbers depend neither on the batch
    size nor on the process.
    """
    philox = np.random.Philox(key=[seed, _AUGMENTATION], counter=[start, 0, 0, 0])
    return np.random.Generator(philox).random((count, 4))

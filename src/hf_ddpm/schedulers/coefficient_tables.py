"""Coefficients by timestep: float64 tables on the CPU, which are read from copies on the images' device."""

import operator
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor


class CoefficientTables:
    """Named tables with one row per timestep, whose columns are returned in a shape that broadcasts to images.

    The copies are float32, or float64 for float64 images, so that alpha_bar is never in half precision; they are made
    once for each device, so that nothing waits for a GPU.

    Args:
        num_steps: T, the number of rows.
    """

    def __init__(self, num_steps: int) -> None:
        self.num_steps = num_steps
        self._tables: dict[Hashable, Tensor] = {}
        self._copies: dict[tuple[Hashable, torch.device, torch.dtype], Tensor] = {}

    def __contains__(self, name: Hashable) -> bool:
        return name in self._tables

    def __getitem__(self, name: Hashable) -> Tensor:
        """Return the float64 table, (T, columns)."""
        return self._tables[name]

    def add(self, name: Hashable, columns: Sequence[Tensor], steps: Tensor | None = None) -> None:
        """Add a table of `columns`, each (T,), or with one value for each of `steps`; the other rows are then NaN."""
        with torch.inference_mode(False):  # a table that was made while sampling may be used in training
            values = torch.stack(list(columns), dim=1)
            if steps is not None:
                table = torch.full((self.num_steps, values.shape[1]), torch.nan, dtype=torch.float64)
                table[steps] = values
                values = table
            self._tables[name] = values

    def rows(self, name: Hashable, timesteps: int | Tensor, like: Tensor) -> tuple[Tensor, ...]:
        """Return the columns at `timesteps`, each (B or 1, 1, ..., 1) on the device of `like` (B, ...).

        Raises:
            ValueError: If the timesteps are not integers in [0, T-1], or neither one nor one for each sample. The
                values of timesteps on a GPU are not checked: the GPU raises its own index error.
        """
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        ones = [1] * (like.ndim - 1)
        if isinstance(timesteps, Tensor) and (timesteps.ndim > 0 or timesteps.device.type != "cpu"):
            picked = self._select(self._copy(name, like.device, dtype), timesteps, len(like))
        else:
            picked = self._copy(name, like.device, dtype)[self._index(timesteps)][None]
        return picked.view(len(picked), -1, *ones).unbind(1)

    def column(self, name: Hashable, timesteps: Tensor) -> Tensor:
        """Return the only column of a table at `timesteps`, in float32, with their shape and on their device."""
        table = self._copy(name, timesteps.device, torch.float32)
        return self._select(table, timesteps, timesteps.numel()).view(timesteps.shape)

    def _copy(self, name: Hashable, device: torch.device, dtype: torch.dtype) -> Tensor:
        cell = (name, device, dtype)
        if cell not in self._copies:
            with torch.inference_mode(False):
                self._copies[cell] = self._tables[name].to(device, dtype, copy=True)
        return self._copies[cell]

    def _index(self, timestep: int | Tensor) -> int:
        try:
            t = operator.index(timestep)
        except TypeError:
            t = -1
        if not 0 <= t < self.num_steps:
            raise ValueError(f"timestep {timestep!r} must be a whole number within 0..{self.num_steps - 1}")
        return t

    def _select(self, table: Tensor, timesteps: Tensor, batch_size: int) -> Tensor:
        if timesteps.is_floating_point() or timesteps.numel() not in (1, batch_size):
            raise ValueError(
                f"timesteps of dtype {timesteps.dtype} and shape {tuple(timesteps.shape)} must be integers, "
                f"either one or one for each sample of a batch of size {batch_size}"
            )
        try:
            return table.index_select(0, timesteps.reshape(-1).to(table.device))
        except IndexError as error:
            raise ValueError(f"timesteps {timesteps.tolist()} must lie within 0..{self.num_steps - 1}") from error

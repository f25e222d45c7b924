"""The grid between integers and floats is exact."""

import pytest
import torch

from hf_ddpm.data import to_float, to_uint8


@pytest.mark.parametrize(("dtype", "half"), [(torch.uint8, 127.5), (torch.uint16, 32767.5)])
def test_every_level_is_the_float32_nearest_to_its_definition(dtype: torch.dtype, half: float) -> None:
    levels = torch.arange(int(2 * half) + 1)
    assert torch.equal(to_float(levels.to(dtype)), (levels.double() / half - 1).float())


def test_the_ends_and_the_symmetry_are_exact() -> None:
    x = to_float(torch.arange(256, dtype=torch.uint8))
    assert x[0] == -1 and x[-1] == 1
    assert torch.equal(x, -x.flip(0))


def test_eight_bit_levels_stored_as_sixteen_are_the_same_floats() -> None:
    levels = torch.arange(256)
    assert torch.equal(to_float(levels.to(torch.uint8)), to_float((levels * 257).to(torch.uint16)))


def test_to_uint8_undoes_to_float_and_clamps() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(to_float(levels)), levels)
    assert to_uint8(torch.tensor([-3.0, -1.001, 1.001, 3.0])).tolist() == [0, 0, 255, 255]
    assert to_uint8(to_float(levels) + 0.49 / 127.5).tolist() == levels.tolist()


def test_other_integer_types_are_refused() -> None:
    with pytest.raises(ValueError, match=r"torch\.int64; it must be torch\.uint8 or torch\.uint16"):
        to_float(torch.zeros(1, dtype=torch.int64))

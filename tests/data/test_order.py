"""The endless stream: whole epochs, addressable at any position, the same for every process count."""

import numpy as np
import pytest

from hf_ddpm.data.order import BatchPlan, SampleOrder, position_uniforms
from hf_ddpm.errors import UserError


def test_each_epoch_is_another_permutation() -> None:
    rows = SampleOrder(50, seed=3).rows(0, 150).reshape(3, 50)
    for epoch in rows:
        assert sorted(epoch) == list(range(50))
    assert len({tuple(epoch) for epoch in rows}) == 3


def test_any_piece_equals_the_same_piece_of_the_whole() -> None:
    whole = SampleOrder(7, seed=1).rows(0, 200)
    for start, count in [(0, 1), (6, 2), (13, 40), (150, 50), (3, 30)]:
        assert np.array_equal(SampleOrder(7, seed=1).rows(start, count), whole[start : start + count])


def test_seeds_give_different_orders() -> None:
    assert not np.array_equal(SampleOrder(50, 0).rows(0, 50), SampleOrder(50, 1).rows(0, 50))


def test_uniforms_belong_to_the_position() -> None:
    whole = position_uniforms(seed=5, start=0, count=1000)
    assert np.array_equal(position_uniforms(5, 117, 30), whole[117:147])
    assert not np.array_equal(position_uniforms(6, 0, 1000), whole)
    mean_error = np.abs(whole.mean(axis=0) - 0.5).max()
    assert mean_error < 4 / np.sqrt(12 * 1000)  # four standard errors
    assert np.abs(np.corrcoef(whole.T) - np.eye(4)).max() < 0.13


def test_ranks_tile_the_global_batch() -> None:
    whole = BatchPlan(seed=0, batch_size=12)
    parts = [BatchPlan(seed=0, batch_size=12, rank=rank, world_size=3) for rank in range(3)]
    positions = [part.first_position(5) + k for part in parts for k in range(part.local_size)]
    assert positions == list(range(whole.first_position(5), whole.first_position(6)))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"batch_size": 9, "world_size": 2}, "global batch size 9 cannot be divided equally by 2"),
        ({"batch_size": 0}, "global batch size 0"),
        ({"batch_size": 4, "rank": 2, "world_size": 2}, "rank 2 is outside 0..1"),
        ({"batch_size": 4, "seed": -1}, "seed and start_step must be 0 or more, got -1"),
    ],
)
def test_impossible_plans_are_refused(options: dict[str, int], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        BatchPlan(**({"seed": 0} | options))

"""The kernel distance against torchmetrics on the same subsets, and what an unbiased estimate must do."""

import pytest
import torch
from torchmetrics.image.kid import poly_mmd

from hf_ddpm.errors import UserError
from hf_ddpm.metrics import kernel_distance
from hf_ddpm.metrics.kernel import squared_mmd


def normal(count, seed, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 8, generator=generator, dtype=torch.float64) + shift


def test_it_agrees_with_torchmetrics_on_the_same_sets():
    for shift in (0.0, 0.1, 2.0):
        one, two = normal(300, 0), normal(300, 1, shift)
        assert squared_mmd(one, two) == pytest.approx(poly_mmd(one, two).item(), rel=1e-9)


def test_two_numbers_by_hand():
    """k(x, y) = (x y + 1)^3 in one dimension; sets {0, 1} and {0, 2}."""
    assert squared_mmd(torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [2.0]])) == 1 + 1 - 2 * (1 + 1 + 1 + 27) / 4


def test_it_is_unbiased_and_sees_a_shift():
    found = kernel_distance(normal(4000, 0), normal(4000, 1), generator=torch.Generator(), subset_size=200)
    assert abs(found.mean) < 3 * found.standard_deviation / 4  # 16 or more independent subsets
    farther = [
        kernel_distance(normal(2000, 0, s), normal(2000, 1), generator=torch.Generator(), subset_size=500).mean
        for s in (0.1, 0.2, 0.4)
    ]
    assert 0 < farther[0] < farther[1] < farther[2]


def test_the_generator_decides_the_subsets():
    sets = normal(100, 0), normal(90, 1)
    one, again, other = (
        kernel_distance(*sets, generator=torch.Generator().manual_seed(s), subsets=5, subset_size=50) for s in (1, 1, 2)
    )
    assert one == again != other
    assert (one.subsets, one.subset_size) == (5, 50)
    whole = kernel_distance(*(part[:90] for part in sets), generator=torch.Generator(), subsets=3, subset_size=90)
    assert whole.standard_deviation < 1e-12  # each subset is the whole
    assert whole.mean == pytest.approx(squared_mmd(sets[0][:90], sets[1]))


@pytest.mark.parametrize("keywords", [{"subset_size": 91}, {"subset_size": 1}, {"subset_size": 50, "subsets": 0}])
def test_subsets_that_cannot_be_drawn_are_one_sentence(keywords):
    with pytest.raises(UserError, match="cannot be drawn from 90 features: use at least 1 subset of 2 to 90"):
        kernel_distance(normal(100, 0), normal(90, 1), generator=torch.Generator(), **keywords)


def test_features_that_are_not_finite_are_refused():
    with pytest.raises(UserError, match="the features are not finite"):
        kernel_distance(normal(10, 0), normal(10, 1) / 0, generator=torch.Generator(), subset_size=5)

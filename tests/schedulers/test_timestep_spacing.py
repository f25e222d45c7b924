"""The lists of timesteps against diffusers' and their stated properties."""

import diffusers
import numpy as np
import pytest
import torch

from hf_ddpm import HFDDPMScheduler
from hf_ddpm.schedulers.timestep_spacing import ddim_timesteps, sectioned_timesteps, spaced_timesteps


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_spacings_are_diffusers_own(spacing):
    """Of every length. Where `numpy.arange` runs over, stock's trailing list has a step too many, at t = -1."""
    stock = diffusers.DDPMScheduler(timestep_spacing=spacing)
    too_long = []
    for num_steps in range(1, 1001):
        stock.set_timesteps(num_steps)
        theirs = stock.timesteps.tolist()
        if len(theirs) > num_steps:
            too_long.append(num_steps)
            assert theirs.pop() == -1
        assert spaced_timesteps(spacing, num_steps, 1000) == theirs
    assert len(too_long) == (62 if spacing == "trailing" else 0)


@pytest.mark.parametrize("num_steps", [10, np.int64(10)])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_the_scheduler_takes_the_spacing_of_its_config(spacing, num_steps):
    scheduler = HFDDPMScheduler(timestep_spacing=spacing)
    scheduler.set_timesteps(num_steps)
    assert scheduler.timesteps.tolist() == spaced_timesteps(spacing, 10, 1000)
    assert scheduler.num_inference_steps == 10


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_all_steps_is_the_training_chain(spacing):
    assert spaced_timesteps(spacing, 50, 50) == list(range(49, -1, -1))


@pytest.mark.parametrize("timesteps", [[900, 500, 20], [0], [999, 0]])
def test_previous_timestep_is_read_from_the_list(timesteps):
    scheduler = HFDDPMScheduler()
    scheduler.set_timesteps(timesteps=timesteps)
    assert [scheduler.previous_timestep(t) for t in timesteps] == [*timesteps[1:], -1]
    assert torch.equal(scheduler.timesteps, torch.tensor(timesteps))


@pytest.mark.parametrize("num_steps", [0, -1, 1001, 2.5, True])
def test_impossible_step_counts(num_steps):
    with pytest.raises(ValueError, match=f"num_inference_steps={num_steps} must be a whole number from 1 to 1000"):
        HFDDPMScheduler().set_timesteps(num_steps)


@pytest.mark.parametrize("timesteps", [[], [1, 2], [5, 5], [1000], [3, -1]])
def test_impossible_lists(timesteps):
    with pytest.raises(ValueError, match=r"strictly descending list within 0\.\.999"):
        HFDDPMScheduler().set_timesteps(timesteps=timesteps)


@pytest.mark.parametrize("timesteps", [[10.9, 5.2], ["a"], [None]])
def test_lists_of_other_things_than_whole_numbers(timesteps):
    with pytest.raises(ValueError, match="must be a list of whole numbers"):
        HFDDPMScheduler().set_timesteps(timesteps=timesteps)


def test_offset_that_leaves_the_chain():
    with pytest.raises(ValueError, match=r"steps_offset=1 shifts 1000 leading timesteps out of 0 \.\. 999: use fewer"):
        HFDDPMScheduler(steps_offset=1).set_timesteps(1000)
    HFDDPMScheduler(steps_offset=1).set_timesteps(999)


@pytest.mark.parametrize("arguments", [{}, {"num_inference_steps": 3, "timesteps": [2, 1]}])
def test_steps_and_list_exclude_each_other(arguments):
    with pytest.raises(ValueError, match="exactly one"):
        HFDDPMScheduler().set_timesteps(**arguments)


@pytest.mark.parametrize(("num_steps", "unique"), [(10, 10), (20, 20), (50, 49), (100, 96), (200, 187)])
def test_quadratic_is_ddims_without_its_repeats(num_steps, unique):
    """The list of DDIM's code, and how many of its steps are different (the others would be calls for nothing)."""
    papers = [int(s) for s in np.linspace(0, np.sqrt(1000 * 0.8), num_steps) ** 2]
    scheduler = HFDDPMScheduler()
    scheduler.set_timesteps(num_steps, timestep_spacing="quadratic")
    assert scheduler.timesteps.tolist() == sorted(set(papers), reverse=True)
    assert scheduler.num_inference_steps == len(scheduler.timesteps) == unique


def test_quadratic_reaches_four_fifths_of_every_chain():
    for num_train in (10, 50, 100, 1000, 4000):
        steps = spaced_timesteps("quadratic", 5, num_train)
        assert (steps[0], steps[-1]) == (num_train * 4 // 5, 0)


def test_ties_between_two_steps_fall_as_in_improved_ddpm():
    """Half of 999 is rounded to 500, but 999 / 26 added up 13 times is a hair less, 999 / 42 added up 35 times more."""
    assert round(999 / 2) == 500
    assert sectioned_timesteps("27", 1000)[13] == 499
    assert round(999 * 35 / 42) == 832
    assert sectioned_timesteps("43", 1000)[42 - 35] == 833


def test_more_sections_than_timesteps_are_an_error():
    with pytest.raises(ValueError, match="has 3 sections, which must be at most T=2"):
        sectioned_timesteps("1,1,1", 2)


def test_sections():
    """Each section's first and last step are taken, low noise first; remainders go to the first sections."""
    assert sectioned_timesteps("2,3", 10) == [9, 7, 5, 4, 0]
    assert sectioned_timesteps("1,1,1", 10) == [7, 4, 0]
    assert sectioned_timesteps("50", 1000) == spaced_timesteps("linspace", 50, 1000)
    steps = sectioned_timesteps("10,15,20", 300)
    assert [sum(low <= t < low + 100 for t in steps) for low in (0, 100, 200)] == [10, 15, 20]
    assert len(steps) == 45


def test_ddim_n_is_the_stride_with_exactly_n_steps():
    assert ddim_timesteps("ddim25", 1000) == list(range(960, -1, -40))
    assert ddim_timesteps("ddim100", 4000) == list(range(3960, -1, -40))
    assert ddim_timesteps("ddim1000", 1000) == list(range(999, -1, -1))
    assert len(ddim_timesteps("ddim84", 1000)) == 84  # stride 12: 0, 12, ..., 996


@pytest.mark.parametrize(
    ("num_steps", "spacing", "sentence"),
    [
        (None, "ddim300", "the closest choice is ddim250 or ddim334"),
        (None, "ddimx", "the closest choice is ddim1 or ddim2"),
        (None, "500,600", "has 600 in section 2, which must be from 1 to 500"),
        (None, "10,0", "has 0 in section 2, which must be from 1 to 500"),
        (None, "cubic", "use one of leading, trailing, linspace, quadratic with num_inference_steps, counts"),
        (None, "quadratic", "requires num_inference_steps"),
        (None, "", "timestep_spacing='' is not supported"),
        (10, 5, "timestep_spacing=5 must be a name"),
        (50, "10,15", "'10,15' determines the number of steps, 25: omit num_inference_steps=50, or use one of leading"),
        (50, "ddim25", "'ddim25' determines the number of steps, 25"),
        (50, "cubic", "'cubic' is not supported: use one of leading, trailing, linspace, quadratic"),
        (1, "quadratic", "num_inference_steps=1 must be a whole number from 2 to 1000"),
        (1001, "quadratic", "num_inference_steps=1001 must be"),
    ],
)
def test_impossible_spacings(num_steps, spacing, sentence):
    with pytest.raises(ValueError, match=sentence):
        HFDDPMScheduler().set_timesteps(num_steps, timestep_spacing=spacing)


def test_a_spacing_beside_a_list_is_refused():
    with pytest.raises(ValueError, match="exactly one"):
        HFDDPMScheduler().set_timesteps(timesteps=[5, 1], timestep_spacing="leading")


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace", "quadratic"])
def test_a_call_overrides_the_configs_spacing(spacing):
    scheduler = HFDDPMScheduler(timestep_spacing="trailing")
    scheduler.set_timesteps(7, timestep_spacing=spacing)
    assert scheduler.timesteps.tolist() == spaced_timesteps(spacing, 7, 1000)
    scheduler.set_timesteps(7)
    assert scheduler.timesteps.tolist() == spaced_timesteps("trailing", 7, 1000)

"""The lists of timesteps against diffusers' and their stated properties."""

import diffusers
import pytest
import torch

from hf_ddpm import HFDDPMScheduler
from hf_ddpm.schedulers.timestep_spacing import spaced_timesteps


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("num_steps", [1, 7, 10, 30, 128, 999, 1000])
def test_spacings_are_diffusers_own(spacing, num_steps):
    ours, stock = HFDDPMScheduler(timestep_spacing=spacing), diffusers.DDPMScheduler(timestep_spacing=spacing)
    if spacing == "linspace" and num_steps == 1:
        assert spaced_timesteps(spacing, 1, 1000) == [0]
        return
    ours.set_timesteps(num_steps)
    stock.set_timesteps(num_steps)
    assert ours.timesteps.tolist() == stock.timesteps.tolist()
    assert len(ours.timesteps) == num_steps == ours.num_inference_steps


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


def test_offset_that_leaves_the_chain():
    with pytest.raises(ValueError, match=r"within 0\.\.999"):
        HFDDPMScheduler(steps_offset=1).set_timesteps(1000)


@pytest.mark.parametrize("arguments", [{}, {"num_inference_steps": 3, "timesteps": [2, 1]}])
def test_steps_and_list_exclude_each_other(arguments):
    with pytest.raises(ValueError, match="exactly one"):
        HFDDPMScheduler().set_timesteps(**arguments)

"""What a config may say to those who open it; what means harm is in tests/hub/test_hostile.py."""

import inspect
import json

import diffusers
import pytest
import torch
from diffusers import UNet2DModel
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from hf_ddpm import HFVAE, HFDDPMScheduler
from hf_ddpm.gate.config_checks import check_config
from hf_ddpm.gate.weights import check_weights
from hf_ddpm.schedulers.config_files import wrong_kind_as_value_error


def schedulers():
    """Those of diffusers that need no argument and no further package."""
    for name in dir(diffusers):
        if name.endswith("Scheduler"):
            kind = getattr(diffusers, name)
            required = [p for p in inspect.signature(kind).parameters.values() if p.default is p.empty]
            if issubclass(kind, SchedulerMixin) and not required:
                yield kind


def another(value):
    """Of the same kind, which no default is."""
    return not value if type(value) is bool else value + 1


@pytest.mark.parametrize("kind", [*schedulers()], ids=lambda kind: kind.__name__)
def test_what_a_scheduler_says_of_itself_is_allowed(kind, tmp_path):
    kind().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "scheduler_config.json").read_text())
    check_config("scheduler_config.json", kind, config)
    others = {name: another(value) for name, value in config.items() if type(value) in (bool, int, float)}
    check_config("scheduler_config.json", kind, others)


def test_a_unet_may_have_no_groups():
    """As those of score-based models have."""
    blocks = {"down_block_types": ("SkipDownBlock2D",), "up_block_types": ("SkipUpBlock2D",)}
    unet = UNet2DModel(16, block_out_channels=(32,), norm_num_groups=None, layers_per_block=1, **blocks)
    check_config("config.json", UNet2DModel, json.loads(unet.to_json_string()))


def test_a_value_of_another_kind_names_its_file():
    with pytest.raises(ValueError, match=r"^x\.json has layers_per_block='2', which must be int: fix it$"):
        check_config("x.json", UNet2DModel, {"layers_per_block": "2"})
    with pytest.raises(ValueError, match=r"^x\.json has hidden_sizes with 65 entries, and at most 64 are allowed$"):
        check_config("x.json", HFVAE, {"hidden_sizes": [1] * 65})
    check_config("x.json", HFDDPMScheduler, {"trained_betas": [0.1] * 1000, "something_else": {"a": "b"}})


@pytest.mark.parametrize("wrong", [{"time_embedding_type": "x"}, {"block_out_channels": []}, {"block_out_channels": 7}])
def test_what_passes_and_still_does_not_fit_is_a_sentence(wrong):
    check_config("config.json", UNet2DModel, wrong)
    with (
        pytest.raises(ValueError, match=r"^ada/x: a value in config\.json or .* has the wrong type"),
        wrong_kind_as_value_error("ada/x"),
    ):
        UNet2DModel(**wrong)


def test_weights_that_are_nowhere_are_counted():
    with torch.device("meta"):
        network = torch.nn.Linear(2, 3)
    with pytest.raises(ValueError, match=r"^weights are missing \(2, such as weight\): config\.json and the weights"):
        check_weights(network)
    network.hf_device_map = {"": "disk"}  # as accelerate leaves one that it spread
    check_weights(network)
    check_weights(torch.nn.Linear(2, 3))

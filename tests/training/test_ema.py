"""The average of the weights: its closed form, its warm-up, and that short runs are never noise."""

import diffusers.training_utils
import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from hf_ddpm.training.ema import EMA


def filled(value: float) -> nn.Linear:
    layer = nn.Linear(2, 2)
    for weight in layer.parameters():
        nn.init.constant_(weight, value)
    return layer


def test_constant_decay_is_a_geometric_sum():
    model = filled(1.0)
    ema = EMA(model, max_decay=0.9, inv_gamma=1e-9, power=1.0)  # no warm-up
    for weight in model.parameters():
        nn.init.constant_(weight, 0.0)
    for step in range(1, 11):
        ema.update(model, step)
    assert ema.model.weight[0, 0].item() == pytest.approx(0.9**10, rel=1e-5)


def test_the_decay_is_that_of_diffusers():
    stock = diffusers.training_utils.EMAModel(
        filled(0).parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75
    )
    ema = EMA(filled(0), max_decay=0.9999, inv_gamma=1.0, power=0.75)
    for step in (1, 10, 1000, 10**6):
        assert ema.decay(step) == pytest.approx(stock.get_decay(step + 1), rel=1e-12)


def test_short_runs_forget_the_random_start():
    """After 100 steps of constant weights less than a thousandth of the start is left, even at max_decay 0.9999."""
    model = filled(0.0)
    ema = EMA(filled(1.0), max_decay=0.9999, inv_gamma=1.0, power=0.75)
    for step in range(1, 101):
        ema.update(model, step)
    assert ema.model.weight.abs().max() < 1e-3


def test_the_average_is_frozen_and_in_eval_mode():
    ema = EMA(filled(0.0))
    assert not ema.model.training
    assert not any(weight.requires_grad for weight in ema.model.parameters())


@pytest.mark.parametrize("keywords", [{"max_decay": 1.0}, {"power": 0.0}, {"inv_gamma": -1.0}])
def test_impossible_averages(keywords):
    with pytest.raises(ValueError, match="must lie in"):
        EMA(filled(0.0), **keywords)


def test_sharded_weights_are_averaged_whole():
    """FSDP2 turns weights into DTensors; here over a group of one process."""
    torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=torch.distributed.HashStore())
    try:
        plain, sharded = filled(1.0), filled(1.0)
        averages = EMA(plain), EMA(sharded)
        fully_shard(sharded, mesh=init_device_mesh("cpu", (1,)))
        assert isinstance(sharded.weight, DTensor)
        with torch.no_grad():
            for model in (plain, sharded):
                model.weight.mul_(3)
        for average, model in zip(averages, (plain, sharded), strict=True):
            average.update(model, 4)
        assert torch.equal(averages[0].model.weight, averages[1].model.weight)
        assert not torch.equal(averages[0].model.weight, filled(1.0).weight)
    finally:
        torch.distributed.destroy_process_group()


def test_update_is_one_lerp():
    model, ema = filled(3.0), EMA(filled(1.0), max_decay=0.5, inv_gamma=1e-9)
    ema.update(model, 1)
    assert torch.equal(ema.model.bias, torch.full((2,), 2.0))

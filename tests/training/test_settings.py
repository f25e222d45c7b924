"""The learning rate as a function of the step, the optimizers, and what the settings refuse."""

from itertools import pairwise

import pytest
import torch

from hf_ddpm import unet_preset
from hf_ddpm.errors import UserError
from hf_ddpm.training.settings import Checkpoints, Optimization, Sampling, Training


def test_warm_up_reaches_the_peak_and_never_starts_at_zero():
    rates = [2.0 * Optimization(lr=2.0, warmup_steps=4).schedule(step, 10) for step in range(6)]
    assert rates == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]


@pytest.mark.parametrize("decay", ["cosine", "linear"])
def test_decay_ends_at_zero_after_the_last_step(decay):
    settings = Optimization(lr=1.0, warmup_steps=10, decay=decay)
    rates = [settings.schedule(step, 110) for step in range(111)]
    assert rates[10] == 1.0
    assert rates[60] == pytest.approx(0.5)
    assert rates[110] == pytest.approx(0.0, abs=1e-15)
    assert all(later < earlier for earlier, later in pairwise(rates[10:]))


def test_cosine_matches_torch():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.3)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50)
    settings = Optimization(lr=0.3, decay="cosine")
    for step in range(50):
        assert 0.3 * settings.schedule(step, 50) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        reference.step()


@pytest.mark.parametrize(("name", "kind"), [("adamw", torch.optim.AdamW), ("adam", torch.optim.Adam)])
def test_first_adam_step_is_the_schedule(name, kind):
    parameter = torch.nn.Parameter(torch.zeros(3))
    optimizer = Optimization(lr=0.1, optimizer=name).build(torch.nn.ParameterList([parameter]))
    assert type(optimizer) is kind
    parameter.grad = torch.tensor([1.0, -2.0, 1e-3])
    optimizer.step()
    assert torch.allclose(parameter, torch.tensor([-0.1, 0.1, -0.1]), rtol=1e-4)


@pytest.mark.parametrize("name", ["adamw", "adam"])
def test_fused_is_the_same_step(name):
    moved = []
    for fused in (True, False):
        parameter = torch.nn.Parameter(torch.ones(4))
        optimizer = Optimization(lr=0.1, optimizer=name, weight_decay=0.1, fused=fused).build(
            torch.nn.ParameterList([parameter])
        )
        assert optimizer.defaults["fused"] is fused
        for step in range(3):
            parameter.grad = torch.tensor([1.0, -2.0, 1e-3, 0.5]) * (step + 1)
            optimizer.step()
        moved.append(parameter.detach())
    assert torch.allclose(*moved, rtol=1e-5)


def test_the_global_batch_is_shared_out():
    training = Training(total_steps=1, batch_size=24, gradient_accumulation_steps=3)
    assert [training.local_batch_size(n) for n in (1, 2, 4, 8)] == [8, 4, 2, 1]
    with pytest.raises(UserError, match=r"batch_size=24 .* multiple of 15, the number of processes \(5\)"):
        training.local_batch_size(5)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Training(total_steps=0), "total_steps=0 must be at least 1"),
        (lambda: Training(total_steps=-5), "total_steps=-5"),
        (lambda: Training(total_steps=1, batch_size=0), "batch_size=0"),
        (lambda: Optimization(lr=0.0), r"lr=0\.0"),
        (lambda: Optimization(lr=1.0, warmup_steps=-1), "warmup_steps=-1"),
        (lambda: Sampling(every=0), "every=0"),
        (lambda: Checkpoints(keep=0), "keep=0"),
    ],
)
def test_impossible_settings(make, sentence):
    with pytest.raises(UserError, match=sentence):
        make()


def test_constant_is_constant():
    assert Optimization(lr=0.5).schedule(99, 100) == 1.0


def test_every_group_follows_the_schedule():
    model = unet_preset("tiny")
    settings = Optimization(lr=0.1, muon_lr=0.4, optimizer="muon", decay="linear")
    optimizer = settings.build(model)
    settings.set_learning_rate(optimizer, 5, 10)
    assert [group["lr"] for group in optimizer.param_groups] == [0.2, 0.05]

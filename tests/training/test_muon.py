"""Muon: orthogonal updates whatever the gradient's scale, and Adam exactly as torch's for the rest."""

import copy

import pytest
import torch
from torch import nn

from hf_ddpm import unet_preset
from hf_ddpm.training.muon import Muon, orthogonalize, split_parameters


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 8, 72), (2, 64, 9)])
def test_singular_values_come_near_one_and_singular_vectors_stay(shape):
    matrices = random(*shape)
    out = orthogonalize(matrices)
    values = torch.linalg.svdvals(out)
    kept = torch.linalg.svdvals(matrices) > 0.05 * torch.linalg.matrix_norm(matrices)[:, None]
    assert values[kept].min() > 0.6
    assert values.max() < 1.3
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    inner = u.mT @ out @ v.mT  # diagonal in the basis of the input
    assert (inner - torch.diag_embed(torch.diagonal(inner, dim1=1, dim2=2))).abs().max() < 1e-4


def test_an_orthogonal_matrix_keeps_its_direction():
    q = torch.linalg.qr(random(12, 12))[0]
    out = orthogonalize(q[None])[0]
    assert torch.allclose(out / out.norm(), q / q.norm(), atol=1e-5)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_the_update_forgets_the_gradients_scale(scale):
    one, two = nn.Parameter(torch.zeros(8, 4, 3, 3)), nn.Parameter(torch.zeros(8, 4, 3, 3))
    one.grad, two.grad = random(8, 4, 3, 3), scale * random(8, 4, 3, 3)
    for parameter in (one, two):
        Muon([parameter], [], muon_lr=0.1, lr=0.1).step()
    assert torch.allclose(one, two, atol=2e-3)
    assert 0.06 < torch.linalg.matrix_norm(one.flatten(1), 2) < 0.13


def test_shapes_together_are_shapes_alone():
    together = [nn.Parameter(random(6, 3, 3, 3, seed=i)) for i in range(3)]
    alone = [nn.Parameter(p.detach().clone()) for p in together]
    for i, (one, two) in enumerate(zip(together, alone, strict=True)):
        one.grad = two.grad = random(6, 3, 3, 3, seed=10 + i)
    Muon(together, [], muon_lr=0.1, lr=0.1).step()
    for p in alone:
        Muon([p], [], muon_lr=0.1, lr=0.1).step()
    assert all(torch.allclose(one, two, atol=1e-6) for one, two in zip(together, alone, strict=True))


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_the_rest_is_torchs_adamw(weight_decay):
    mine, theirs = nn.Parameter(random(5)), nn.Parameter(random(5))
    ours = Muon([], [mine], muon_lr=1.0, lr=0.01, betas=(0.9, 0.99), weight_decay=weight_decay)
    reference = torch.optim.AdamW([theirs], lr=0.01, betas=(0.9, 0.99), weight_decay=weight_decay)
    for step in range(10):
        mine.grad = theirs.grad = random(5, seed=step + 1)
        ours.step()
        reference.step()
    assert torch.allclose(mine, theirs, atol=1e-6)


def test_every_weight_is_in_one_group():
    model = unet_preset("tiny")
    hidden, rest = split_parameters(model)
    assert len(hidden) + len(rest) == len(list(model.parameters()))
    assert not {id(p) for p in hidden} & {id(p) for p in rest}
    assert id(model.conv_in.weight) in {id(p) for p in rest}
    assert id(model.conv_out.weight) in {id(p) for p in rest}
    assert all(p.ndim >= 2 for p in hidden)


def test_state_survives_saving():
    first = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 2)])
    gradients = [[random(*p.shape, seed=10 * step + i) for i, p in enumerate(first.parameters())] for step in range(4)]

    def optimizer_of(model):
        return Muon(
            [p for p in model.parameters() if p.ndim == 2],
            [p for p in model.parameters() if p.ndim == 1],
            muon_lr=0.1,
            lr=0.1,
        )

    def walk(model, optimizer, steps):
        for step in steps:
            for p, g in zip(model.parameters(), gradients[step], strict=True):
                p.grad = g.clone()
            optimizer.step()

    whole, saved = optimizer_of(first), copy.deepcopy(first)
    walk(first, whole, range(4))
    half = optimizer_of(saved)
    walk(saved, half, range(2))
    again = optimizer_of(saved)
    again.load_state_dict(copy.deepcopy(half.state_dict()))
    walk(saved, again, range(2, 4))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), saved.parameters(), strict=True))

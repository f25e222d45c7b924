"""Muon: orthogonal updates whatever the gradient's scale, and Adam exactly as torch's for the rest."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from hf_ddpm import HFVAE, unet_preset
from hf_ddpm.errors import UserError
from hf_ddpm.models.unet import UNET_PRESETS
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


def names_of(model: nn.Module, parameters: list[nn.Parameter]) -> list[str]:
    names = {id(p): name for name, p in model.named_parameters()}
    return [names[id(p)] for p in parameters]


@pytest.mark.parametrize("preset", UNET_PRESETS)
def test_unets_are_split_as_by_the_names_of_their_layers(preset):
    with torch.device("meta"):
        model = unet_preset(preset)
    outer = {"conv_in", "conv_out", "class_embedding"}
    by_name = [name for name, p in model.named_parameters() if p.ndim >= 2 and name.split(".")[0] not in outer]
    hidden, rest = split_parameters(model)
    assert names_of(model, hidden) == by_name
    assert {*by_name, *names_of(model, rest)} == {name for name, _ in model.named_parameters()}


def matrices_of_adam(model: nn.Module) -> list[str]:
    return [name for name in names_of(model, split_parameters(model)[1]) if model.get_parameter(name).ndim >= 2]


def test_the_first_and_the_last_layer_of_a_vae_go_to_adam():
    conv = HFVAE(network="conv", block_out_channels=(8, 16), likelihood="gaussian_global")
    assert matrices_of_adam(conv) == ["encoder.conv_in.weight", "decoder.conv_out.weight"]
    mlp = HFVAE(hidden_sizes=(20, 12))
    linear = [name for name, p in mlp.named_parameters() if p.ndim == 2]
    assert len(linear) == 6
    assert matrices_of_adam(mlp) == [linear[0], linear[-1]]


class Discriminator(nn.Module):
    """Of a denoising diffusion GAN in small: it embeds t before it sees images, and ends in a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_t = nn.Sequential(nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, 16))
        self.from_image = nn.Conv2d(2, 16, 1)
        self.blocks = nn.Sequential(spectral_norm(nn.Conv2d(16, 16, 3)), nn.GroupNorm(4, 16), nn.Conv2d(16, 32, 3))
        self.to_logit = nn.Linear(32, 1)


class Classifier(nn.Module):
    """Of guided diffusion in small, with an attention that pools over the image at its end."""

    def __init__(self) -> None:
        super().__init__()
        self.begin = nn.Conv2d(3, 8, 3)
        self.embed_class = nn.Embedding(10, 8)
        self.norm = nn.LayerNorm((8, 4, 4))
        self.positions = nn.Parameter(torch.zeros(8, 17))
        self.qkv = nn.Conv1d(8, 24, 1)
        self.project = nn.Conv1d(8, 10, 1)


def test_networks_of_other_families_keep_their_first_and_last_layer_for_adam():
    discriminator = Discriminator()
    assert matrices_of_adam(discriminator) == ["from_image.weight", "to_logit.weight"]
    hidden = names_of(discriminator, split_parameters(discriminator)[0])
    assert hidden[:2] == ["embed_t.0.weight", "embed_t.2.weight"]
    assert "blocks.0.parametrizations.weight.original" in hidden
    assert matrices_of_adam(Classifier()) == [
        "positions",
        "begin.weight",
        "embed_class.weight",
        "norm.weight",
        "norm.bias",
        "project.weight",
    ]


def test_a_network_of_one_layer_or_none_has_no_hidden_matrix():
    one, norm, tied = nn.Linear(3, 3), nn.LayerNorm((2, 3)), nn.ModuleList([nn.Linear(3, 3) for _ in range(3)])
    tied[1].weight = tied[2].weight
    for model in (one, norm, tied):
        hidden, rest = split_parameters(model)
        assert hidden == []
        assert len(rest) == len(list(model.parameters()))


def test_a_state_that_divides_the_weights_otherwise_is_refused():
    first, second = (nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)) for _ in range(2))
    by_shape = [[p for p in first.parameters() if p.ndim == n] for n in (2, 1)]
    saved = Muon(*by_shape, muon_lr=0.1, lr=0.1).state_dict()
    optimizer = Muon(*split_parameters(second), muon_lr=0.1, lr=0.1)
    with pytest.raises(UserError, match=r"as \[3, 3\], but this version as \[1, 5\].*start a new run"):
        optimizer.load_state_dict(saved)


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

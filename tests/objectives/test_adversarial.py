"""The objective of a denoising GAN: what each player is shown, its loss, the penalties and what the log says."""

import math
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDPMScheduler
from torch import nn
from torch.nn.functional import softplus

from hf_ddpm import HFDDPMScheduler
from hf_ddpm.data import Batch
from hf_ddpm.models import discriminator_preset, generator_preset
from hf_ddpm.objectives import DISCRIMINATOR, GENERATOR, AdversarialObjective
from hf_ddpm.objectives.adversarial import LOOK_EVERY

T, SHAPE = 4, (8, 1, 8, 8)


def objective(**keywords):
    scheduler = HFDDPMScheduler(T, beta_schedule="vp", prediction_type="sample")
    return AdversarialObjective(scheduler, **{"latent_dim": 4, "total_steps": 100} | keywords)


class Linear(nn.Module):
    """D = a . x_{t-1} + b . x_t, whose gradient is a."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.a, self.b = (nn.Parameter(0.1 * torch.randn(SHAPE[1:])) for _ in range(2))

    def forward(self, previous, x_t, t, y=None, full_precision=False):
        return SimpleNamespace(logits=(self.a * previous).flatten(1).sum(1) + (self.b * x_t).flatten(1).sum(1))


class Means(nn.Module):
    """G = w times the mean of z."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(0.7))

    def forward(self, x_t, t, z, y=None):
        return SimpleNamespace(sample=(self.w * z.mean(dim=1)).view(-1, 1, 1, 1).expand_as(x_t))


@pytest.fixture
def models():
    return {GENERATOR: Means(), DISCRIMINATOR: Linear()}


@pytest.fixture
def batch():
    x_0 = torch.rand(SHAPE, generator=torch.Generator().manual_seed(5)) * 2 - 1
    return Batch(x_0, None, torch.arange(8))


def drawn(one, step=0):
    return one.draw(SHAPE, torch.Generator().manual_seed(7), step)


def pairs(one, turn, models, batch, draws):
    """What the turn is about, from the equations: arXiv 2112.07804, eq. 5 and section 3."""
    row = {key.partition(".")[2]: value for key, value in draws.rows.items() if key.startswith(turn)}
    abar = torch.cat([torch.ones(1), one.scheduler.alphas_cumprod.float()])
    beta = one.scheduler.betas.float()
    t = row["t"].view(-1, 1, 1, 1)
    real = abar[t].sqrt() * batch.x_0 + (1 - abar[t]).sqrt() * row["noise"]
    x_t = (1 - beta[t]).sqrt() * real + beta[t].sqrt() * row["step_noise"]
    x_0 = models[GENERATOR](x_t, row["t"], row["z"]).sample
    mean = abar[t].sqrt() * beta[t] * x_0 + (1 - beta[t]).sqrt() * (1 - abar[t]) * x_t
    variance = beta[t] * (1 - abar[t]) / (1 - abar[t + 1])
    return real, x_t, x_0, mean / (1 - abar[t + 1]) + variance.sqrt() * row["posterior_noise"], row


def test_each_player_has_draws_of_its_own():
    rows = drawn(objective()).rows
    for name in ("t", "noise", "step_noise", "posterior_noise", "z"):
        assert not torch.equal(rows[f"{GENERATOR}.{name}"], rows[f"{DISCRIMINATOR}.{name}"])
    assert rows[f"{GENERATOR}.z"].shape == (8, 4) and rows[f"{GENERATOR}.noise"].shape == SHAPE


def test_the_loss_of_the_discriminator_is_that_of_the_paper(models, batch):
    one = objective(r1_gamma=0.3, r1_every=2)
    draws = drawn(one)
    real, x_t, _, fake, _ = pairs(one, DISCRIMINATOR, models, batch, draws)
    judge = models[DISCRIMINATOR]
    plain = softplus(-judge(real, x_t, 0).logits) + softplus(judge(fake, x_t, 0).logits)
    penalty = judge.a.square().sum()
    with_r1, without = (one.loss(DISCRIMINATOR, models, batch, draws, step) for step in (0, 1))
    torch.testing.assert_close(without.each, plain, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(with_r1.each, plain + 0.15 * penalty, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(with_r1.said["r1"], penalty.detach())
    assert "r1" not in without.said
    with_r1.each.mean().backward()
    assert models[GENERATOR].w.grad is None  # who only looks on


def test_the_gradient_of_r1_goes_through_the_slope():
    """Of a network with a curved D against differences of the penalty, in float64."""
    torch.manual_seed(0)
    judge = discriminator_preset("tiny").double()
    one, batch = (
        objective(r1_gamma=2000.0, r1_every=2),
        Batch(torch.rand(SHAPE).double() * 2 - 1, None, torch.arange(8)),
    )
    models, draws = {GENERATOR: Means().double(), DISCRIMINATOR: judge}, drawn(one)
    draws = type(draws)({k: v.double() if v.is_floating_point() else v for k, v in draws.rows.items()}, draws.weight)
    weight = judge.blocks[0].conv1.weight

    def penalised():
        with_r1, without = (one.loss(DISCRIMINATOR, models, batch, draws, step).each.mean() for step in (0, 1))
        return with_r1 - without

    (slope,) = torch.autograd.grad(penalised(), weight)
    step = 1e-7  # short: at a kink of the leaky activation the slope jumps
    with torch.no_grad():
        values = []
        for sign in (1, -1):
            weight[0, 0, 0, 0] += sign * step
            with torch.enable_grad():
                values.append(penalised().item())
            weight[0, 0, 0, 0] -= sign * step
    assert slope[0, 0, 0, 0].item() == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-4)


def test_the_loss_of_the_generator_is_that_of_the_paper_and_the_l2_term_falls_to_0(models, batch):
    one = objective(l2_weight=2.0, l2_until=0.5)
    draws = drawn(one)
    _, x_t, x_0, fake, _ = pairs(one, GENERATOR, models, batch, draws)
    plain = softplus(-models[DISCRIMINATOR](fake, x_t, 0).logits)
    l2 = (x_0 - batch.x_0).square().flatten(1).mean(1)
    for step, weight in ((0, 2.0), (25, 1.0), (50, 0.0), (99, 0.0)):
        assert one.l2_weight_at(step) == pytest.approx(weight)
        found = one.loss(GENERATOR, models, batch, draws, step)
        torch.testing.assert_close(found.each, plain + weight * l2, atol=1e-5, rtol=1e-5)
        assert ("l2" in found.said) == (weight > 0)
    assert objective(l2_weight=2.0).l2_weight_at(99) == 2.0
    found.each.mean().backward()
    assert models[GENERATOR].w.grad.abs() > 0


def test_relativistic_losses_judge_a_fake_against_the_real_one_of_the_same_x_t(models, batch):
    one = objective(relativistic=True, r1_gamma=0.2, r2_gamma=0.4, r1_every=2)
    draws, judge = drawn(one), models[DISCRIMINATOR]
    for turn, sign in ((DISCRIMINATOR, 1), (GENERATOR, -1)):
        real, x_t, _, fake, _ = pairs(one, turn, models, batch, draws)
        gap = judge(real, x_t, 0).logits - judge(fake, x_t, 0).logits
        found = one.loss(turn, models, batch, draws, 1)
        torch.testing.assert_close(found.each, softplus(-sign * gap), atol=1e-5, rtol=1e-5)
    slope = judge.a.square().sum()
    penalised = [one.loss(DISCRIMINATOR, models, batch, draws, step).each for step in (0, 1)]
    torch.testing.assert_close(penalised[0] - penalised[1], (0.3 * slope).expand(8), atol=1e-5, rtol=1e-5)


def test_the_log_says_the_gap_by_t_and_now_and_then_what_z_changes(models, batch):
    one = objective()
    draws = drawn(one)
    real, x_t, _, fake, row = pairs(one, DISCRIMINATOR, models, batch, draws)
    judge = models[DISCRIMINATOR]
    gap = (judge(real, x_t, 0).logits - judge(fake, x_t, 0).logits).detach()
    said = one.loss(DISCRIMINATOR, models, batch, draws, 1).said
    for t in range(T):
        total, count = said[f"gap_t{t}"]
        assert count == (row["t"] == t).sum()
        torch.testing.assert_close(total, gap[row["t"] == t].sum(), atol=1e-4, rtol=1e-4)
    assert not any(name.startswith("z_") for name in one.loss(GENERATOR, models, batch, draws, 1).said)
    said = one.loss(GENERATOR, models, batch, draws, LOOK_EVERY).said
    of_all = sum(said[f"z_variance_t{t}"] for t in range(T))
    z, other = (draws.rows[f"{GENERATOR}.{name}"].mean(dim=1) for name in ("z", "other_z"))
    wanted = (0.7 * (z - other)).square().sum() / 2
    torch.testing.assert_close(of_all, torch.stack([wanted, torch.tensor(8.0)]), atol=1e-5, rtol=1e-4)


def test_timesteps_are_drawn_by_their_weights():
    one = objective(timestep_weights=[0.0, 3.0, 1.0, 0.0])
    t = one.draw((4000, 1, 1, 1), torch.Generator().manual_seed(0)).rows[f"{GENERATOR}.t"]
    assert t.bincount(minlength=T).tolist() == pytest.approx([0, 3000, 1000, 0], abs=100)


def test_another_turn_is_nobodys(batch):
    one = objective()
    with pytest.raises(ValueError, match="turn='critic' must be one of discriminator, generator"):
        one.loss("critic", {}, batch, drawn(one), 1)


def test_parts_of_a_batch_have_the_loss_of_the_whole(batch):
    """With real networks: groups of the minibatch standard deviation are whole in parts of 4."""
    torch.manual_seed(0)
    models = {GENERATOR: generator_preset("tiny").eval(), DISCRIMINATOR: discriminator_preset("tiny").eval()}
    one = objective(r1_every=1)
    draws = drawn(one)
    for turn in one.turns:
        whole = one.loss(turn, models, batch, draws, 1).each
        parts = [one.loss(turn, models, batch.part(cut), draws.part(cut), 1).each for cut in (slice(4), slice(4, 8))]
        torch.testing.assert_close(torch.cat(parts), whole, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("keywords", "sentence"),
    [
        ({"r1_gamma": -1.0}, "r1_gamma=-1.0 must be a finite number of at least 0"),
        ({"l2_weight": math.nan}, "l2_weight=nan must be a finite number"),
        ({"r1_every": 0}, "r1_every=0 must be at least 1"),
        ({"l2_until": 0.0}, r"l2_until=0.0 must be a fraction of the training in \(0, 1\]"),
        ({"timestep_group": 0}, "timestep_group=0 must be at least 1"),
        ({"timestep_weights": [1.0]}, r"timestep_weights=\[1.0\] must be one number .* \(T=4\)"),
        (
            {"timestep_weights": [0.0] * 4},
            r"one number of at least 0 for each timestep \(T=4\), with a finite sum above",
        ),
        ({"timestep_weights": ["a"] * 4}, "timestep_weights=.* must be a list"),
        ({"r1_every": 2.5}, "r1_every=2.5 must be int"),
        ({"r1_gamma": None}, "r1_gamma=None must be float"),
        ({"relativistic": "no"}, "relativistic='no' must be bool"),
    ],
)
def test_what_it_cannot_be(keywords, sentence):
    with pytest.raises(ValueError, match=sentence):
        objective(**keywords)


def test_neighbours_share_their_t_in_groups():
    t = drawn(objective(timestep_group=4)).rows[f"{DISCRIMINATOR}.t"]
    assert t.tolist() == [t[0]] * 4 + [t[4]] * 4
    assert len(drawn(objective(timestep_group=3)).rows[f"{GENERATOR}.t"]) == 8  # the last group is smaller
    many = objective(timestep_group=2, timestep_weights=[0.0, 3.0, 1.0, 0.0])
    rows = many.draw((4000, 1, 2, 2), torch.Generator().manual_seed(0)).rows[f"{GENERATOR}.t"]
    assert (rows[::2] == rows[1::2]).all() and (rows == 1).double().mean() == pytest.approx(0.75, abs=0.03)


def test_a_scheduler_of_another_variance_is_refused():
    """Its steps would add more noise than the posterior that training draws."""
    scheduler = HFDDPMScheduler(T, beta_schedule="vp", prediction_type="sample", variance_type="fixed_large")
    with pytest.raises(ValueError, match="variance_type='fixed_large' must be 'fixed_small': the generator predicts"):
        AdversarialObjective(scheduler, latent_dim=4, total_steps=1)


def test_a_scheduler_that_cuts_x_0_is_refused():
    """The generator's images fill [-1, 1]: training would draw of them, and sampling of what is left."""
    process = {"beta_schedule": "vp", "prediction_type": "sample"}
    AdversarialObjective(HFDDPMScheduler(T, **process, clip_sample=True), latent_dim=4, total_steps=1)
    for cut in ({"clip_sample": True, "clip_sample_range": 0.5}, {"clip_sample": False, "thresholding": True}):
        with pytest.raises(ValueError, match=r"^(clip_sample_range=0.5 must be at least 1|thresholding=True)"):
            AdversarialObjective(HFDDPMScheduler(T, **process, **cut), latent_dim=4, total_steps=1)


def test_a_schedule_that_keeps_the_images_is_refused_with_a_remedy_that_works():
    """`trained_betas` take precedence over a schedule, so another schedule would change nothing."""
    for betas, sentence in (({}, "use beta_schedule 'vp'"), ({"trained_betas": [0.1] * T}, "use trained_betas with a")):
        scheduler = HFDDPMScheduler(T, prediction_type="sample", **betas)
        with pytest.raises(ValueError, match=f"alpha_bar after the last step is 0.*: {sentence}"):
            AdversarialObjective(scheduler, latent_dim=4, total_steps=1)
    for betas in ({"beta_schedule": "vp"}, {"trained_betas": [0.1] * (T - 1) + [0.9999]}):
        scheduler = HFDDPMScheduler(T, prediction_type="sample", **betas)
        AdversarialObjective(scheduler, latent_dim=4, total_steps=1)


def test_a_stock_scheduler_and_numbers_of_nothing_are_refused():
    process = HFDDPMScheduler(T, beta_schedule="vp", prediction_type="sample")
    with pytest.raises(ValueError, match="scheduler of type DDPMScheduler must be an HFDDPMScheduler"):
        AdversarialObjective(DDPMScheduler(T), latent_dim=4, total_steps=1)
    for keywords in ({"latent_dim": -1, "total_steps": 1}, {"latent_dim": 4, "total_steps": 0}):
        with pytest.raises(
            ValueError, match=r"latent_dim=.* must be at least 0, and total_steps=.* must be at least 1"
        ):
            AdversarialObjective(process, **keywords)


def test_a_scheduler_of_another_prediction_is_refused():
    with pytest.raises(ValueError, match="prediction_type='epsilon' must be 'sample'"):
        AdversarialObjective(HFDDPMScheduler(T, beta_schedule="vp"), latent_dim=4, total_steps=1)

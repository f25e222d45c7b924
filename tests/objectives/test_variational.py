"""L_vlb and L_hybrid: closed forms on Gaussian data, one bound for every prediction, and who learns from which half."""

import math

import pytest
import torch
from objective_calls import losses_of
from torch import nn

from hf_ddpm import HFDDPMScheduler
from hf_ddpm.objectives import make_objective
from hf_ddpm.objectives.simple import simple_loss

VARIANCES = ["fixed_small", "fixed_large", "learned", "learned_range"]
DATA_VARIANCE = 0.25


def losses(objective, model, x_0, t, noise):
    return losses_of(objective, model, x_0, t=t, noise=noise)


class ExactDenoiser(nn.Module):
    """E[eps | x_t] of data ~ N(0, 1/4), and the exact variance of q(x_{t-1} | x_t) where the scheduler learns one."""

    def __init__(self, scheduler):
        super().__init__()
        self.scheduler = scheduler
        self.abar = scheduler.alphas_cumprod
        self.marginal = self.abar * DATA_VARIANCE + 1 - self.abar  # of x_t
        abar_prev = torch.cat([torch.ones(1).double(), self.abar[:-1]])
        self.from_x_0 = abar_prev.sqrt() * scheduler.betas / (1 - self.abar)
        self.of_x_0 = DATA_VARIANCE * (1 - self.abar) / self.marginal  # Var(x_0 | x_t)
        self.exact = scheduler.posterior_variance + self.from_x_0**2 * self.of_x_0

    def variance_output(self):
        if self.scheduler.config["variance_type"] == "learned":
            return self.exact.log()
        low, high = self.scheduler.posterior_log_variance, self.scheduler.betas.log()
        return 2 * (self.exact.log() - low) / (high - low) - 1

    def forward(self, x_t, t):
        def at(values):
            return values[t].view(-1, 1, 1, 1)

        output = at((1 - self.abar).sqrt() / self.marginal) * x_t
        if self.scheduler.learns_variance:
            output = torch.cat([output, at(self.variance_output()).expand_as(x_t)], dim=1)
        return type("Output", (), {"sample": output})

    def terms(self):
        """E[KL(q(x_{t-1} | x_t, x_0) || p)] in bits, (T,), of t >= 1."""
        tilde = self.scheduler.posterior_variance
        chosen = {"fixed_small": tilde, "fixed_large": self.scheduler.betas}
        sigma = chosen.get(self.scheduler.config["variance_type"], self.exact)
        return 0.5 * ((sigma / tilde).log() - 1 + self.exact / sigma) / math.log(2)


@pytest.mark.parametrize("variance_type", VARIANCES)
def test_on_gaussian_data_the_terms_are_their_closed_forms_and_their_mean_is_the_bound(variance_type):
    scheduler = HFDDPMScheduler(40, beta_end=0.3, variance_type=variance_type)
    model = ExactDenoiser(scheduler)
    g = torch.Generator().manual_seed(0)
    t = torch.arange(1, 40)
    x_0 = DATA_VARIANCE**0.5 * torch.randn(39, 1, 100, 100, generator=g, dtype=torch.float64)
    noise = torch.randn(x_0.shape, generator=g, dtype=torch.float64)
    term = losses(make_objective(scheduler, loss="vlb", rescaled=False), model, x_0, t, noise)
    expected = model.terms()[1:]
    assert torch.allclose(term, expected, rtol=0.07, atol=1e-6)  # of 10,000 dimensions: 1.4% is one standard error
    assert (term / expected).mean().item() == pytest.approx(1, abs=0.01)
    rescaled = losses(make_objective(scheduler, loss="vlb"), model, x_0, t, noise)
    assert rescaled.mean().item() == pytest.approx(40 / 39 * term.sum().item(), rel=1e-12)


def test_the_last_term_is_the_decoder(says):
    """-log2 of the mass of each grey level's bin under N(mu, pv_1), the outer bins open (DDPM, eq. 13)."""
    scheduler = HFDDPMScheduler(prediction_type="sample")
    x_0 = torch.tensor([-1.0, -1 + 2 / 255, 1 / 255, 1.0], dtype=torch.float64).view(1, 1, 2, 2)
    predicted = x_0 + torch.tensor([0.01, -0.005, 0.003, 0.002]).view(1, 1, 2, 2)
    normal = torch.distributions.Normal(predicted, scheduler.posterior_variance[1].sqrt())
    above = torch.where(x_0 == 1, torch.ones_like(x_0), normal.cdf(x_0 + 1 / 255))
    below = torch.where(x_0 == -1, torch.zeros_like(x_0), normal.cdf(x_0 - 1 / 255))
    expected = -(above - below).log2().mean()
    loss = losses(make_objective(scheduler, loss="vlb", rescaled=False), says(predicted), x_0, torch.tensor([0]), x_0)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_an_error_in_epsilon_costs_what_the_paper_says(make_batch, says):
    """L_t - C = beta^2 / (2 sigma^2 alpha (1 - alpha_bar)) ||eps - eps_theta||^2 (DDPM, eq. 12)."""
    scheduler = HFDDPMScheduler(variance_type="fixed_large")
    loss, (x_0, t, noise) = make_objective(scheduler, loss="vlb"), make_batch()
    beta, abar = scheduler.betas[t], scheduler.alphas_cumprod[t]
    weight = beta**2 / (2 * beta * (1 - beta) * (1 - abar))
    gained = losses(loss, says(noise + 0.3), x_0, t, noise) - losses(loss, says(noise), x_0, t, noise)
    assert torch.allclose(gained, 1000 * weight * 0.3**2 / math.log(2), rtol=1e-6)


@pytest.mark.parametrize("variance_type", VARIANCES)
def test_every_prediction_has_the_same_bound(variance_type, make_batch, says):
    """Outputs that stand for the same x_0 have the same L_t, at t = 0 too."""
    x_0, t, noise = make_batch()
    t[0] = 0
    predicted = x_0 + 0.1 * torch.randn(x_0.shape, generator=torch.Generator().manual_seed(1)).double()
    variance = torch.full_like(x_0, -1.5)
    found = {}
    for prediction in ("epsilon", "sample", "v_prediction", "mean"):
        scheduler = HFDDPMScheduler(prediction_type=prediction, variance_type=variance_type)
        x_t = scheduler.add_noise(x_0, noise, t)
        answer = scheduler.target(predicted, x_t, scheduler.predict_epsilon(predicted, x_t, t), t)
        answer = torch.cat([answer, variance], dim=1) if scheduler.learns_variance else answer
        found[prediction] = losses(make_objective(scheduler, loss="vlb"), says(answer), x_0, t, noise)
    for other in ("sample", "v_prediction", "mean"):
        assert torch.allclose(found[other], found["epsilon"], rtol=1e-6)
    assert found["epsilon"].min() > 0


# --- L_hybrid --------------------------------------------------------------------------------------------------------


def hybrid_case(make_batch, variance_type, num_steps=4000, **keywords):
    scheduler = HFDDPMScheduler(num_steps, beta_schedule="cosine", variance_type=variance_type)
    x_0, t, noise = make_batch(num_steps=num_steps)
    answer = torch.cat([noise + 0.2, torch.full_like(noise, -2.0)], dim=1).requires_grad_()
    return make_objective(scheduler, loss="hybrid", **keywords), answer, (x_0, t, noise)


@pytest.mark.parametrize("variance_type", ["learned", "learned_range"])
@pytest.mark.parametrize(("num_steps", "rescaled", "scale"), [(4000, True, 4), (500, True, 0.5), (4000, False, 1)])
def test_hybrid_is_simple_plus_a_thousandth_of_the_bound(variance_type, num_steps, rescaled, scale, make_batch, says):
    hybrid, answer, given = hybrid_case(make_batch, variance_type, num_steps, rescaled=rescaled)
    term = losses(make_objective(hybrid.scheduler, loss="vlb", rescaled=False), says(answer), *given)
    model = says(answer)
    assert torch.allclose(losses(hybrid, model, *given) - 0.2**2, scale * term, rtol=1e-9, atol=0)
    assert term.min() > 0
    assert model.calls == 1


@pytest.mark.parametrize("variance_type", ["learned", "learned_range"])
def test_each_half_of_the_output_learns_from_its_own_loss(variance_type, make_batch, says):
    hybrid, answer, (x_0, t, noise) = hybrid_case(make_batch, variance_type, min_snr_gamma=5.0)
    (both,) = torch.autograd.grad(losses(hybrid, says(answer), x_0, t, noise).mean(), answer)
    x_t = hybrid.scheduler.add_noise(x_0, noise, t)
    simple = simple_loss(hybrid.scheduler, answer[:, :2], x_0, x_t, noise, t, 5.0).mean()
    (of_simple,) = torch.autograd.grad(simple, answer)
    of_bound = losses(make_objective(hybrid.scheduler, loss="vlb"), says(answer), x_0, t, noise).mean()
    (of_vlb,) = torch.autograd.grad(of_bound, answer)
    assert torch.equal(both[:, :2], of_simple[:, :2])
    assert torch.allclose(both[:, 2:], 0.001 * of_vlb[:, 2:], rtol=1e-9)
    assert both[:, 2:].abs().min() > 0
    assert of_vlb[:, :2].abs().min() > 0  # L_vlb alone trains the prediction too


def test_the_exact_variance_is_where_the_bound_is_least(says):
    """The gradient of L_vlb with respect to the variance is 0 at the exact one, and of either sign beside it."""
    scheduler = HFDDPMScheduler(40, beta_end=0.3, variance_type="learned")
    model = ExactDenoiser(scheduler)
    g = torch.Generator().manual_seed(0)
    x_0 = DATA_VARIANCE**0.5 * torch.randn(1, 1, 300, 300, generator=g, dtype=torch.float64)
    noise, t = torch.randn(x_0.shape, generator=g, dtype=torch.float64), torch.tensor([10])
    x_t = scheduler.add_noise(x_0, noise, t)
    prediction, variance = model(x_t, t).sample.chunk(2, dim=1)
    gradients = []
    for shift in (-0.5, 0.0, 0.5):
        moved = torch.full((1, 1, 1, 1), shift, dtype=torch.float64, requires_grad=True)
        answer = torch.cat([prediction, variance + moved], dim=1)
        loss = losses(make_objective(scheduler, loss="vlb", rescaled=False), says(answer), x_0, t, noise).mean()
        gradients.append(torch.autograd.grad(loss, moved)[0].item())
    assert gradients[0] < -0.1 and gradients[2] > 0.1
    assert abs(gradients[1]) < 0.01


@pytest.mark.parametrize("loss", ["vlb", "hybrid"])
def test_the_last_term_counts_the_levels_of_the_data(loss):
    """-log2 of a mass: a level of 16 bits is 257 times narrower than one of 8, so that it costs log2(257) bits more."""
    scheduler = HFDDPMScheduler(variance_type="learned_range")
    objective = make_objective(scheduler, loss=loss)
    torch.manual_seed(0)
    k = torch.randint(64, 192, (4, 1, 8, 8)).double()  # far from the ends, whose levels are open
    x_0, noise = k / 127.5 - 1, torch.randn(4, 1, 8, 8, dtype=torch.float64)
    t, model = torch.zeros(4, dtype=torch.int64), ExactDenoiser(scheduler)
    eight, sixteen = (losses_of(objective, model, x_0, bit_depth=bits, t=t, noise=noise) for bits in (8, 16))
    more = (sixteen - eight) / objective.scale
    # the density of p(x_0 | x_1) is nearly flat within 16 bits, and not within 8, so that this is not exact
    assert torch.all((more > 7.0) & (more < 8.2)), more

"""The score, the reverse mean and variance, and single forward steps, against closed forms in float64."""

import math

import pytest
import torch

from hf_ddpm import HFDDPMScheduler

PREDICTIONS = ["epsilon", "sample", "v_prediction", "mean"]
T = torch.tensor([0, 1, 400, 999])


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_score_is_minus_epsilon_over_sigma(prediction, prediction_of):
    scheduler = HFDDPMScheduler(prediction_type=prediction)
    x_0, noise = draw(4, 1, 3, 3), draw(4, 1, 3, 3, seed=1)
    x_t = scheduler.add_noise(x_0, noise, T)
    sigma = (1 - scheduler.alphas_cumprod[T]).sqrt().view(-1, 1, 1, 1)
    score = scheduler.score(prediction_of(scheduler, x_0, noise, T), x_t, T)
    torch.testing.assert_close(score, -noise / sigma, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("x_0", "noise", "sentence"),
    [
        (torch.zeros(2, 1, 3, 3, dtype=torch.uint8), draw(2, 1, 3, 3), "torch.uint8 must be a floating-point tensor"),
        (draw(2, 1, 3, 3), draw(1, 1, 3, 3), r"noise \(1, 1, 3, 3\) must be a tensor with the shape .*\(2, 1, 3, 3\)"),
        (draw(2, 1, 3, 3), None, "noise NoneType must be a tensor with the shape of"),
        (None, draw(2, 1, 3, 3), "of type NoneType must be a floating-point tensor"),
    ],
)
def test_images_that_no_noise_can_be_added_to(x_0, noise, sentence):
    gan = HFDDPMScheduler(4, beta_schedule="vp", prediction_type="sample")
    with pytest.raises(ValueError, match=sentence):
        HFDDPMScheduler().add_noise(x_0, noise, 5)
    with pytest.raises(ValueError, match=sentence):
        gan.add_noise_pair(x_0, noise, noise, 2)
    with pytest.raises(ValueError, match=sentence):
        gan.sample_posterior(x_0, x_0, noise, 2)


def test_the_score_of_gaussian_data_is_that_of_its_marginal():
    """For x_0 ~ N(m, s^2), q(x_t) is Gaussian: its log density differentiated by autograd."""
    m, s = 0.3, 0.5
    scheduler = HFDDPMScheduler()
    for t in T.tolist():
        a = scheduler.alphas_cumprod[t]
        x_t = draw(5, 1).requires_grad_()
        density = torch.distributions.Normal(a.sqrt() * m, (a * s**2 + 1 - a).sqrt())
        (expected,) = torch.autograd.grad(density.log_prob(x_t).sum(), x_t)
        eps = (1 - a).sqrt() * (x_t - a.sqrt() * m) / (a * s**2 + 1 - a)  # E[eps | x_t], the best network
        torch.testing.assert_close(scheduler.score(eps, x_t, t), expected, rtol=1e-9, atol=1e-9)


def test_L_simple_is_denoising_score_matching_with_weight_one_minus_alpha_bar():
    """||eps - eps_theta||^2 = (1 - abar) ||grad log q(x_t | x_0) - score_theta||^2 (Vincent 2011; DDPM, sec. 3.2)."""
    scheduler = HFDDPMScheduler()
    x_0, noise, output = draw(4, 1, 3, 3), draw(4, 1, 3, 3, seed=1), draw(4, 1, 3, 3, seed=2)
    x_t = scheduler.add_noise(x_0, noise, T).requires_grad_()
    abar = scheduler.alphas_cumprod[T].view(-1, 1, 1, 1)
    log_q = torch.distributions.Normal(abar.sqrt() * x_0, (1 - abar).sqrt()).log_prob(x_t).sum()
    (target,) = torch.autograd.grad(log_q, x_t)
    L_simple = (noise - output).square()
    score_matching = (target - scheduler.score(output, x_t, T)).square()
    torch.testing.assert_close(L_simple, ((1 - abar) * score_matching).detach(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_reverse_mean_is_the_posterior_of_the_predicted_x_0(prediction):
    scheduler = HFDDPMScheduler(prediction_type=prediction, beta_schedule="cosine")
    x_t, output = draw(4, 1, 3, 3), draw(4, 1, 3, 3, seed=1)
    expected = scheduler.posterior_mean(scheduler.predict_x_0(output, x_t, T), x_t, T)
    torch.testing.assert_close(scheduler.reverse_mean(output, x_t, T), expected, rtol=1e-6, atol=1e-6)
    if prediction == "mean":
        torch.testing.assert_close(scheduler.reverse_mean(output, x_t, T), output, rtol=1e-9, atol=1e-9)


def test_the_reverse_mean_is_equation_11_in_float32_at_the_noisiest_step():
    """x_0 of a cosine schedule's last step is 20,000 times the network's error; the mean never goes through it."""
    scheduler = HFDDPMScheduler(beta_schedule="cosine")
    x_t, eps = draw(1, 1, 8, 8), draw(1, 1, 8, 8, seed=1)
    beta, abar = scheduler.betas[999], scheduler.alphas_cumprod[999]
    exact = (x_t - beta / (1 - abar).sqrt() * eps) / (1 - beta).sqrt()
    in_float32 = scheduler.reverse_mean(eps.float(), x_t.float(), 999).double()
    assert (in_float32 - exact).abs().max() < 1e-5


def test_the_reverse_log_variance_of_learned_networks():
    output, x_t = draw(3, 1, 2, 2), draw(3, 1, 2, 2, seed=1)
    assert torch.equal(HFDDPMScheduler(variance_type="learned").reverse_log_variance(output, x_t, 7), output)
    scheduler = HFDDPMScheduler(variance_type="learned_range")
    one = torch.ones_like(x_t)
    for t in (0, 1, 999):
        bounds = scheduler.posterior_log_variance[t], scheduler.betas[t].log()
        for v, expected in ((-one, bounds[0]), (one, bounds[1]), (0 * one, sum(bounds) / 2)):
            got = scheduler.reverse_log_variance(v, x_t, t)
            torch.testing.assert_close(got, expected.expand_as(x_t), rtol=1e-12, atol=1e-12)


def test_diffuse_is_the_markov_chain_in_one_go():
    """Level by level, mean and variance multiply up to those of add_noise, and q(x_t | x_s) q(x_s | x_0) too."""
    scheduler = HFDDPMScheduler(beta_schedule="cosine")
    zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    for s, t in ((-1, 0), (-1, 700), (3, 4), (10, 999), (5, 5)):
        signal, std = scheduler.diffuse(one, zero, s, t), scheduler.diffuse(zero, one, s, t)
        before = scheduler.alphas_cumprod[s] if s >= 0 else one
        torch.testing.assert_close(signal * before.sqrt(), scheduler.alphas_cumprod[t].sqrt()[None].view(1))
        torch.testing.assert_close(
            std**2 + signal**2 * (1 - before), (1 - scheduler.alphas_cumprod[t]).view(1), rtol=1e-9, atol=1e-12
        )


@pytest.mark.parametrize(("s", "t"), [(5, 4), (-2, 3), (0, 1000)])
def test_diffusing_backwards_is_refused(s, t):
    with pytest.raises(ValueError, match=f"from_timestep={s} and to_timestep=.* must satisfy -1 <="):
        HFDDPMScheduler().diffuse(draw(1), draw(1), s, t)


def test_langevin_steps_keep_the_marginal_and_forget_where_they_began():
    """From far away to q(x_t) of Gaussian data, whose variance comes out too large by what Euler's step does."""
    m, s, t, snr = 0.3, 0.5, 300, 0.2
    scheduler = HFDDPMScheduler()
    a = scheduler.alphas_cumprod[t]
    mean, variance = float(a.sqrt() * m), float(a * s**2 + 1 - a)
    generator = torch.Generator().manual_seed(0)
    x = 3 + torch.randn(100_000, 1, generator=generator, dtype=torch.float64)
    for _ in range(300):
        eps = (1 - a).sqrt() * (x - mean) / variance
        x = scheduler.step_langevin(eps, t, x, generator, snr=snr)
    delta = 2 * snr**2 * (1 - float(a))
    stationary = variance / (1 - delta / (2 * variance))
    assert x.mean().item() == pytest.approx(mean, abs=4 * math.sqrt(variance / 100_000))
    assert x.var().item() == pytest.approx(stationary, rel=4 * math.sqrt(2 / 100_000))


def test_annealed_langevin_dynamics_alone_converges_to_correlated_data():
    """Song & Ermon 2019, Algorithm 1: no reverse step at all, only the score at every level, from high to low."""
    scheduler = HFDDPMScheduler(100, beta_schedule="cosine")
    truth = torch.tensor([[0.25, 0.15], [0.15, 0.16]], dtype=torch.float64)
    mean = torch.tensor([0.4, -0.2], dtype=torch.float64)

    def error(steps_a_level: int) -> float:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(10_000, 2, generator=generator, dtype=torch.float64)
        for t in range(99, -1, -1):
            a = scheduler.alphas_cumprod[t]
            precision = torch.linalg.inv(a * truth + (1 - a) * torch.eye(2, dtype=torch.float64))
            for _ in range(steps_a_level):
                eps = (1 - a).sqrt() * (x - a.sqrt() * mean) @ precision
                x = scheduler.step_langevin(eps, t, x, generator, snr=0.2)
        return max((x.T.cov() - truth).abs().max().item(), (x.mean(dim=0) - mean).abs().max().item())

    errors = [error(steps) for steps in (1, 4, 16)]
    assert errors[0] > 2 * errors[1] > 4 * errors[2]
    assert errors[2] < 0.03


@pytest.mark.parametrize("t", [0, 1, 3])
def test_a_pair_has_the_marginals_and_the_posterior_of_one_walk(t):
    """Of constant images: moments of q(x_{t-1}, x_t | x_0) in 200,000 draws, and the regression of one on the other."""
    scheduler = HFDDPMScheduler(4, beta_schedule="vp", prediction_type="sample")
    n, x_0 = 200_000, 0.5
    images = torch.full((n, 1), x_0, dtype=torch.float64)
    previous, x_t = scheduler.add_noise_pair(images, draw(n, 1), draw(n, 1, seed=1), torch.full((n,), t))
    before = scheduler.alphas_cumprod[t - 1] if t else torch.tensor(1.0)
    for x, abar in ((previous, before), (x_t, scheduler.alphas_cumprod[t])):
        assert x.mean() == pytest.approx(abar.sqrt().item() * x_0, abs=0.01)
        assert x.std() == pytest.approx((1 - abar).sqrt().item(), abs=0.01)
    left = previous - scheduler.posterior_mean(images, x_t, torch.full((n,), t))
    assert left.mean().abs() < 0.01 and (left * x_t).mean().abs() < 0.01  # nothing of x_t is left in it
    assert left.var().item() == pytest.approx(scheduler.posterior_variance[t].item(), abs=0.01)


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_a_draw_of_the_posterior_is_a_step_of_a_network_that_predicts_x_0(steps):
    config = {"prediction_type": "sample", "clip_sample": False, "timestep_spacing": "trailing"}
    scheduler = HFDDPMScheduler(steps, beta_schedule="vp", **config)
    scheduler.set_timesteps(steps)
    x_0, x_t, noise = (draw(2, 1, 3, 3, seed=seed).float() for seed in (0, 1, 2))
    for t in range(steps):
        drawn = scheduler.sample_posterior(x_0, x_t, noise, torch.tensor([t, t]))
        stepped = scheduler.step(x_0, t, x_t, variance_noise=noise).prev_sample
        assert (drawn - stepped).abs().max() < 2.5e-7 * max(1, float(stepped.abs().max()))
    assert torch.equal(scheduler.sample_posterior(x_0, x_t, noise, 0), x_0)


def test_langevin_takes_noise_and_refuses_a_step_of_no_size():
    scheduler, x, out, z = HFDDPMScheduler(), draw(2, 1, 2, 2), draw(2, 1, 2, 2, seed=1), draw(2, 1, 2, 2, seed=2)
    moved = scheduler.step_langevin(out, 500, x, noise=z, snr=0.1)
    sigma = (1 - scheduler.alphas_cumprod[500]).sqrt()
    torch.testing.assert_close(moved, x - 0.02 * sigma * out + 0.2 * sigma * z)
    assert torch.equal(scheduler.step_langevin(torch.cat([out, z], dim=1), 500, x, noise=z, snr=0.1), moved)
    with pytest.raises(ValueError, match="snr=0 must be positive"):
        scheduler.step_langevin(out, 500, x, snr=0)


# --- what a network is to predict -------------------------------------------------------------------------------------


def closed_forms(scheduler, x_0, noise, t):
    """The four targets from alpha_bar alone: DDPM, eq. 4 and 7; v of Salimans & Ho."""
    abar = scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
    before = torch.where(t > 0, scheduler.alphas_cumprod[t - 1], torch.ones(1).double()).view(-1, 1, 1, 1)
    beta = 1 - abar / before
    x_t = abar.sqrt() * x_0 + (1 - abar).sqrt() * noise
    mean = before.sqrt() * beta * x_0 + (abar / before).sqrt() * (1 - before) * x_t
    v = abar.sqrt() * noise - (1 - abar).sqrt() * x_0
    return {"epsilon": noise, "sample": x_0, "v_prediction": v, "mean": mean / (1 - abar)}


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_target_is_the_closed_form_and_stands_for_x_0(prediction):
    scheduler = HFDDPMScheduler(prediction_type=prediction)
    x_0, noise = draw(4, 1, 3, 3), draw(4, 1, 3, 3, seed=1)
    x_t = scheduler.add_noise(x_0, noise, T)
    target = scheduler.target(x_0, x_t, noise, T)
    torch.testing.assert_close(target, closed_forms(scheduler, x_0, noise, T)[prediction], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(scheduler.predict_x_0(target, x_t, T), x_0, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_an_error_in_x_0_weighs_what_it_costs_in_the_target(prediction):
    """At one x_t, an x_0 that is d off moves the target by d times the root of the weight."""
    scheduler = HFDDPMScheduler(prediction_type=prediction)
    x_0, noise, d = draw(4, 1, 3, 3), draw(4, 1, 3, 3, seed=1), 0.1
    x_t = scheduler.add_noise(x_0, noise, T)
    off = scheduler.target(x_0 + d, x_t, scheduler.predict_epsilon(x_0 + d, x_t, T), T)
    cost = (off - scheduler.target(x_0, x_t, noise, T)).square().flatten(1).mean(dim=1) / d**2
    weight = scheduler.x_0_error_weight(T)
    assert weight.dtype == torch.float32 and weight.shape == T.shape
    torch.testing.assert_close(weight.double(), cost, rtol=1e-5, atol=1e-12)
    snr = scheduler.alphas_cumprod[T] / (1 - scheduler.alphas_cumprod[T])
    known = {"epsilon": snr, "sample": torch.ones(4).double(), "v_prediction": snr + 1}.get(prediction, cost)
    torch.testing.assert_close(weight.double(), known, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize(("variance_type", "channels"), [("fixed_small", 3), ("learned", 6), ("learned_range", 6)])
def test_the_channels_of_an_output(variance_type, channels):
    assert HFDDPMScheduler(variance_type=variance_type).output_channels(3) == channels

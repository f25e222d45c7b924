"""The noise process against the papers' formulas in float64, exact Gaussian denoisers, and the stock schedulers."""

import math

import diffusers
import pytest
import torch

from hf_ddpm import HFDDPMScheduler
from hf_ddpm.schedulers.transition import ddim_std, log_variance_bounds, mean_coefficients

PREDICTIONS = ["epsilon", "sample", "v_prediction", "mean"]
SPACINGS = ["leading", "trailing", "linspace"]


def images(batch: int = 4, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, 3, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


# --- forward process ---------------------------------------------------------------------------------------------


def test_closed_form_is_the_markov_chain_run_step_by_step():
    """Eq. 4 against eq. 2: mean and variance after t + 1 single steps."""
    scheduler = HFDDPMScheduler(50, beta_schedule="cosine")
    mean, variance = 1.0, 0.0
    for t, beta in enumerate(scheduler.betas.tolist()):
        mean, variance = math.sqrt(1 - beta) * mean, (1 - beta) * variance + beta
        one, zero = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
        assert scheduler.add_noise(one, zero, torch.tensor([t])).item() == pytest.approx(mean, rel=1e-12)
        assert scheduler.add_noise(zero, one, torch.tensor([t])).item() ** 2 == pytest.approx(variance, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_the_schedule_that_stock_corrupts(dtype):
    """Stock casts alpha_bar before 1 - alpha_bar: its first steps add no noise at all."""
    t = torch.arange(1000)
    x_0, noise = torch.zeros(1000, 1, 1, 1, dtype=dtype), torch.ones(1000, 1, 1, 1, dtype=dtype)
    exact = (1 - HFDDPMScheduler().alphas_cumprod).sqrt()
    ours = HFDDPMScheduler().add_noise(x_0, noise, t).double().flatten()
    stock = diffusers.DDPMScheduler().add_noise(x_0, noise, t).double().flatten()
    silent = (stock == 0).nonzero().flatten().tolist()
    assert silent == list(range(10 if dtype == torch.bfloat16 else 2))
    assert ((stock / exact - 1).abs() > 0.05).sum() == (25 if dtype == torch.bfloat16 else 6)
    assert (ours / exact - 1).abs().max() <= torch.finfo(dtype).eps / 2 * 1.01  # one rounding, of the result


def test_float32_coefficients_are_rounded_once():
    t = torch.arange(1000)
    one, zero = torch.ones(1000, 1), torch.zeros(1000, 1)
    exact = HFDDPMScheduler().alphas_cumprod
    assert torch.equal(HFDDPMScheduler().add_noise(one, zero, t).flatten(), exact.sqrt().float())
    assert torch.equal(HFDDPMScheduler().add_noise(zero, one, t).flatten(), (1 - exact).sqrt().float())


def test_add_noise_matches_stock_in_float32():
    x_0, noise, t = images(dtype=torch.float32), images(seed=1, dtype=torch.float32), torch.tensor([0, 10, 500, 999])
    stock = diffusers.DDPMScheduler().add_noise(x_0, noise, t)
    assert torch.allclose(HFDDPMScheduler().add_noise(x_0, noise, t), stock, atol=2e-5)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_every_prediction_gives_back_x_0_and_epsilon(prediction, schedule, prediction_of):
    scheduler = HFDDPMScheduler(beta_schedule=schedule, prediction_type=prediction)
    x_0, noise, t = images(5), images(5, seed=1), torch.tensor([0, 1, 300, 700, 999])
    x_t = scheduler.add_noise(x_0, noise, t)
    back = scheduler.predict_x_0(prediction_of(scheduler, x_0, noise, t), x_t, t)
    assert torch.allclose(back, x_0, atol=1e-9)
    assert torch.allclose(scheduler.predict_epsilon(back, x_t, t)[1:], noise[1:], atol=1e-7)


def test_snr():
    scheduler = HFDDPMScheduler(
        beta_schedule="jsd", num_train_timesteps=4, prediction_type="sample", timestep_spacing="trailing"
    )
    assert torch.allclose(scheduler.snr(torch.tensor([[0, 1], [2, 3]])), torch.tensor([[3.0, 1.0], [1 / 3, 0.0]]))


# --- posterior ---------------------------------------------------------------------------------------------------


def test_posterior_is_bayes_rule():
    """q(x_{t-1} | x_t, x_0) from the product of N(x_t; sqrt(alpha) x_{t-1}, beta) and q(x_{t-1} | x_0)."""
    scheduler = HFDDPMScheduler(20, beta_start=0.01, beta_end=0.3)
    x_0, x_t = 0.7, -0.4
    for t in range(1, 20):
        beta, abar_prev = scheduler.betas[t].item(), scheduler.alphas_cumprod[t - 1].item()
        precision = (1 - beta) / beta + 1 / (1 - abar_prev)
        mean = (math.sqrt(1 - beta) / beta * x_t + math.sqrt(abar_prev) / (1 - abar_prev) * x_0) / precision
        ours = scheduler.posterior_mean(
            torch.tensor([[x_0]], dtype=torch.float64), torch.tensor([[x_t]], dtype=torch.float64), torch.tensor([t])
        )
        assert ours.item() == pytest.approx(mean, rel=1e-12)
        assert scheduler.posterior_variance[t].item() == pytest.approx(1 / precision, rel=1e-12)


def test_posterior_at_the_last_step_is_x_0_and_its_log_variance_is_clipped():
    scheduler = HFDDPMScheduler()
    x_0, x_t = images(1), images(1, seed=1)
    assert torch.allclose(scheduler.posterior_mean(x_0, x_t, torch.tensor([0])), x_0, atol=1e-12)
    assert scheduler.posterior_variance[0] == 0
    assert scheduler.posterior_log_variance[0] == scheduler.posterior_log_variance[1]
    assert scheduler.posterior_log_variance[0].item() == pytest.approx(-9.8, abs=0.1)


def test_posterior_takes_another_t_for_every_sample():
    scheduler, t = HFDDPMScheduler(), torch.tensor([3, 999, 0, 42])
    x_0, x_t = images(), images(seed=1)
    together = scheduler.posterior_mean(x_0, x_t, t)
    alone = torch.cat([scheduler.posterior_mean(x_0[i : i + 1], x_t[i : i + 1], t[i : i + 1]) for i in range(4)])
    assert torch.equal(together, alone)


def test_ddgan_coefficients():
    """The four-step chain of denoising diffusion GANs is this posterior."""
    u = torch.linspace(0, 4, 5, dtype=torch.float64) / 4 * (1 - 1e-3) + 1e-3  # VP, beta_min 0.1, beta_max 20
    alpha_bar = torch.exp(-0.5 * u**2 * (20 - 0.1) - u * 0.1)
    betas = 1 - alpha_bar[1:] / alpha_bar[:-1]
    scheduler = HFDDPMScheduler(4, trained_betas=betas, prediction_type="sample", clip_sample=False)
    assert torch.allclose(scheduler.betas, torch.tensor([0.47826, 0.84921, 0.95642, 0.98740]).double(), atol=1e-5)
    assert torch.allclose(
        scheduler.alphas_cumprod, torch.tensor([0.521745, 0.078676, 0.003429, 4.3e-5]).double(), atol=1e-6
    )
    assert torch.allclose(
        scheduler.posterior_variance, torch.tensor([0, 0.44082, 0.88420, 0.98406]).double(), atol=1e-5
    )
    one, zero = torch.ones(4, 1, dtype=torch.float64), torch.zeros(4, 1, dtype=torch.float64)
    t = torch.arange(4)
    from_x_0 = torch.tensor([1, 0.6658, 0.2692, 0.0578], dtype=torch.float64)
    from_x_t = torch.tensor([0, 0.2016, 0.1930, 0.1119], dtype=torch.float64)
    assert torch.allclose(scheduler.posterior_mean(one, zero, t).flatten(), from_x_0, atol=1e-4)
    assert torch.allclose(scheduler.posterior_mean(zero, one, t).flatten(), from_x_t, atol=1e-4)


# --- reverse step ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_step_is_the_posterior_of_the_clipped_x_0(prediction, prediction_of):
    scheduler = HFDDPMScheduler(prediction_type=prediction)
    x_0, noise, z = images(1) * 2, images(1, seed=1), images(1, seed=2)
    for t in (0, 1, 500, 999):
        x_t = scheduler.add_noise(x_0, noise, torch.tensor([t]))
        out = scheduler.step(prediction_of(scheduler, x_0, noise, torch.tensor([t])), t, x_t, variance_noise=z)
        mean = scheduler.posterior_mean(x_0.clamp(-1, 1), x_t, torch.tensor([t]))
        assert torch.allclose(out.pred_original_sample, x_0.clamp(-1, 1), atol=1e-8)
        assert torch.allclose(out.prev_sample, mean + scheduler.posterior_variance[t].sqrt() * z, atol=1e-8)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"])
def test_fixed_variances(variance):
    scheduler = HFDDPMScheduler(variance_type=variance)
    zero, one = torch.zeros(1, 1, 1, 1, dtype=torch.float64), torch.ones(1, 1, 1, 1, dtype=torch.float64)
    expected = scheduler.betas if "large" in variance else scheduler.posterior_variance
    for t in (1, 2, 600, 999):
        noise_part = scheduler.step(zero, t, zero, variance_noise=one).prev_sample
        assert noise_part.item() ** 2 == pytest.approx(expected[t].item(), rel=1e-10)
    assert scheduler.step(zero, 0, zero, variance_noise=one).prev_sample == 0  # Algorithm 2: z = 0 at the last step


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"])
def test_fixed_log_variance_takes_the_second_posterior_variance_at_the_end(variance):
    """Four betas whose beta-tilde is 0, .44082, .88420, .98406 (denoising diffusion GANs' process)."""
    scheduler = HFDDPMScheduler(4, trained_betas=[0.47826, 0.84921, 0.95642, 0.98740], variance_type=variance)
    t = torch.tensor([3, 0, 1, 2, 0])
    small = torch.tensor([0.44082, 0.44082, 0.88420, 0.98406])
    large = torch.cat([small[:1], scheduler.betas[1:].float()])
    expected = (large if "large" in variance else small)[t]
    got = scheduler.reverse_log_variance(None, torch.zeros(5, 1), t)
    assert torch.allclose(got.exp().squeeze(), expected, atol=1e-4)


@pytest.mark.parametrize(("variance", "word"), [("learned_range", "a"), ("learned", "a"), ("fixed_small", "no")])
def test_a_variance_output_is_for_learned_variances(variance, word):
    output = None if word == "a" else images()
    with pytest.raises(ValueError, match=f"variance_type='{variance}' takes {word} variance_output"):
        HFDDPMScheduler(variance_type=variance).reverse_log_variance(output, images(), 5)


def test_learned_is_a_log_variance_and_learned_range_interpolates():
    """iDDPM eq. 15: v = -1 is beta-tilde, v = 1 is beta, 0 their geometric mean."""
    zero, one = torch.zeros(1, 1, 2, 2, dtype=torch.float64), torch.ones(1, 1, 2, 2, dtype=torch.float64)
    learned, ranged = HFDDPMScheduler(variance_type="learned"), HFDDPMScheduler(variance_type="learned_range")
    for t in (1, 10, 999):
        output = torch.cat([zero, -3 * one], dim=1)
        assert torch.allclose(learned.step(output, t, zero, variance_noise=one).prev_sample, torch.exp(-1.5 * one))
        low, high = ranged.posterior_variance[t].item(), ranged.betas[t].item()
        for v, variance in ((-1, low), (1, high), (0, math.sqrt(low * high))):
            moved = ranged.step(torch.cat([zero, v * one], dim=1), t, zero, variance_noise=one).prev_sample
            assert (moved**2).mean().item() == pytest.approx(variance, rel=1e-9)


def test_learned_range_uses_the_respaced_beta():
    scheduler = HFDDPMScheduler(variance_type="learned_range")
    scheduler.set_timesteps(10)
    zero, one = torch.zeros(1, 1, 1, 1, dtype=torch.float64), torch.ones(1, 1, 1, 1, dtype=torch.float64)
    moved = scheduler.step(torch.cat([zero, one], dim=1), 500, zero, variance_noise=one).prev_sample
    beta = 1 - scheduler.alphas_cumprod[500] / scheduler.alphas_cumprod[400]
    assert moved.item() ** 2 == pytest.approx(beta.item(), rel=1e-9)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("num_steps", [7, 50])
def test_eta_one_is_fixed_small_exactly(spacing, num_steps):
    scheduler = HFDDPMScheduler(timestep_spacing=spacing, beta_schedule="cosine")
    scheduler.set_timesteps(num_steps)
    x, out, z = images(dtype=torch.float32), images(seed=1, dtype=torch.float32), images(seed=2, dtype=torch.float32)
    for t in scheduler.timesteps.tolist():
        ancestral = scheduler.step(out, t, x, variance_noise=z).prev_sample
        assert torch.equal(scheduler.step(out, t, x, eta=1.0, variance_noise=z).prev_sample, ancestral)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_ddim_step_is_equation_12(eta):
    scheduler = HFDDPMScheduler(clip_sample=False)
    scheduler.set_timesteps(timesteps=[900, 450, 20])
    x_0, noise, z = images(1), images(1, seed=1), images(1, seed=2)
    for t, prev in ((900, 450), (450, 20), (20, None)):
        a = scheduler.alphas_cumprod[t]
        a_prev = scheduler.alphas_cumprod[prev] if prev is not None else torch.ones((), dtype=torch.float64)
        sigma = eta * ((1 - a_prev) / (1 - a)).sqrt() * (1 - a / a_prev).sqrt()
        expected = a_prev.sqrt() * x_0 + (1 - a_prev - sigma**2).clamp(min=0).sqrt() * noise + sigma * z
        x_t = scheduler.add_noise(x_0, noise, torch.tensor([t]))
        out = scheduler.step(noise, t, x_t, eta=eta, variance_noise=z)
        assert torch.allclose(out.prev_sample, expected, atol=1e-9)


@pytest.mark.parametrize("use_clipped", [False, True])
def test_ddim_against_stock_with_clipping(use_clipped):
    stock = diffusers.DDIMScheduler()
    ours = HFDDPMScheduler.from_config(stock.config)
    stock.set_timesteps(20)
    ours.set_timesteps(20)
    x, out = 2 * images(dtype=torch.float32), images(seed=1, dtype=torch.float32)
    for t in stock.timesteps:
        expected = stock.step(out, t, x, eta=0.0, use_clipped_model_output=use_clipped).prev_sample
        got = ours.step(out, t, x, eta=0.0, use_clipped_model_output=use_clipped).prev_sample
        assert torch.allclose(got, expected, atol=2e-4), t


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_small_log", "fixed_large", "learned_range"])
@pytest.mark.parametrize("spacing", ["leading", "linspace"])
def test_step_against_stock(prediction, variance, spacing):
    """Same images as DDPMScheduler wherever it is right, noise drawn by the same calls of the generator."""
    stock = diffusers.DDPMScheduler(prediction_type=prediction, variance_type=variance, timestep_spacing=spacing)
    ours = HFDDPMScheduler.from_config(stock.config)
    stock.set_timesteps(10)
    ours.set_timesteps(10)
    x = images(dtype=torch.float32)
    channels = 6 if variance == "learned_range" else 3
    out = torch.randn(4, channels, 8, 8, generator=torch.Generator().manual_seed(1)).clamp(-1, 1)
    mine, theirs = torch.Generator().manual_seed(7), torch.Generator().manual_seed(7)
    for t in stock.timesteps:
        expected = stock.step(out, t, x, generator=theirs).prev_sample
        assert torch.allclose(ours.step(out, t, x, generator=mine).prev_sample, expected, atol=1e-4)
    assert torch.equal(mine.get_state(), theirs.get_state())


def test_exact_denoiser_of_gaussian_data_samples_the_data():
    """For x_0 ~ N(m, s^2), E[eps | x_t] is linear; walking the deterministic chain maps N(0, 1) onto the data."""
    m, s = 0.3, 0.2
    scheduler = HFDDPMScheduler(clip_sample=False, timestep_spacing="trailing", beta_schedule="cosine")
    scheduler.set_timesteps(1000)
    quantiles = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    x = quantiles.clone()
    for t in scheduler.timesteps.tolist():
        a = scheduler.alphas_cumprod[t]
        eps = (1 - a).sqrt() * (x - a.sqrt() * m) / (a * s**2 + 1 - a)
        x = scheduler.step(eps, t, x, eta=0.0).prev_sample
    assert torch.allclose(x, m + s * quantiles, atol=5e-3)


def test_ancestral_sampling_of_gaussian_data_has_the_datas_moments():
    m, s = 0.3, 0.2
    scheduler = HFDDPMScheduler(100, beta_schedule="cosine", clip_sample=False, variance_type="fixed_small")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20_000, 1, generator=generator, dtype=torch.float64)
    for t in scheduler.timesteps.tolist():
        a = scheduler.alphas_cumprod[t]
        eps = (1 - a).sqrt() * (x - a.sqrt() * m) / (a * s**2 + 1 - a)
        x = scheduler.step(eps, t, x, generator=generator).prev_sample
    assert x.mean().item() == pytest.approx(m, abs=4 * s / math.sqrt(20_000))
    # fixed_small omits the data's own variance from the reverse variance: the result is a little too narrow
    assert 0.9 * s < x.std().item() < s * 1.02


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_step_is_the_float32_step_rounded(dtype):
    scheduler = HFDDPMScheduler()
    x, out, z = images(dtype=dtype), images(dtype=dtype, seed=1), images(dtype=dtype, seed=2)
    for t in (0, 5, 500):
        half = scheduler.step(out, t, x, variance_noise=z)
        full = scheduler.step(out.float(), t, x.float(), variance_noise=z.float())
        assert half.prev_sample.dtype == dtype
        assert torch.equal(half.prev_sample, full.prev_sample.to(dtype))


def test_step_takes_another_t_for_every_sample():
    scheduler = HFDDPMScheduler()
    x, out, z = images(), images(seed=1), images(seed=2)
    t = torch.tensor([999, 3, 0, 500])
    together = scheduler.step(out, t, x, variance_noise=z).prev_sample
    alone = [scheduler.step(out[i : i + 1], int(t[i]), x[i : i + 1], variance_noise=z[i : i + 1]) for i in range(4)]
    assert torch.equal(together, torch.cat([one.prev_sample for one in alone]))


def test_dynamic_thresholding_against_stock():
    config = {"thresholding": True, "sample_max_value": 1.5, "prediction_type": "sample"}
    ours, stock = HFDDPMScheduler(**config), diffusers.DDPMScheduler(**config)
    x, out = images(dtype=torch.float32), 3 * images(seed=1, dtype=torch.float32)
    expected = stock.step(out, 0, x).pred_original_sample
    assert torch.allclose(ours.step(out, 0, x).pred_original_sample, expected, atol=1e-6)
    assert expected.abs().max() <= 1


def test_no_clipping():
    scheduler = HFDDPMScheduler(clip_sample=False, prediction_type="sample")
    out = 5 * images()
    assert torch.equal(scheduler.step(out, 0, images()).pred_original_sample, out)


def test_generators_per_sample_fix_each_sample():
    scheduler = HFDDPMScheduler()
    x, out = images(dtype=torch.float32), images(seed=1, dtype=torch.float32)
    four = [torch.Generator().manual_seed(i) for i in range(4)]
    last = torch.Generator().manual_seed(3)
    together = scheduler.step(out, 500, x, generator=four).prev_sample
    alone = scheduler.step(out[3:], 500, x[3:], generator=[last]).prev_sample
    assert torch.equal(together[3:], alone)


def test_transition_between_adjacent_levels_is_the_posterior():
    scheduler = HFDDPMScheduler()
    abar = scheduler.alphas_cumprod
    prev = torch.cat([torch.ones(1, dtype=torch.float64), abar[:-1]])
    from_x_0, from_x_t = mean_coefficients(abar, prev, 1.0)
    assert torch.allclose(from_x_0, prev.sqrt() * scheduler.betas / (1 - abar), rtol=1e-9, atol=1e-15)
    assert torch.allclose(from_x_t, scheduler.alphas.sqrt() * (1 - prev) / (1 - abar), rtol=1e-9, atol=1e-15)
    assert torch.allclose(ddim_std(abar, prev, 1.0) ** 2, scheduler.posterior_variance, rtol=1e-9, atol=1e-18)


def test_log_variance_of_a_single_step_is_finite():
    low, high = log_variance_bounds(torch.tensor([0.1]).double(), torch.tensor([1.0]).double())
    assert torch.equal(low, high)


# --- house rules -------------------------------------------------------------------------------------------------


def test_config_survives_saving(tmp_path):
    scheduler = HFDDPMScheduler(250, beta_schedule="jsd", prediction_type="mean", timestep_spacing="trailing")
    scheduler.save_pretrained(tmp_path)
    loaded = HFDDPMScheduler.from_pretrained(tmp_path)
    saved, read = ({k: v for k, v in s.config.items() if k[0] != "_"} for s in (scheduler, loaded))
    assert read == saved
    assert torch.equal(loaded.betas, scheduler.betas)


@pytest.mark.parametrize(
    "name",
    [
        "DDIMScheduler",
        "DPMSolverMultistepScheduler",
        "UniPCMultistepScheduler",
        "EulerDiscreteScheduler",
        "DDPMScheduler",
    ],
)
def test_stock_solvers_swap_in(name):
    ours = HFDDPMScheduler(beta_schedule="cosine", prediction_type="v_prediction")
    swapped = getattr(diffusers, name).from_config(ours.config)
    assert swapped.config.prediction_type == "v_prediction"
    assert torch.allclose(swapped.alphas_cumprod.double(), ours.alphas_cumprod, atol=1e-5)
    assert name in [cls.__name__ for cls in ours.compatibles]


@pytest.mark.parametrize(
    ("name", "keywords", "key"),
    [
        ("EDMEulerScheduler", {}, "sigma_data=0.5"),
        ("FlowMatchEulerDiscreteScheduler", {}, "shift=1.0"),
        ("ScoreSdeVeScheduler", {}, "sigma_max=1348.0"),
        ("UniPCMultistepScheduler", {"use_flow_sigmas": True}, "use_flow_sigmas=True"),
    ],
)
def test_a_solver_of_another_noise_process_is_refused(name, keywords, key):
    config = getattr(diffusers, name)(**keywords).config
    with pytest.raises(ValueError, match=f"^a config with {key} is that of a solver of another noise process"):
        HFDDPMScheduler.from_config(config)
    HFDDPMScheduler.from_config(diffusers.DDPMScheduler().config)  # which the message names


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"prediction_type": "noise"}, "'epsilon', 'sample', 'v_prediction', 'mean'"),
        ({"variance_type": "fixed"}, "'fixed_small', .* 'learned_range'"),
        ({"timestep_spacing": "quadratic"}, "'leading', 'trailing', 'linspace'"),
        ({"rescale_betas_zero_snr": True}, "'epsilon' is undefined"),
        ({"rescale_betas_zero_snr": True, "prediction_type": "sample"}, "use 'trailing'"),
        (
            {"trained_betas": [0.5, 1.0, 0.5], "num_train_timesteps": 3, "prediction_type": "v_prediction"},
            "alpha_bar is 0 from t = 1 on",
        ),
        ({"clip_sample_range": 0.0}, "clip_sample_range=0.0 must be positive"),
        ({"dynamic_thresholding_ratio": 2.0}, r"\(0, 1\]"),
    ],
)
def test_contradictions_are_refused_at_construction(config, sentence):
    with pytest.raises(ValueError, match=sentence):
        HFDDPMScheduler(**config)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda s: s.step(images(), 1000, images()), "timestep 1000 is not in the list of length 1000"),
        (lambda s: s.step(images(), 5.5, images()), r"timestep 5\.5 must be a whole number"),
        (lambda s: s.posterior_mean(images(), images(), 1000), r"timestep 1000 must be a whole number within 0\.\.999"),
        (lambda s: s.add_noise(images(), images(), -1), "timestep -1 must be a whole number"),
        (lambda s: s.step(images(), 5, images(), eta=1.5), "eta=1.5 must lie in"),
        (lambda s: s.step(torch.zeros(1, 4, 8, 8), 5, torch.zeros(1, 3, 8, 8)), "channels is 4 for model_output and 3"),
        (lambda s: s.add_noise(images(), images(), torch.tensor([1000] * 4)), r"0\.\.999"),
        (lambda s: s.add_noise(images(), images(), torch.tensor([-1])), r"0\.\.999"),
        (lambda s: s.add_noise(images(), images(), torch.tensor([0.5] * 4)), "must be integers"),
        (lambda s: s.add_noise(images(), images(), torch.tensor([1, 2])), "one for each sample of a batch of size 4"),
    ],
)
def test_bad_calls_are_one_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call(HFDDPMScheduler())


def test_a_timestep_outside_the_list_is_refused():
    scheduler = HFDDPMScheduler()
    scheduler.set_timesteps(10)
    for timestep in (5, torch.tensor(5), torch.tensor([0, 5, 0, 0])):
        with pytest.raises(ValueError, match="timestep 5 is not in the list of length 10"):
            scheduler.step(images(), timestep, images())


def test_noise_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"variance_noise of shape \(1, 3, 8, 8\) must have the shape of sample, \(4,"):
        HFDDPMScheduler().step(images(), 5, images(), variance_noise=images(1))


def test_another_list_is_another_step():
    """Tables are kept while the list stays the same, and only then."""
    scheduler, x, out = HFDDPMScheduler(), images(), images(seed=1)
    moved = []
    for num_steps in (10, 50, 10):
        scheduler.set_timesteps(num_steps)
        moved.append(scheduler.step(out, 500, x, eta=0.0).prev_sample)
    assert torch.equal(moved[0], moved[2])
    assert not torch.allclose(moved[0], moved[1], atol=1e-3)


def test_learned_variance_needs_the_second_half():
    """Where DDIM would not read it, too: a variance_type that the network does not have is a mistake."""
    scheduler = HFDDPMScheduler(variance_type="learned")
    for call in (
        lambda: scheduler.step(images(), 5, images()),
        lambda: scheduler.step(images(), 5, images(), eta=0.0),
        lambda: scheduler.step_inverse(images(), 5, images()),
        lambda: scheduler.step_langevin(images(), 5, images()),
        lambda: scheduler.score(images(), images(), 5),
    ):
        with pytest.raises(ValueError, match="variance_type='learned' requires 6: use the one that the network was"):
            call()


# --- where diffusers is wrong --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("spacing", "num_steps"), [("linspace", 10), ("trailing", 30)])
def test_ddim_lands_on_the_level_that_the_list_says_where_stock_misses_it(spacing, num_steps):
    """With the true noise, a step from t must land on sqrt(abar') x_0 + sqrt(1 - abar') eps of the list's next t'."""
    stock = diffusers.DDIMScheduler(timestep_spacing=spacing, clip_sample=False)
    ours = HFDDPMScheduler.from_config(stock.config)
    stock.set_timesteps(num_steps)
    ours.set_timesteps(num_steps)
    x_0, noise = images(1), images(1, seed=1)
    errors = {"ours": 0.0, "stock": 0.0}
    for t, prev in zip(ours.timesteps.tolist(), ours.timesteps.tolist()[1:], strict=False):
        x_t, expected = (ours.add_noise(x_0, noise, torch.tensor([level])) for level in (t, prev))
        for name, scheduler in (("ours", ours), ("stock", stock)):
            error = (scheduler.step(noise, t, x_t, eta=0.0).prev_sample - expected).abs().max().item()
            errors[name] = max(errors[name], error)
    assert errors["ours"] < 1e-9
    assert errors["stock"] > 1e-3


def test_fixed_large_log_is_beta_where_stock_is_nan():
    stock = diffusers.DDPMScheduler(variance_type="fixed_large_log")
    zero = torch.zeros(1, 1, 1, 1)
    assert stock.step(zero, 500, zero, generator=torch.Generator().manual_seed(0)).prev_sample.isnan().all()
    ours = HFDDPMScheduler.from_config(stock.config)
    noise_part = ours.step(zero, 500, zero, variance_noise=zero + 1).prev_sample
    assert noise_part.item() ** 2 == pytest.approx(ours.betas[500].item(), rel=1e-6)


def test_learned_is_a_log_variance_where_stock_takes_its_root():
    """DDPM and iDDPM call the logarithm LEARNED: an output of log(0.04) is noise of 0.2, which stock makes NaN."""
    stock = diffusers.DDPMScheduler(variance_type="learned")
    zero = torch.zeros(1, 1, 1, 1)
    output = torch.cat([zero, zero + math.log(0.04)], dim=1)
    assert stock.step(output, 500, zero, generator=torch.Generator().manual_seed(0)).prev_sample.isnan().all()
    ours = HFDDPMScheduler(variance_type="learned")
    assert ours.step(output, 500, zero, variance_noise=zero + 1).prev_sample.item() == pytest.approx(0.2)


def test_networks_with_variances_walk_ddim_where_stock_breaks():
    zero = torch.zeros(1, 3, 4, 4)
    stock = diffusers.DDIMScheduler()
    stock.set_timesteps(10)
    with pytest.raises(RuntimeError, match="size of tensor"):
        stock.step(torch.zeros(1, 6, 4, 4), 500, zero)
    for variance in ("learned", "learned_range"):
        scheduler = HFDDPMScheduler(variance_type=variance)
        x, both = images(1)[..., :4, :4], torch.cat([images(1)[..., :4, :4], images(1, seed=1)[..., :4, :4]], dim=1)
        for eta in (0.0, 0.5, 1.0):
            z = images(1, seed=2)[..., :4, :4]
            moved = scheduler.step(both, 500, x, eta=eta, variance_noise=z).prev_sample
            fixed = HFDDPMScheduler().step(both[:, :3], 500, x, eta=eta, variance_noise=z).prev_sample
            assert torch.equal(moved, fixed)


# --- upwards -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spacing", ["leading", "trailing", "quadratic"])
def test_step_inverse_undoes_step_for_the_same_epsilon(spacing):
    scheduler = HFDDPMScheduler(clip_sample=False)
    scheduler.set_timesteps(20, timestep_spacing=spacing)
    x, eps = images(2), images(2, seed=1)
    for t in scheduler.timesteps.tolist():
        down = scheduler.step(eps, t, x, eta=0.0).prev_sample
        up = scheduler.step_inverse(eps, scheduler.previous_timestep(t), down).prev_sample
        assert torch.allclose(up, x, atol=1e-9), t


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_step_inverse_follows_the_marginals_of_a_perfect_network(prediction, prediction_of):
    scheduler = HFDDPMScheduler(prediction_type=prediction, beta_schedule="cosine")
    scheduler.set_timesteps(10)
    x_0, noise = images(2).clamp(-1, 1), images(2, seed=1)
    assert scheduler.inverse_timesteps == [-1, *range(0, 900, 100)]
    for t in scheduler.inverse_timesteps[1:]:
        level = torch.tensor([t])
        x_t = scheduler.add_noise(x_0, noise, level)
        out = scheduler.step_inverse(prediction_of(scheduler, x_0, noise, level), t, x_t)
        expected = scheduler.add_noise(x_0, noise, torch.tensor([t + 100]))
        assert torch.allclose(out.prev_sample, expected, atol=1e-6), t
        assert torch.allclose(out.pred_original_sample, x_0, atol=1e-6)


def test_the_first_step_upwards_starts_at_the_image_itself():
    scheduler = HFDDPMScheduler()
    scheduler.set_timesteps(10, timestep_spacing="trailing")
    x_0, noise = images(1), images(1, seed=1)
    out = scheduler.step_inverse(noise, -1, x_0)
    assert torch.allclose(out.prev_sample, scheduler.add_noise(x_0, noise, torch.tensor([99])), atol=1e-9)
    assert torch.equal(out.pred_original_sample, x_0)


def test_inversion_of_gaussian_data_is_the_normalising_flow_and_its_error_falls_with_S():
    """The exact denoiser of N(m, s^2): x_0 = m + s z must be encoded as z, up to Euler's error of order 1 / S."""
    m, s = 0.3, 0.2
    z = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    errors = []
    for num_steps in (50, 100, 200):
        scheduler = HFDDPMScheduler(timestep_spacing="trailing", beta_schedule="cosine")
        scheduler.set_timesteps(num_steps)
        x = m + s * z
        for t in scheduler.inverse_timesteps:
            a = scheduler.alphas_cumprod[max(t, 0)]
            eps = (1 - a).sqrt() * (x - a.sqrt() * m) / (a * s**2 + 1 - a)
            x = scheduler.step_inverse(eps, t, x).prev_sample
        errors.append((x - z).abs().max().item())
    assert errors[0] < 0.4
    assert errors[1] / errors[0] == pytest.approx(0.5, abs=0.15)
    assert errors[2] / errors[1] == pytest.approx(0.5, abs=0.15)


@pytest.mark.parametrize("timestep", [900, 5, -2])
def test_what_is_no_step_upwards(timestep):
    scheduler = HFDDPMScheduler()
    scheduler.set_timesteps(10)
    with pytest.raises(ValueError, match=f"timestep {timestep} has no noisier neighbour .* inverse_timesteps"):
        scheduler.step_inverse(images(), timestep, images())


@pytest.mark.parametrize("made", ["inside", "outside"])
@pytest.mark.parametrize("timesteps", [500, torch.tensor([500, 100])])
def test_what_inference_has_cached_serves_training(made, timesteps):
    """A preview in `inference_mode`, even one that made the scheduler, leaves gradients as they are."""
    x = torch.randn(2, 1, 4, 4)
    with torch.inference_mode(made == "inside"):
        scheduler = HFDDPMScheduler()
    with torch.inference_mode():
        scheduler.step(x, 500, x, generator=torch.Generator())
        scheduler.add_noise(x, x, timesteps)
        scheduler.get_velocity(x, x, timesteps)
    w = x.clone().requires_grad_()
    outputs = [scheduler.step(w, 500, x).prev_sample, scheduler.add_noise(w, x, timesteps)]
    outputs.append(scheduler.get_velocity(w, x, timesteps))
    torch.stack(outputs).sum().backward()
    assert w.grad.isfinite().all()


def test_a_column_of_timesteps_is_one_for_each_sample():
    scheduler, x = HFDDPMScheduler(), torch.randn(2, 1, 4, 4)
    t, noise = torch.tensor([[5], [50]]), torch.randn(2, 1, 4, 4)
    column, row = (scheduler.step(x, one, x, variance_noise=noise).prev_sample for one in (t, t[:, 0]))
    assert torch.equal(column, row)
    with pytest.raises(ValueError, match="either one or one for each sample of a batch of size 2"):
        scheduler.step(x, torch.tensor([[5], [50], [500]]), x)


@pytest.mark.parametrize("timestep", [1.5, torch.tensor([5, 6]), torch.tensor(5.5), None, "5", 10_000])
def test_step_inverse_says_what_is_no_timestep_of_it(timestep):
    scheduler, x = HFDDPMScheduler(), torch.randn(2, 1, 4, 4)
    scheduler.set_timesteps(10)
    with pytest.raises(ValueError, match="timestep"):
        scheduler.step_inverse(x, timestep, x)

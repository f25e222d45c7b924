"""Schedules against closed forms, published values and diffusers' own float32 curves."""

import diffusers
import pytest
import torch

from hf_ddpm import HFDDPMScheduler
from hf_ddpm.schedulers.beta_schedules import make_betas, rescale_zero_terminal_snr


def alpha_bar(name: str, num_steps: int = 1000) -> torch.Tensor:
    return torch.cumprod(1 - make_betas(name, num_steps, 1e-4, 0.02), dim=0)


@pytest.mark.parametrize("name", ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace"])
def test_stock_names_are_stock_curves(name):
    stock = diffusers.DDPMScheduler(beta_schedule=name).betas.double()
    assert torch.allclose(make_betas(name, 1000, 1e-4, 0.02), stock, rtol=2e-4, atol=2e-7)


def test_linear_is_the_papers():
    betas = make_betas("linear", 1000, 1e-4, 0.02)
    assert betas.dtype == torch.float64
    assert (betas[0].item(), betas[-1].item()) == (1e-4, 0.02)
    assert betas[500].item() == pytest.approx(1e-4 + 500 / 999 * (0.02 - 1e-4), rel=1e-14)
    assert alpha_bar("linear")[-1].item() == pytest.approx(4.0358e-5, rel=1e-4)


def test_cosine_is_clipped_at_its_last_beta_only():
    betas = make_betas("cosine", 1000, 1e-4, 0.02)
    assert (betas == 0.999).nonzero().flatten().tolist() == [999]
    assert alpha_bar("cosine")[-1].item() == pytest.approx(2.4e-9, rel=0.02)


@pytest.mark.parametrize("num_steps", [100, 250, 4000])
def test_rescaled_linear_adds_the_same_noise_for_every_T(num_steps):
    total = make_betas("linear", 1000, 1e-4, 0.02).sum().item()
    assert make_betas("linear_rescaled", num_steps, 1e-4, 0.02).sum().item() == pytest.approx(total, rel=1e-12)


def test_unscaled_linear_leaves_signal_at_small_T():
    assert alpha_bar("linear", 100)[-1].item() == pytest.approx(0.36, abs=0.005)
    assert alpha_bar("linear", 250)[-1].item() == pytest.approx(0.08, abs=0.002)


def test_jsd_falls_linearly_to_zero():
    t = torch.arange(10, dtype=torch.float64)
    assert torch.allclose(alpha_bar("jsd", 10), 1 - (t + 1) / 10, atol=1e-15)
    assert alpha_bar("jsd", 10)[-1] == 0


def test_const_is_geometric():
    assert torch.allclose(alpha_bar("const", 5), 0.98 ** torch.arange(1, 6, dtype=torch.float64))


def test_sigmoid_of_alpha_bar_is_symmetric():
    curve = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar("sigmoid_cumprod", 1000)])
    inner = curve[1:-1]  # the last beta is clipped
    assert torch.allclose(inner, 1 - inner.flip(0), atol=1e-12)


def test_the_four_steps_of_the_denoising_gan():
    """What arXiv 2112.07804 computes for T = 4 (beta_min .1, beta_max 20, from t = .001 on)."""
    scheduler = HFDDPMScheduler(4, beta_schedule="vp", prediction_type="sample")
    assert scheduler.betas.tolist() == pytest.approx([0.47826, 0.84921, 0.95642, 0.98740], abs=1e-5)
    assert scheduler.alphas_cumprod.tolist() == pytest.approx([0.521745, 0.078676, 0.003429, 4.3e-5], rel=5e-3)
    assert scheduler.posterior_variance.tolist() == pytest.approx([0, 0.44082, 0.88420, 0.98406], abs=1e-5)


def test_vp_is_the_limit_of_the_linear_schedule_and_ends_at_the_same_noise_whatever_t():
    ends = [float((1 - make_betas("vp", steps, 1e-4, 0.02)).prod()) for steps in (1, 2, 4, 8, 1000)]
    assert ends == pytest.approx([ends[0]] * 5, rel=1e-9)
    long, linear = (torch.cumprod(1 - make_betas(name, 1000, 1e-4, 0.02), dim=0) for name in ("vp", "linear"))
    assert torch.allclose(long, linear, atol=0.01)  # a Riemann sum
    assert make_betas("vp", 1, 1e-4, 0.02).item() > 0.9999  # one step is a GAN: no beta is cut to .999


def test_variances_of_the_geometric_schedule_have_one_ratio_if_the_first_is_multiplied_in_again():
    alpha_bar = torch.cumprod(1 - make_betas("geometric", 4, 1e-4, 0.99), dim=0) * (1 - 1e-4)
    sigma_squared = torch.cat([torch.tensor([1e-4], dtype=torch.float64), 1 - alpha_bar])
    ratios = sigma_squared[1:] / sigma_squared[:-1]
    assert ratios.tolist() == pytest.approx([9900**0.25] * 4, rel=1e-6)


def test_a_geometric_schedule_of_one_variance_is_refused():
    with pytest.raises(ValueError, match=r"beta_start=0.5 must be smaller than beta_end=0.5 for 'geometric'"):
        make_betas("geometric", 4, 0.5, 0.5)


def test_papers_names_are_kept_under_the_stock_ones():
    assert HFDDPMScheduler(beta_schedule="cosine").config.beta_schedule == "squaredcos_cap_v2"
    assert HFDDPMScheduler(beta_schedule="quad").config.beta_schedule == "scaled_linear"


def test_zero_terminal_snr_moves_only_the_end_and_only_once():
    betas = make_betas("linear", 1000, 1e-4, 0.02)
    once = rescale_zero_terminal_snr(betas)
    curve = torch.cumprod(1 - once, dim=0)
    assert curve[-1] == 0
    assert curve[0].item() == pytest.approx(1 - 1e-4, rel=1e-14)
    assert torch.equal(rescale_zero_terminal_snr(once), once)
    stock = diffusers.DDPMScheduler(rescale_betas_zero_snr=True).betas.double()
    assert torch.allclose(once, stock, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", ["linear_rescaled", "sigmoid_cumprod", "const", "jsd", "vp"])
def test_schedules_that_diffusers_lacks_travel_as_betas(name):
    ours = HFDDPMScheduler(250, beta_schedule=name, prediction_type="v_prediction", timestep_spacing="trailing")
    stock = diffusers.DDPMScheduler.from_config(ours.config)
    assert torch.allclose(stock.alphas_cumprod.double(), ours.alphas_cumprod, atol=2e-6)
    assert torch.equal(HFDDPMScheduler.from_config(stock.config).betas, ours.betas)


@pytest.mark.parametrize(
    "curve",
    [
        {"rescale_betas_zero_snr": True},
        {"beta_schedule": "const", "rescale_betas_zero_snr": True},
        {"beta_schedule": "jsd"},
        {"trained_betas": [0.1, 0.2, 0.5, 1.0], "num_train_timesteps": 4},
    ],
    ids=["linear", "const", "jsd", "own"],
)
def test_curves_that_end_at_0_say_so_and_travel_as_betas(curve):
    """A stock class that does not know the flag reads the betas; one that does keeps its arithmetic finite."""
    end = {"prediction_type": "v_prediction", "timestep_spacing": "trailing"}
    ours = HFDDPMScheduler(**curve, **end)
    assert ours.config.rescale_betas_zero_snr
    assert torch.tensor(ours.config.trained_betas, dtype=torch.float64)[-1] == 1
    assert torch.equal(HFDDPMScheduler.from_config(ours.config).betas, ours.betas)
    for name in ("DDPMScheduler", "DDIMScheduler", "PNDMScheduler"):  # the last one does not know the flag
        stock = getattr(diffusers, name).from_config(ours.config)
        assert torch.allclose(stock.alphas_cumprod.double(), ours.alphas_cumprod, atol=2e-6)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"num_train_timesteps": 10.5}, "num_train_timesteps=10.5 must be a whole number of at least 1"),
        ({"beta_schedule": "cosin"}, "'cosine'.*did you mean 'cosine'"),
        ({"num_train_timesteps": 0}, "at least 1"),
        ({"beta_start": 0.03}, "beta_start <= beta_end"),
        ({"trained_betas": [0.1, 0.2]}, r"shape \(2,\).*requires shape \(1000,\)"),
        ({"trained_betas": [0.1, -0.2], "num_train_timesteps": 2}, r"\(0, 1\]"),
        ({"trained_betas": [0.1, 0.2], "num_train_timesteps": 2, "beta_schedule": "const"}, "differ from"),
        ({"num_train_timesteps": 1, "rescale_betas_zero_snr": True}, "at least 2"),
    ],
)
def test_bad_schedules_say_what_is_allowed(config, sentence):
    with pytest.raises(ValueError, match=sentence):
        HFDDPMScheduler(**config)

"""Steps with a score: Algorithms 1 and 2 of ADM (arXiv 2105.05233) against their equations in float64."""

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from diffusers.utils import logging

from hf_ddpm import HFDDPMScheduler
from hf_ddpm.pipelines.guidance import shift_output

SHAPE = (2, 3, 4, 4)


def normal(seed, scale=1.0, shape=SHAPE):
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scheduler_of(**config):
    scheduler = HFDDPMScheduler(num_train_timesteps=50, beta_schedule="cosine", **config)
    scheduler.set_timesteps(10, timestep_spacing="trailing")
    return scheduler


def levels(scheduler, t):
    abar, before = scheduler.alphas_cumprod[t], scheduler.previous_timestep(t)
    return abar, scheduler.alphas_cumprod[before] if before >= 0 else torch.tensor(1.0, dtype=torch.float64)


@pytest.mark.parametrize("i", [2, 9])
@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_small_log", "fixed_large", "learned", "learned_range"])
def test_the_mean_of_algorithm_2_moves_by_the_variance_times_the_score(variance_type, i):
    scheduler = scheduler_of(variance_type=variance_type, clip_sample=False)
    t = int(scheduler.timesteps[i])
    abar, abar_prev = levels(scheduler, t)
    beta = 1 - abar / abar_prev
    small = (1 - abar_prev) / (1 - abar) * beta
    output, x_t, score = normal(1), normal(2), normal(3)
    learned = variance_type.startswith("learned")
    v = normal(4, 0.5) - (5 if variance_type == "learned" else 0)
    share = (v + 1) / 2
    following = levels(scheduler, int(scheduler.timesteps[8]))  # at the last step beta-tilde stands for that before it
    least = small if small > 0 else (1 - following[1]) / (1 - following[0]) * (1 - following[0] / following[1])
    sigma = {
        "fixed_small": small,
        "fixed_small_log": small,
        "fixed_large": beta * (abar_prev < 1),
        "learned": v.exp(),
        "learned_range": (share * beta.log() + (1 - share) * least.log()).exp(),
    }[variance_type]
    output = torch.cat([output, v], dim=1) if learned else output
    still = {"return_dict": False, "variance_noise": torch.zeros(SHAPE, dtype=torch.float64)}
    plain = scheduler.step(output, t, x_t, **still)
    moved = scheduler.step(output, t, x_t, **still, score=score)
    torch.testing.assert_close(moved[0] - plain[0], sigma * score, rtol=1e-9, atol=1e-12)
    assert torch.equal(moved[1], plain[1])


@pytest.mark.parametrize("clip_after_guidance", [True, False])
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("i", [0, 4, 9])
def test_ddim_moves_eps_and_clips_x_0_again_unless_told_otherwise(eta, clip_after_guidance, i):
    scheduler = scheduler_of(clip_after_guidance=clip_after_guidance)
    t = int(scheduler.timesteps[i])
    abar, abar_prev = levels(scheduler, t)
    output, x_t, score, noise = normal(1), normal(2), normal(3), normal(4)
    x_0 = ((x_t - (1 - abar).sqrt() * output) / abar.sqrt()).clamp(-1, 1)
    eps = (x_t - abar.sqrt() * x_0) / (1 - abar).sqrt() - (1 - abar).sqrt() * score  # Algorithm 2
    x_0 = (x_t - (1 - abar).sqrt() * eps) / abar.sqrt()
    x_0 = x_0.clamp(-1, 1) if clip_after_guidance else x_0
    eps = (x_t - abar.sqrt() * x_0) / (1 - abar).sqrt()
    sigma = eta * ((1 - abar_prev) / (1 - abar) * (1 - abar / abar_prev)).sqrt()
    expected = abar_prev.sqrt() * x_0 + (1 - abar_prev - sigma**2).clamp(min=0).sqrt() * eps + sigma * noise
    found = scheduler.step(output, t, x_t, eta=eta, score=score, variance_noise=noise)
    torch.testing.assert_close(found.prev_sample, expected, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(found.pred_original_sample, x_0, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("use_clipped", [True, False])
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_a_shifted_output_is_the_same_as_a_score(prediction_type, use_clipped):
    scheduler = scheduler_of(prediction_type=prediction_type, clip_sample=False)
    t = int(scheduler.timesteps[4])
    output, x_t, score = normal(1), normal(2), normal(3)
    shifted = shift_output(output, score, x_t, float(scheduler.alphas_cumprod[t]), prediction_type)
    how = {"eta": 0.0, "use_clipped_model_output": use_clipped, "return_dict": False}
    for one, two in zip(
        scheduler.step(output, t, x_t, score=score, **how), scheduler.step(shifted, t, x_t, **how), strict=True
    ):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-9)
    up = [
        scheduler.step_inverse(given, t, x_t, False, **more)
        for given, more in ((output, {"score": score}), (shifted, {}))
    ]
    for one, two in zip(*up, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-9)


def test_with_the_networks_own_eps_the_direction_moves_as_x_0_does():
    """DDIM with clipping and eps not re-derived: eps is the network's minus sqrt(1 - alpha_bar) score."""
    scheduler = scheduler_of()
    t = int(scheduler.timesteps[4])
    abar, abar_prev = levels(scheduler, t)
    output, x_t, score = normal(1), normal(2), normal(3)
    x_0 = ((x_t - (1 - abar).sqrt() * output) / abar.sqrt()).clamp(-1, 1) + (1 - abar) / abar.sqrt() * score
    eps = output - (1 - abar).sqrt() * score
    expected = abar_prev.sqrt() * x_0.clamp(-1, 1) + (1 - abar_prev).sqrt() * eps
    found = scheduler.step(output, t, x_t, eta=0.0, score=score, use_clipped_model_output=False).prev_sample
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7)


def test_langevin_adds_the_score_to_its_own():
    scheduler, t = scheduler_of(), 20
    output, x_t, score, noise = (normal(i) for i in range(4))
    plain, guided = (
        scheduler.step_langevin(output, t, x_t, noise=noise, snr=0.1, score=given) for given in (None, score)
    )
    delta = 2 * 0.1**2 * (1 - scheduler.alphas_cumprod[t])
    torch.testing.assert_close(guided - plain, delta * score, rtol=1e-9, atol=1e-12)


def test_pure_noise_is_not_guided():
    scheduler = scheduler_of(prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing")
    t = int(scheduler.timesteps[0])
    assert scheduler.alphas_cumprod[t] == 0
    output, x_t, score = normal(1), normal(2), normal(3)
    for eta in (None, 0.0):
        how = {"eta": eta, "variance_noise": 0 * x_t}
        plain, guided = (scheduler.step(output, t, x_t, score=given, **how).prev_sample for given in (None, score))
        assert torch.equal(plain, guided)
    plain, guided = (scheduler.step_langevin(output, t, x_t, noise=x_t, score=given) for given in (None, score))
    assert torch.equal(plain, guided)
    assert torch.equal(shift_output(output, score, x_t, 0.0, "v_prediction"), output)


def test_the_noisy_end_of_a_cosine_curve_stays_in_range_only_if_x_0_is_clipped_again():
    output, x_t, score = normal(1), normal(2), normal(3, 0.01)
    reached = {}
    for clip in (True, False):
        scheduler = HFDDPMScheduler(beta_schedule="cosine", clip_after_guidance=clip)
        scheduler.set_timesteps(50, timestep_spacing="trailing")
        reached[clip] = scheduler.step(output, 999, x_t, eta=0.0, score=score).pred_original_sample.abs().max()
    assert reached[True] <= 1 and reached[False] > 100


def test_the_key_is_saved_only_where_it_is_false_and_other_schedulers_are_not_told_of_it(tmp_path, caplog):
    logging.enable_propagation()
    for clip in (True, False):
        scheduler = HFDDPMScheduler(clip_after_guidance=clip)
        scheduler.save_pretrained(tmp_path / str(clip))
        text = (tmp_path / str(clip) / "scheduler_config.json").read_text()
        assert ("clip_after_guidance" in text) == (not clip)
        assert HFDDPMScheduler.from_pretrained(tmp_path / str(clip)).config.clip_after_guidance == clip
        assert HFDDPMScheduler.from_config(scheduler.config).config.clip_after_guidance == clip
        other = HFDDPMScheduler.from_config({**scheduler.config, "clip_after_guidance": not clip})
        assert other.config.clip_after_guidance == (not clip)
    with caplog.at_level("WARNING"):
        DPMSolverMultistepScheduler.from_config(HFDDPMScheduler().config)
    assert "clip_after_guidance" not in caplog.text


def test_a_score_of_another_shape_is_refused():
    scheduler = scheduler_of()
    for step in (scheduler.step, scheduler.step_inverse, scheduler.step_langevin):
        with pytest.raises(ValueError, match=r"score of shape \(2, 1, 4, 4\) must have the shape of sample"):
            step(normal(1), int(scheduler.timesteps[4]), normal(2), score=normal(3)[:, :1])


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16, torch.float32])
def test_half_precision_stays_what_it_is_and_near_the_truth(precision):
    scheduler, t = scheduler_of(), 20
    scheduler.set_timesteps(timesteps=[t, 10])
    exact = [normal(i) for i in range(3)]
    output, x_t = (tensor.to(precision) for tensor in exact[:2])
    score, noise = exact[2].float(), 0 * exact[2]  # a score is float32, whatever the images are
    for eta in (None, 0.0):
        found = scheduler.step(output, t, x_t, eta=eta, score=score, variance_noise=noise.to(precision)).prev_sample
        wanted = scheduler.step(exact[0], t, exact[1], eta=eta, score=exact[2], variance_noise=noise).prev_sample
        assert found.dtype == precision
        torch.testing.assert_close(found.double(), wanted, rtol=0.03, atol=0.03)
    assert scheduler.step_inverse(output, 10, x_t, score=score).prev_sample.dtype == precision
    assert scheduler.step_langevin(output, t, x_t, score=score, noise=0 * x_t).dtype == precision

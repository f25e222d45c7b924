"""Classifiers of `transformers`, which see the x_0 that is predicted: their pictures, their gradient, latents."""

import pytest
import torch
from diffusers import AutoencoderKL, UniPCMultistepScheduler
from transformers import EfficientNetImageProcessorPil, ViTConfig, ViTForImageClassification, ViTImageProcessorPil

from hf_ddpm import HFDDPMPipeline, HFDDPMScheduler, unet_preset
from hf_ddpm.pipelines.classifiers import alpha_bar_at, classes_of, knows_noise
from hf_ddpm.pipelines.image_processors import prepared

NAMES = {0: "cat", 1: "dog", 2: "owl"}
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.3, 0.4]
PROCESSOR = ViTImageProcessorPil(size={"height": 16, "width": 16}, image_mean=MEAN, image_std=STD)


@pytest.fixture
def vision():
    """A small classifier of RGB pictures of 16x16."""
    torch.manual_seed(0)
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return ViTForImageClassification(ViTConfig(image_size=16, patch_size=8, **size, id2label=NAMES)).eval()


def noise(channels=1, size=8):
    return torch.randn((2, channels, size, size), generator=torch.Generator().manual_seed(0))


def test_the_gradient_goes_back_through_the_network_that_predicts_x_0(vision, make_pipeline):
    unet, scheduler = make_pipeline().unet, HFDDPMScheduler(clip_sample=False)
    pipeline = HFDDPMPipeline(unet, scheduler, classifier=vision, image_processor=PROCESSOR)
    assert not knows_noise(vision) and classes_of(vision) == (3, NAMES) and pipeline.num_classes == 3
    with torch.no_grad():
        asked = pipeline._guided(["owl", "cat"], 2, classifier_scale=2.0)(noise(), 300, 300)
    x_t = noise().requires_grad_()
    pixels = prepared(scheduler.predict_x_0(unet(x_t, 300).sample, x_t, 300), PROCESSOR)
    log_p = vision(pixel_values=pixels).logits.log_softmax(1)
    (gradient,) = torch.autograd.grad(log_p[0, 2] + log_p[1, 0], x_t)
    torch.testing.assert_close(asked["score"], 2 * gradient)
    assert gradient.abs().max() > 0


def test_it_guides_a_network_with_classes_in_inference_mode(vision, make_pipeline):
    unet, scheduler = make_pipeline(num_class_embeds=3).unet, HFDDPMScheduler(clip_sample=False)
    pipeline = HFDDPMPipeline(unet, scheduler, classifier=vision, image_processor=PROCESSOR)
    call = {"num_inference_steps": 2, "eta": 0.0, "latents": noise(), "class_labels": [1, 2]}
    with torch.inference_mode():
        found = pipeline(2, **call, output_type="pt").images
    torch.testing.assert_close(found.clone(), pipeline(2, **call, output_type="pt").images)


def test_images_that_it_cannot_see_are_refused(vision):
    unet = unet_preset("tiny", in_channels=2, out_channels=2)
    with pytest.raises(ValueError, match="num_channels is 3 for the classifier and 2 for the images"):
        HFDDPMPipeline(unet, HFDDPMScheduler(), classifier=vision, image_processor=PROCESSOR)


def test_every_solver_predicts_the_same_x_0_for_it(vision, make_pipeline):
    unet, scheduler = make_pipeline().unet, HFDDPMScheduler(clip_sample=False, prediction_type="v_prediction")
    pipeline = HFDDPMPipeline(unet, scheduler, classifier=vision, image_processor=PROCESSOR)
    ask = {"class_labels": "dog", "batch_size": 2}
    with torch.no_grad():
        score = pipeline._guided(**ask)(noise(), 300, 300)["score"]
        pipeline.scheduler = UniPCMultistepScheduler.from_config(scheduler.config)
        shifted, plain = (
            pipeline._guided(**ask, **more)(noise(), 300, 300)["model_output"] for more in ({}, {"classifier_scale": 0})
        )
    ratio = (1 / scheduler.alphas_cumprod[300] - 1).sqrt().float()
    torch.testing.assert_close(plain - shifted, ratio * score, rtol=1e-3, atol=1e-6)


def test_latents_are_decoded_for_it(vision):
    torch.manual_seed(0)
    widths = {"block_out_channels": (4, 8), "norm_num_groups": 2, "latent_channels": 2}
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    vae = AutoencoderKL(1, 1, sample_size=16, scaling_factor=1.0, **widths, **kinds).eval()
    unet = unet_preset("tiny", in_channels=2, out_channels=2)
    scheduler = HFDDPMScheduler(clip_sample=False)
    pipeline = HFDDPMPipeline(unet, scheduler, vae=vae, classifier=vision, image_processor=PROCESSOR)
    images = pipeline(2, 3, class_labels=["cat", "owl"], output_type="pt").images
    assert images.shape == (2, 1, 16, 16) and torch.isfinite(images).all()


def test_a_classifier_of_clean_images_needs_its_processor(vision, make_pipeline):
    with pytest.raises(ValueError, match="ViTForImageClassification classifies clean images: pass its"):
        HFDDPMPipeline(make_pipeline().unet, HFDDPMScheduler(), classifier=vision)


def test_an_image_processor_that_has_no_gradient_is_refused(vision, make_pipeline):
    processor = EfficientNetImageProcessorPil(size={"height": 16, "width": 16})
    with pytest.raises(ValueError, match="EfficientNetImageProcessorPil does more than resize, crop and normalize"):
        HFDDPMPipeline(make_pipeline().unet, HFDDPMScheduler(), classifier=vision, image_processor=processor)


def test_alpha_bar_between_two_timesteps_is_what_eulers_solver_interpolates():
    scheduler = HFDDPMScheduler()
    sigma = [(1 / scheduler.alphas_cumprod[t] - 1).sqrt() for t in (7, 8)]
    assert alpha_bar_at(scheduler, 7) == pytest.approx(float(scheduler.alphas_cumprod[7]), rel=1e-12)
    assert alpha_bar_at(scheduler, torch.tensor(7.25)) == pytest.approx(
        float(1 / (1 + (0.75 * sigma[0] + 0.25 * sigma[1]) ** 2)), rel=1e-9
    )

"""Diffusion in the latents of a VAE: one pipeline that encodes, walks and decodes."""

import json

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny

from hf_ddpm import HFVAE, HFDDPMPipeline, HFDDPMScheduler
from hf_ddpm.pipelines.image_space import decode_latents, encode_images, encode_moments, latent_mask

CONV = {"network": "conv", "block_out_channels": (8, 8), "latent_channels": 2, "likelihood": "gaussian_fixed"}


def make_vae(kind="HFVAE", scale=0.7):
    torch.manual_seed(0)
    if kind == "HFVAE":
        return HFVAE(sample_size=16, scaling_factor=scale, **CONV).eval()
    if kind == "AutoencoderKL":
        widths = {"block_out_channels": (8, 8), "norm_num_groups": 8, "layers_per_block": 1}
        kinds = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
        return AutoencoderKL(1, 1, latent_channels=2, sample_size=16, scaling_factor=scale, **widths, **kinds).eval()
    widths = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
    blocks = {"num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1)}
    return AutoencoderTiny(1, 1, latent_channels=2, scaling_factor=scale, **widths, **blocks).eval()


@pytest.fixture
def latent_pipeline(make_pipeline):
    def make(kind="HFVAE", scale=0.7, **scheduler):
        inner = make_pipeline({"clip_sample": False} | scheduler, sample_size=8, in_channels=2, out_channels=2)
        pipeline = HFDDPMPipeline(inner.unet, inner.scheduler, vae=make_vae(kind, scale))
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    return make


def seeded(*seeds):
    return [torch.Generator().manual_seed(s) for s in seeds]


KINDS = ["HFVAE", "AutoencoderKL", "AutoencoderTiny"]


def test_guidance_in_latents_is_guidance_of_the_walk(make_pipeline, make_classifier, tmp_path):
    """Of classes, of a classifier of latents and of both: the decoded walk of the same networks without a VAE."""
    sizes = {"sample_size": 8, "in_channels": 2, "out_channels": 2, "num_class_embeds": 4}
    inner = make_pipeline({"clip_sample": False}, **sizes)
    of_pixels, of_latents = (
        make_classifier(in_channels=2, latents=latents) for latents in (None, {"class": "HFVAE", "scaling_factor": 0.7})
    )
    plain = HFDDPMPipeline(inner.unet, inner.scheduler, null_class=3, classifier=of_pixels)
    latent = HFDDPMPipeline(inner.unet, inner.scheduler, vae=make_vae(), null_class=3, classifier=of_latents)
    for pipeline in (plain, latent):
        pipeline.set_progress_bar_config(disable=True)
    found = []
    for free, by_classifier in ((1.0, 0.0), (40.0, 0.0), (1.0, 10.0), (40.0, 10.0)):
        call = {"num_inference_steps": 4, "eta": 0.0, "class_labels": [0, 1, 2]}
        call |= {"guidance_scale": free, "classifier_scale": by_classifier, "generator": seeded(1, 2, 3)}
        walked = []
        plain(3, **call, callback_on_step_end=lambda *a, walked=walked: walked.append(a[3]["latents"]))
        with torch.no_grad():
            decoded = latent.vae.decode(walked[-1] / 0.7).sample
        images = latent(3, **call | {"generator": seeded(1, 2, 3)}, output_type="pt").images
        torch.testing.assert_close(images, (decoded / 2 + 0.5).clamp(0, 1))
        found.append(images)
    differences = [(a - b).abs().max() for i, a in enumerate(found) for b in found[:i]]
    assert min(differences) > 1e-3
    latent.save_pretrained(tmp_path)
    opened = HFDDPMPipeline.from_pretrained(tmp_path)
    assert torch.equal(opened(3, **call | {"generator": seeded(1, 2, 3)}, output_type="pt").images, found[-1])


@pytest.mark.parametrize("kind", KINDS)
def test_the_walk_ends_in_the_decoder(kind, latent_pipeline):
    """Its images are those that the UNet's own pipeline draws in latents, unscaled and decoded."""
    pipeline = latent_pipeline(kind)
    images = pipeline(3, 4, eta=0.0, generator=seeded(1, 2, 3), output_type="pt").images
    assert images.shape == (3, 1, 16, 16)
    walked = []
    pipeline(3, 4, eta=0.0, generator=seeded(1, 2, 3), callback_on_step_end=lambda *a: walked.append(a[3]["latents"]))
    with torch.no_grad():
        decoded = pipeline.vae.decode(walked[-1] / 0.7).sample
    torch.testing.assert_close(images, (decoded / 2 + 0.5).clamp(0, 1))
    assert (pipeline.image_channels, pipeline.image_size) == (1, (16, 16))


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_it_draws_the_same(kind, latent_pipeline, tmp_path):
    pipeline = latent_pipeline(kind)
    pipeline.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["vae"] == ["diffusers", kind] and index["_class_name"] == "HFDDPMPipeline"
    loaded = HFDDPMPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    one, two = (p(2, 3, generator=seeded(5, 6), output_type="pt").images for p in (pipeline, loaded))
    assert torch.equal(one, two)


def test_plain_diffusers_opens_it_by_its_code_files(latent_pipeline, tmp_path, run_python):
    pipeline = latent_pipeline()
    pipeline.save_pretrained(tmp_path / "saved")
    images = pipeline(2, 3, generator=seeded(5, 6), output_type="pt").images
    torch.save(images, tmp_path / "images.pt")
    run_python(
        "import torch\n"
        "from diffusers import DiffusionPipeline\n"
        "p = DiffusionPipeline.from_pretrained('saved', custom_pipeline='saved', trust_remote_code=True)\n"
        "g = [torch.Generator().manual_seed(s) for s in (5, 6)]\n"
        "assert torch.equal(p(2, 3, generator=g, output_type='pt').images, torch.load('images.pt'))\n",
        without_hf_ddpm=True,
    )


def test_without_a_vae_the_index_has_none(make_pipeline, tmp_path):
    make_pipeline().save_pretrained(tmp_path)
    assert "vae" not in json.loads((tmp_path / "model_index.json").read_text())
    assert HFDDPMPipeline.from_pretrained(tmp_path).vae is None


def test_editing_goes_through_the_encoder(latent_pipeline):
    pipeline = latent_pipeline(timestep_spacing="trailing")
    x = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        known = pipeline.vae.decode(encode_images(pipeline.vae, x) / 0.7).sample
        expected = (known / 2 + 0.5).clamp(0, 1)
    varied = pipeline.vary(x, 0, generator=torch.Generator().manual_seed(0), num_inference_steps=1000, output_type="pt")
    assert varied.images.shape == x.shape
    assert pipeline.invert(x, 5).shape == (2, 2, 8, 8)
    mixes = pipeline.interpolate(x[:1], x[1:], [0.0, 1.0], 0, output_type="pt", num_inference_steps=1000)
    assert all((mix - want).abs().max() < 0.2 for mix, want in zip(mixes, expected.split(1), strict=True))


def test_inpainting_keeps_the_pixels_it_is_told_to_keep(latent_pipeline):
    pipeline = latent_pipeline()
    x = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., :5] = 1
    painted = pipeline.inpaint(x, mask, 5, num_resamples=1, output_type="pt").images
    torch.testing.assert_close(painted[..., 5:], (x / 2 + 0.5)[..., 5:])
    assert (painted - (x / 2 + 0.5))[..., :5].abs().mean() > 0.01


def test_the_mask_of_latents_covers_that_of_pixels():
    mask = torch.zeros(1, 1, 4, 4)
    mask[0, 0, 0, 1] = 1
    assert latent_mask(mask, torch.zeros(2, 3, 2, 2)).tolist() == [[[[1, 0], [0, 0]]] * 3] * 2


def test_mistakes_are_one_sentence(latent_pipeline, make_pipeline):
    with pytest.raises(ValueError, match=r"no scaling_factor.*measure_scaling_factor"):
        latent_pipeline(scale=None)
    inner = make_pipeline({}, sample_size=8)
    with pytest.raises(ValueError, match="the vae has latent_channels=2, but the network has in_channels=1"):
        HFDDPMPipeline(inner.unet, HFDDPMScheduler(), vae=make_vae())
    flat = HFVAE(sample_size=16, latent_channels=1, scaling_factor=1.0)
    with pytest.raises(ValueError, match="the vae is an MLP, whose latents have no height and width"):
        HFDDPMPipeline(inner.unet, HFDDPMScheduler(), vae=flat)
    with pytest.raises(ValueError, match=r"images of size \(32, 32\) have latents of size \(16, 16\)"):
        latent_pipeline().invert(torch.zeros(1, 1, 32, 32), 3)


FRAMES = [
    {"shift_factor": 0.0609},
    {"latents_mean": [0.3, -0.2], "latents_std": [2.0, 0.5]},
    {"latents_mean": [0.3, -0.2]},
    {"latents_std": [2.0, 0.5]},
]


@pytest.mark.parametrize("frame", FRAMES)
def test_keys_of_a_foreign_vae_that_move_its_latents_are_used(frame, latent_pipeline):
    """As Stable Diffusion 3 and Playground v2.5 use them: (z - mean) / std * scale, and back."""
    pipeline = latent_pipeline("AutoencoderKL", scale=1.5305)
    vae, x = pipeline.vae, torch.rand(2, 1, 16, 16) * 2 - 1
    with torch.no_grad():
        z = vae.encode(x).latent_dist.mean
        vae.register_to_config(**frame)
        mean = torch.tensor(frame.get("latents_mean", [0.0, 0.0])) + frame.get("shift_factor", 0.0)
        std = torch.tensor(frame.get("latents_std", [1.0, 1.0]))
        wanted = (z - mean.view(-1, 1, 1)) / std.view(-1, 1, 1) * 1.5305
        found = encode_images(vae, x)
        torch.testing.assert_close(found, wanted)
        torch.testing.assert_close(decode_latents(vae, found), vae.decode(z).sample, rtol=1e-4, atol=1e-5)
        variance = encode_moments(vae, x).chunk(2, dim=1)[1]
        assert (variance > 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_from_pipe_keeps_every_part(kind, latent_pipeline, make_classifier):
    pipeline = latent_pipeline(kind)
    again = HFDDPMPipeline.from_pipe(pipeline)
    assert again.components.keys() == pipeline.components.keys()
    assert all(getattr(again, name) is part for name, part in pipeline.components.items())
    images = [p(2, 3, generator=seeded(0, 1), output_type="pt").images for p in (pipeline, again)]
    assert torch.equal(*images)
    other = HFDDPMScheduler(beta_schedule="squaredcos_cap_v2", clip_sample=False)
    assert HFDDPMPipeline.from_pipe(pipeline, scheduler=other).scheduler is other
    double = pipeline.to(torch.float64)
    assert HFDDPMPipeline.from_pipe(double).unet.dtype == torch.float64


def test_slices_change_no_number_and_tiles_are_refused():
    vae, x = make_vae(), torch.rand(3, 1, 16, 16) * 2 - 1
    with torch.no_grad():
        whole = vae.decode(vae.encode(x).latent_dist.mean).sample
        vae.enable_slicing()
        torch.testing.assert_close(vae.decode(vae.encode(x).latent_dist.mean).sample, whole, rtol=1e-5, atol=1e-6)
    vae.disable_slicing()
    with pytest.raises(ValueError, match="tiling would change the images of an HFVAE"):
        vae.enable_tiling()


@pytest.mark.parametrize("network", ["conv", "mlp"])
def test_gradient_checkpointing_of_a_vae_is_the_same_gradient(network):
    vae, x = make_vae() if network == "conv" else HFVAE(sample_size=16), torch.rand(2, 1, 16, 16) * 2 - 1
    vae.train()
    gradients = []
    for checkpointed in (False, True):
        if checkpointed:
            vae.enable_gradient_checkpointing()
        vae.zero_grad()
        vae(x).sample.square().mean().backward()
        gradients.append({name: weight.grad.clone() for name, weight in vae.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)

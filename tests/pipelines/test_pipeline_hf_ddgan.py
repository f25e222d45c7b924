"""`HFDDGANPipeline`: its steps, per-image generators, its doors, and what it says of wrong input."""

import re

import pytest
import torch
from diffusers import DDPMScheduler, DiffusionPipeline

from hf_ddpm import HFDDGANPipeline, HFDDPMPipeline, HFDDPMScheduler, unet_preset
from hf_ddpm.checkpoint import load_checkpoint
from hf_ddpm.models import discriminator_preset, generator_preset
from hf_ddpm.sampling import image_generator, sample_gan

NAMES = {0: "zero", 1: "one", 2: "two"}


def make(num_steps=4, classes=3, with_discriminator=True, **config):
    torch.manual_seed(0)
    generator = generator_preset("tiny", num_classes=classes)
    judge = discriminator_preset("tiny", num_classes=classes) if with_discriminator else None
    keywords = {"prediction_type": "sample", "clip_sample": False} | config
    scheduler = HFDDPMScheduler(num_steps, beta_schedule="vp", **keywords)
    pipeline = HFDDGANPipeline(generator, scheduler, judge, NAMES if classes else None)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def pipeline():
    return make()


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("num_steps", [1, 2, 4, 8])
def test_a_walk_is_the_posterior_of_what_the_generator_says(num_steps):
    pipeline = make(num_steps, classes=None)
    found = pipeline(3, generator=seeded(), output_type="pt").images
    generator, x_t = seeded(), None
    with torch.no_grad():
        x_t = torch.randn(3, 1, 8, 8, generator=generator)
        for t in reversed(range(num_steps)):
            z = torch.randn(3, 4, generator=generator)
            x_0 = pipeline.generator(x_t, t, z).sample
            noise = torch.randn(3, 1, 8, 8, generator=generator) if t else torch.zeros(3, 1, 8, 8)
            x_t = pipeline.scheduler.sample_posterior(x_0, x_t, noise, t)
    torch.testing.assert_close(found, (x_t / 2 + 0.5).clamp(0, 1), atol=2e-6, rtol=0)
    assert found.std() > 0.02


def test_an_image_is_fixed_by_its_own_generator(pipeline):
    alone = [pipeline(1, generator=[seeded(i)], class_labels=1, output_type="pt").images[0] for i in range(3)]
    together = pipeline(3, generator=[seeded(i) for i in range(3)], class_labels=[1, 1, 1], output_type="pt").images
    torch.testing.assert_close(together, torch.stack(alone), atol=1e-5, rtol=0)
    a, b = (next(sample_gan(pipeline, [i], seed=3)) for i in (0, 1))
    both = list(sample_gan(pipeline, [0, 1], seed=3))
    assert [image.tobytes() for image in both] == [a.tobytes(), b.tobytes()]
    again = pipeline(1, generator=[image_generator(3, 1)], class_labels=1).images[0]
    assert again.tobytes() == b.tobytes()


def test_classes_are_named_or_numbered_and_latents_may_be_given(pipeline):
    call = {"output_type": "pt", "latents": torch.randn(2, 1, 8, 8, generator=seeded(5))}
    by_name, by_number, other = (
        pipeline(2, generator=seeded(), class_labels=labels, **call).images for labels in (["two", "one"], [2, 1], 0)
    )
    assert torch.equal(by_name, by_number) and not torch.allclose(by_name, other)
    assert pipeline.num_classes == 3 and pipeline.image_size == (8, 8) and pipeline.noise_shape == (1, 8, 8)


def test_truncated_images_of_a_class_differ_less():
    """In one step nothing but z is drawn of x_T."""
    once = make(1)
    x_T = torch.randn(1, 1, 8, 8, generator=seeded(5)).expand(64, -1, -1, -1)
    calls = {"class_labels": 0, "latents": x_T, "output_type": "pt"}
    spread = [once(64, generator=seeded(1), truncation=psi, **calls).images.std(0).mean() for psi in (1.0, 0.5, 0)]
    assert spread[0] > 1.2 * spread[1] > 1e3 * spread[2]


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        ({"num_inference_steps": 2}, "num_inference_steps=2 must be 4, the number of steps in training, or be omitted"),
        ({"class_labels": None}, "this network was trained with 3 classes: pass class_labels"),
        ({"class_labels": 3}, "class_labels 3..3 must lie within 0..2, the network's classes"),
        ({"class_labels": "tow"}, "class_labels='tow' is not the name of a class; did you mean 'two'?"),
        ({"truncation": 1.5}, "truncation=1.5 must be a number from 0 to 1"),
        ({"latents": torch.zeros(1, 1, 8, 8)}, "latents of shape (1, 1, 8, 8) must be a tensor of shape (2, 1, 8, 8)"),
        ({"generator": [seeded()]}, "a list of 1 generator(s) does not fit batch_size=2"),
        ({"output_type": "jpg"}, "output_type='jpg' must be one of 'pil', 'np', 'pt'"),
    ],
)
def test_wrong_input_is_one_sentence(call, sentence, pipeline):
    with pytest.raises(ValueError, match="^" + re.escape(sentence)):
        pipeline(2, **{"class_labels": 1} | call)


@pytest.mark.parametrize("method", ["invert", "reconstruct", "vary", "interpolate", "inpaint", "score"])
def test_what_has_no_way_back_is_refused_in_a_sentence(method, pipeline):
    with pytest.raises(ValueError, match=r"an image cannot be inverted to its noise.*use an HFDDPMPipeline"):
        getattr(pipeline, method)(torch.zeros(1, 1, 8, 8))


def test_parts_that_do_not_fit_are_refused():
    pipeline = make()
    with pytest.raises(ValueError, match="generator of type UNet2DModel must be a DDGANGenerator"):
        HFDDGANPipeline(unet_preset("tiny"), pipeline.scheduler)
    with pytest.raises(ValueError, match="DDPMScheduler must be the HFDDPMScheduler that the generator was trained"):
        HFDDGANPipeline(pipeline.generator, DDPMScheduler(4, prediction_type="sample"))
    with pytest.raises(ValueError, match="prediction_type='epsilon' must be 'sample' in the scheduler's config"):
        HFDDGANPipeline(pipeline.generator, HFDDPMScheduler(4))
    with pytest.raises(ValueError, match="variance_type='fixed_large' must be 'fixed_small' in the scheduler's config"):
        make(variance_type="fixed_large")
    with pytest.raises(ValueError, match="id2label has a name for 3: use one for each class from 0 to 2"):
        HFDDGANPipeline(pipeline.generator, pipeline.scheduler, id2label={3: "three"})
    with pytest.raises(ValueError, match="discriminator of type DDGANGenerator must be a DDGANDiscriminator, or None"):
        HFDDGANPipeline(pipeline.generator, pipeline.scheduler, pipeline.generator)
    with pytest.raises(ValueError, match="the discriminator's num_classes=None must be 3, as the generator's is"):
        HFDDGANPipeline(pipeline.generator, pipeline.scheduler, make(classes=None).discriminator)


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        (DDPMScheduler(4), "scheduler of type DDPMScheduler must be the HFDDPMScheduler"),
        (
            HFDDPMScheduler(4, beta_schedule="vp"),
            "prediction_type='epsilon' must be 'sample' in the scheduler's config",
        ),
        (None, "scheduler of type NoneType must be"),
    ],
)
def test_a_scheduler_that_is_assigned_is_checked_by_the_call(other, sentence, pipeline):
    pipeline.scheduler = other
    with pytest.raises(ValueError, match=sentence):
        pipeline(2, class_labels=1)


def test_a_callback_sees_each_step_and_ends_the_walk(pipeline):
    seen = []

    def callback(pipe, i, t, given):
        seen.append((i, int(t), tuple(given["latents"].shape)))
        pipe._interrupt = i == 1

    for _ in range(2):  # an interrupted call leaves nothing behind
        pipeline(2, class_labels=1, callback_on_step_end=callback)
    assert seen == 2 * [(0, 3, (2, 1, 8, 8)), (1, 2, (2, 1, 8, 8))]
    given = pipeline(
        1, class_labels=1, callback_on_step_end=lambda *_: {"latents": torch.ones(1, 1, 8, 8)}, output_type="pt"
    )
    assert torch.equal(given.images, torch.ones(1, 1, 8, 8))


def test_another_pipeline_of_its_parts_has_the_discriminator_too(pipeline):
    assert HFDDGANPipeline.from_pipe(pipeline).discriminator is pipeline.discriminator


# --- doors -----------------------------------------------------------------------------------------------------------

DRAWN = "pipe(2, generator=torch.Generator().manual_seed(4), class_labels=['two', 'one'], output_type='pt').images"


@pytest.mark.parametrize("with_discriminator", [True, False])
def test_saved_and_opened_it_draws_the_same(with_discriminator, tmp_path):
    pipe = make(with_discriminator=with_discriminator)
    pipe.save_pretrained(tmp_path)
    wanted = eval(DRAWN)
    for pipe in (HFDDGANPipeline.from_pretrained(tmp_path), load_checkpoint(str(tmp_path))):
        assert type(pipe) is HFDDGANPipeline and (pipe.discriminator is not None) == with_discriminator
        assert torch.equal(eval(DRAWN), wanted)


def test_the_third_door_needs_no_hf_ddpm(pipeline, run_python, tmp_path):
    folder = str(tmp_path / "saved")
    pipeline.save_pretrained(folder)
    opened = f"DiffusionPipeline.from_pretrained({folder!r}, custom_pipeline={folder!r}, trust_remote_code=True)"
    code = (
        f"import torch\nfrom diffusers import DiffusionPipeline\npipe = {opened}\nprint({DRAWN}.double().sum().item())"
    )
    said = run_python(code, without_hf_ddpm=True).stdout.splitlines()[-1]
    assert float(said) == pytest.approx(eval(DRAWN, {"pipe": pipeline, "torch": torch}).double().sum().item(), abs=1e-6)


def test_the_generator_alone_is_enough(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    alone = HFDDGANPipeline.from_pretrained(tmp_path, discriminator=None)
    assert alone.discriminator is None
    one, other = (eval(DRAWN, {"pipe": pipe, "torch": torch}) for pipe in (pipeline, alone))
    assert torch.equal(one, other)


def test_plain_diffusers_fails_loudly(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    with pytest.raises((AttributeError, ValueError, OSError)):
        DiffusionPipeline.from_pretrained(tmp_path)


def test_pipelines_of_another_kind_name_the_one_that_opens_it(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"HFDDGANPipeline.*load it with HFDDGANPipeline\.from_pretrained"):
        HFDDPMPipeline.from_pretrained(tmp_path)

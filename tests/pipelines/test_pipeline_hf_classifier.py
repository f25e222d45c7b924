"""`HFClassifierPipeline`: probabilities of noisy images, its doors, and what it says of wrong input."""

import re

import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from hf_ddpm import HFClassifierPipeline, HFDDPMPipeline, HFVAEPipeline, classifier_preset
from hf_ddpm.checkpoint import load_checkpoint

SCHEDULE = {"num_train_timesteps": 20, "beta_schedule": "cosine"}
NAMES = {i: f"digit {i}" for i in range(10)}


@pytest.fixture
def pipeline():
    torch.manual_seed(0)
    classifier = classifier_preset("tiny", noise_schedule=SCHEDULE, id2label=NAMES)
    for weight in classifier.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return HFClassifierPipeline(classifier)


def pixels(count=3):
    return torch.randint(256, (count, 1, 8, 8), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def test_probabilities_are_the_softmax_of_the_logits(pipeline):
    found = pipeline(pixels(), torch.tensor([0, 3, 19]))
    x = pixels().float() / 127.5 - 1
    logits = pipeline.classifier.eval()(x, torch.tensor([0, 3, 19])).logits
    torch.testing.assert_close(found.probabilities, logits.exp() / logits.exp().sum(1, keepdim=True))
    assert torch.allclose(found.probabilities.sum(1), torch.ones(3))
    assert found.probabilities.dtype == torch.float32 and not found.probabilities.requires_grad
    assert found.names == [*NAMES.values()] == pipeline(pixels(), return_dict=False)[1]


def test_pictures_pixels_and_floats_are_the_same_images(pipeline):
    pictures = [Image.fromarray(image[0].numpy()) for image in pixels()]
    expected = pipeline(pixels(), 4).probabilities
    for same in (pictures, pixels() / 127.5 - 1, (pixels() / 127.5 - 1).double()):
        torch.testing.assert_close(pipeline(same, 4).probabilities, expected)
    torch.testing.assert_close(pipeline(pictures[0], 4).probabilities, expected[:1])


def test_noise_may_leave_the_range_of_images(pipeline):
    x_t = 3 * torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(pipeline(x_t, 19).probabilities, pipeline.classifier.eval()(x_t, 19).logits.softmax(1))


def test_half_precision_gives_probabilities_in_float32(pipeline):
    expected = pipeline(pixels()).probabilities
    found = pipeline.to(torch.bfloat16)(pixels()).probabilities
    assert found.dtype == torch.float32 and torch.allclose(found, expected, atol=0.1)


@pytest.mark.parametrize(
    ("images", "timestep", "sentence"),
    [
        (pixels(), 20, "timestep=20 must lie in 0 .. 19; 0 is the least noise"),
        (pixels(), -1, "timestep=-1 must lie in 0 .. 19"),
        (pixels(), 1.0, "timestep=1.0 must be a whole number, or a tensor with one for each image"),
        (pixels(), True, "timestep=True must be a whole number"),
        (pixels(), [1, 2, 3], "timestep=[1, 2, 3] must be a whole number, or a tensor"),
        (pixels(), torch.ones(3), "timestep=tensor([1., 1., 1.]) must be a whole number"),
        (pixels(), torch.tensor([1, 2]), "timesteps of shape (2,) do not fit 3 image(s): pass one, or one for each"),
        (pixels().repeat(1, 3, 1, 1), 0, "images of shape (3, 3, 8, 8) must have shape (B, 1, 8, 8)"),
        (torch.zeros(3, 1, 8, 9), 0, "images of shape (3, 1, 8, 9) must have shape (B, 1, 8, 8)"),
        (torch.full((1, 1, 8, 8), torch.nan), 0, "the images have values that are not finite"),
        (Image.new("RGB", (8, 8)), 0, "an image in mode RGB does not fit a network with 1 channels"),
        ("cat.png", 0, "images of type str are not supported"),
    ],
)
def test_wrong_input_is_one_sentence(images, timestep, sentence, pipeline):
    with pytest.raises(ValueError, match="^" + re.escape(sentence)):
        pipeline(images, timestep)


def test_only_a_classifier_goes_in(make_pipeline):
    with pytest.raises(ValueError, match="classifier of type UNet2DModel must be a NoisyClassifier"):
        HFClassifierPipeline(make_pipeline().unet)


# --- doors -----------------------------------------------------------------------------------------------------------

SHOWN = """
import torch
x = torch.linspace(-1, 1, 64).view(1, 1, 8, 8)
print([round(p, 6) for p in pipe(x, 3).probabilities[0].tolist()], pipe(x).names[0])
"""


def test_saved_and_opened_it_says_the_same(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    expected = pipeline(pixels(), 3).probabilities
    for opened in (HFClassifierPipeline.from_pretrained(tmp_path), load_checkpoint(str(tmp_path))):
        assert type(opened) is HFClassifierPipeline
        assert torch.equal(opened(pixels(), 3).probabilities, expected)


def test_the_third_door_needs_no_hf_ddpm(pipeline, run_python, tmp_path):
    folder = str(tmp_path / "saved")
    pipeline.save_pretrained(folder)
    opened = f"DiffusionPipeline.from_pretrained({folder!r}, custom_pipeline={folder!r}, trust_remote_code=True)"
    code = f"from diffusers import DiffusionPipeline\npipe = {opened}\n{SHOWN}"
    said = run_python(code, without_hf_ddpm=True).stdout.splitlines()[-1]
    x = torch.linspace(-1, 1, 64).view(1, 1, 8, 8)
    assert said == f"{[round(p, 6) for p in pipeline(x, 3).probabilities[0].tolist()]} digit 0"


def test_plain_diffusers_fails_loudly(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    with pytest.raises((AttributeError, ValueError, OSError)):
        DiffusionPipeline.from_pretrained(tmp_path)


def test_pipelines_of_another_kind_name_the_one_that_opens_it(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    for kind, needs in ((HFDDPMPipeline, "unet or scheduler"), (HFVAEPipeline, "vae")):
        sentence = f"has no {needs} for {kind.__name__}: load it with HFClassifierPipeline.from_pretrained"
        with pytest.raises(ValueError, match=sentence):
            kind.from_pretrained(tmp_path)

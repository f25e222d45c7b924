"""A pipeline saved with its classifier: opened, replaced and left out, by doors 1 and 3, guided alike."""

import json

import pytest
import torch
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

from hf_ddpm import HFDDPMPipeline
from hf_ddpm.cli import main
from hf_ddpm.pipelines import HFClassifierPipeline

INDEX, CONFIG = "model_index.json", "classifier/config.json"
WEIGHTS = "classifier/diffusion_pytorch_model.safetensors"
SCHEDULE = {"num_train_timesteps": 100, "beta_schedule": "cosine"}
CALL = {"num_inference_steps": 5, "class_labels": [0, 2], "output_type": "pt"}


def draw(pipeline, **more):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(2, generator=torch.Generator().manual_seed(5), **CALL | more).images


@pytest.fixture
def pipeline(make_pipeline, make_classifier):
    own, names = make_pipeline(SCHEDULE), {0: "dark", 1: "grey", 2: "bright"}
    return HFDDPMPipeline(own.unet, own.scheduler, classifier=make_classifier(SCHEDULE, id2label=names))


@pytest.fixture
def folder(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def rewritten(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def refusal(folder, kind=HFDDPMPipeline, **kwargs):
    with pytest.raises((ValueError, OSError)) as caught:
        kind.from_pretrained(folder, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_saved_and_opened_it_guides_as_before(pipeline, folder, run_python, tmp_path):
    """Door 1 and, without hf_ddpm, door 3; the gradient counts in the images. Door 2 is shut."""
    images = draw(pipeline)
    assert (images - draw(pipeline, classifier_scale=0.0)).abs().max() > 0.01
    index = json.loads((folder / INDEX).read_text())
    assert index["classifier"] == ["diffusers", "NoisyClassifier"] and index["_class_name"] == "HFDDPMPipeline"
    opened = HFDDPMPipeline.from_pretrained(folder)
    assert torch.equal(draw(opened), images)
    assert (opened.num_classes, opened.class_signature.id2label[2]) == (3, "bright")
    torch.save(images, tmp_path / "images.pt")
    run_python(
        "import torch\n"
        "from diffusers import DiffusionPipeline\n"
        "p = DiffusionPipeline.from_pretrained('saved', custom_pipeline='saved', trust_remote_code=True)\n"
        "call = {'num_inference_steps': 5, 'class_labels': ['dark', 'bright'], 'output_type': 'pt'}\n"
        "found = p(2, generator=torch.Generator().manual_seed(5), **call).images\n"
        "assert (found - torch.load('images.pt')).abs().max() < 1e-4\n"
        "try:\n"
        "    DiffusionPipeline.from_pretrained('saved')\n"
        "except Exception as error:\n"
        "    print(error)\n"
        "else:\n"
        "    raise AssertionError('door 2 is open')\n",
        without_hf_ddpm=True,
    )


def test_another_takes_its_place_or_none(pipeline, folder, make_classifier):
    other = make_classifier(SCHEDULE, seed=1)
    replaced = HFDDPMPipeline.from_pretrained(folder, classifier=other)
    assert replaced.classifier is other
    assert not torch.equal(draw(replaced), draw(pipeline))
    (folder / WEIGHTS).unlink()  # which is not read then
    without = HFDDPMPipeline.from_pretrained(folder, classifier=None)
    assert without.classifier is None and without.num_classes is None
    assert torch.equal(draw(without, class_labels=None), draw(pipeline, classifier_scale=0.0))
    assert "the classifier was trained with another noise schedule" in refusal(
        folder, classifier=make_classifier({"num_train_timesteps": 100})
    )


def test_the_classifier_alone_opens_from_it(pipeline, folder):
    x_t = torch.randn((2, 1, 8, 8), generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    one, two = HFClassifierPipeline.from_pretrained(folder), HFClassifierPipeline(pipeline.classifier)
    assert torch.equal(one(x_t, 40).probabilities, two(x_t, 40).probabilities)


def test_a_checkpoint_without_one_takes_one(make_pipeline, pipeline, tmp_path):
    make_pipeline(SCHEDULE).save_pretrained(tmp_path)
    opened = HFDDPMPipeline.from_pretrained(tmp_path, classifier=pipeline.classifier)
    assert torch.equal(draw(opened), draw(pipeline))


def test_the_command_is_guided_by_it_unless_told_otherwise(pipeline, folder, make_pipeline, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_pipeline(SCHEDULE).save_pretrained("without")

    def sampled(checkpoint, *words):
        call = ["-n", "3", "--steps", "5", "--eta", "0", "--device", "cpu", "--out", "out.png"]
        main(["sample", str(checkpoint), *call, *words])
        return Image.open("out.png").tobytes()

    guided, unguided = sampled(folder), sampled("without")
    assert guided != unguided
    assert sampled(folder, "--classifier-scale", "1") == guided == sampled("without", "--classifier", "saved")
    assert sampled(folder, "--classifier-scale", "0") == unguided
    assert sampled(folder, "--class", "grey") != guided


@pytest.mark.parametrize(
    ("place", "values", "said"),
    [
        (INDEX, {"classifier": None}, "model_index.json does not contain 'classifier': restore it from another copy"),
        (
            INDEX,
            {"classifier": ["os", "system"]},
            "has classifier=['os', 'system'], which must be one of NoisyClassifier",
        ),
        (
            INDEX,
            {"classifier": ["diffusers", "UNet2DModel"]},
            "must be one of NoisyClassifier: no other class is imported",
        ),
        (CONFIG, {"num_classes": 10**9}, "classifier/config.json has num_classes=1000000000, which must be from 1"),
        (CONFIG, {"pool": "none"}, "pool='none'"),
        (CONFIG, {"id2label": {"0": 7}}, "has id2label={'0': 7}, which must be an object of names"),
        (
            CONFIG,
            {"noise_schedule": {"num_train_timesteps": 10**12}},
            "noise_schedule, has num_train_timesteps=1000000",
        ),
        (CONFIG, {"noise_schedule": {"num_train_timesteps": 50}}, "was trained with another noise schedule"),
        (CONFIG, {"block_out_channels": [8, 16]}, "expected shape torch.Size([16])"),
    ],
)
def test_a_damaged_one_is_a_sentence(place, values, said, folder):
    rewritten(folder / place, **values)
    assert said in refusal(folder)


def test_a_classifier_without_files_is_a_sentence(folder):
    weights = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(weights[: len(weights) // 2])
    assert "is truncated or damaged" in refusal(folder)
    (folder / WEIGHTS).unlink()
    assert refusal(folder) == f"{folder}/{WEIGHTS} is missing: restore it from another copy"
    (folder / CONFIG).unlink()
    assert refusal(folder) == f"{folder}/{CONFIG} is missing: restore it from another copy"


@pytest.fixture
def of_transformers():
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    vit = ViTForImageClassification(ViTConfig(**sizes, image_size=8, patch_size=4, num_labels=3)).eval()
    return {"classifier": vit, "image_processor": ViTImageProcessorPil(size={"height": 8, "width": 8})}


def test_one_of_transformers_is_saved_and_wants_to_be_given(pipeline, of_transformers, run_python, tmp_path):
    """By door 1; the code files of door 3 open it as diffusers does."""
    guided = HFDDPMPipeline(pipeline.unet, pipeline.scheduler, **of_transformers)
    guided.save_pretrained(tmp_path / "saved")
    assert refusal(tmp_path / "saved").endswith(
        "which must be one of NoisyClassifier: no other class is imported for a checkpoint; load a "
        "class of your own first, and pass it as from_pretrained(..., classifier=...)"
    )
    images = draw(guided)
    assert torch.equal(draw(HFDDPMPipeline.from_pretrained(tmp_path / "saved", **of_transformers)), images)
    noisy = HFDDPMPipeline.from_pretrained(tmp_path / "saved", classifier=pipeline.classifier)
    assert torch.equal(draw(noisy), draw(pipeline)) and noisy.image_processor is None
    assert "pass its image_processor too" in refusal(tmp_path / "saved", classifier=of_transformers["classifier"])
    assert HFDDPMPipeline.from_pretrained(tmp_path / "saved", classifier=None).num_classes is None
    torch.save(images, tmp_path / "images.pt")
    run_python(
        "import torch\n"
        "from diffusers import DiffusionPipeline\n"
        "p = DiffusionPipeline.from_pretrained('saved', custom_pipeline='saved', trust_remote_code=True)\n"
        "call = {'num_inference_steps': 5, 'class_labels': [0, 2], 'output_type': 'pt'}\n"
        "found = p(2, generator=torch.Generator().manual_seed(5), **call).images\n"
        "assert (found - torch.load('images.pt')).abs().max() < 1e-4\n",
        without_hf_ddpm=True,
    )


def test_one_of_transformers_takes_the_place_of_a_noisy_one(pipeline, folder, of_transformers):
    opened = HFDDPMPipeline.from_pretrained(folder, **of_transformers)
    guided = HFDDPMPipeline(pipeline.unet, pipeline.scheduler, **of_transformers)
    assert torch.equal(draw(opened), draw(guided))

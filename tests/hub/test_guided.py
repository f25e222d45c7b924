"""A model and its classifier pushed as one checkpoint, with what training left of the model, and pulled again."""

import json

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image

from hf_ddpm import HFDDPMPipeline
from hf_ddpm.checkpoint import save_checkpoint
from hf_ddpm.cli import main
from hf_ddpm.pipelines import HFClassifierPipeline

RAW = "unet/diffusion_pytorch_model.raw.safetensors"
NAMES = {0: "dark", 1: "grey", 2: "bright"}


@pytest.fixture
def classifier(make_classifier, tmp_path):
    """Of a folder, as training leaves it."""
    pipeline = HFClassifierPipeline(make_classifier(id2label=NAMES))
    save_checkpoint(pipeline, tmp_path / "classifier", {"family": "classifier", "name": "judge"}, None)
    return tmp_path / "classifier"


@pytest.fixture
def checkpoint(make_pipeline, tmp_path):
    """Of a model without classes, which plain diffusers draws from too."""
    pipeline, folder = make_pipeline(), tmp_path / "checkpoint"
    facts = {"name": "moons", "steps": 1200, "stock": True, "sampling": {"num_inference_steps": 3, "eta": 0.0}}
    raw = {name: weight + 1 for name, weight in pipeline.unet.state_dict().items()}
    save_checkpoint(pipeline, folder, facts, Image.new("L", (8, 8)), raw=raw)
    return folder


def draw(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    call = {"num_inference_steps": 3, "class_labels": ["dark", "bright"], "output_type": "pt"}
    return pipeline(2, generator=torch.Generator().manual_seed(5), **call).images


def test_the_command_joins_them_and_keeps_what_training_left(hub, checkpoint, classifier, capsys):
    main(["push", str(checkpoint), "ada/moons", "--classifier", str(classifier), "--tag", "v1"])
    assert capsys.readouterr().out.endswith(f"pushed: {hub.url}/ada/moons\n")
    files = hub.files("ada/moons", "v1")
    assert {"classifier/config.json", "classifier/diffusion_pytorch_model.safetensors", "samples.png", RAW} <= {*files}
    assert json.loads(files["training.json"])["steps"] == 1200
    card = files["README.md"].decode()
    assert "# moons" in card and "| optimizer steps | 1,200," in card
    assert "DDPMPipeline.from_pretrained" not in card.replace("HFDDPMPipeline", "")  # which would not guide
    assert "a NoisyClassifier (classes: 3)" in card and "| 2 | bright |" in card
    assert not [name for name, content in files.items() if str(checkpoint.parent).encode() in content]

    pulled = HFDDPMPipeline.from_pretrained("ada/moons")
    assert hub.requests("GET", r"resolve.*\.py") == []
    its = HFClassifierPipeline.from_pretrained(classifier).classifier
    joined = HFDDPMPipeline.from_pretrained(checkpoint, classifier=its)
    assert torch.equal(draw(pulled), draw(joined))


def test_the_snippets_of_its_card_run(hub, checkpoint, classifier):
    main(["push", str(checkpoint), "ada/moons", "--classifier", str(classifier)])
    content = ModelCard(hub.files("ada/moons")["README.md"].decode()).content
    first, _, guidance = [block.partition("```")[0] for block in content.split("```python\n")[1:]]
    assert "class_labels=0" in first and "classifier_scale=2.0" in guidance
    scope = {}
    exec(first + "plain = images\n" + guidance, scope)
    assert len(scope["images"]) == 16 and scope["images"] != scope["plain"]


@pytest.mark.parametrize("label_dropout", [0.1, 0.0])
def test_the_card_of_a_model_trained_without_labels_too_shows_the_scale(label_dropout, make_pipeline, tmp_path):
    own = make_pipeline(num_class_embeds=4)
    recipe = {"data": {"label_column": "auto"}, "objective": {"label_dropout": label_dropout}}
    classes = {"null_class": 3, "id2label": None}
    facts = {"recipe": recipe, "classes": classes, "sampling": {"num_inference_steps": 2, "eta": 0.0}}
    pipeline = HFDDPMPipeline(own.unet, own.scheduler, null_class=3)
    save_checkpoint(pipeline, tmp_path / "checkpoint", facts, Image.new("L", (8, 8)))
    card = (tmp_path / "checkpoint" / "README.md").read_text()
    assert ("## Guidance" in card) == (label_dropout > 0) and "classifier_scale" not in card
    if label_dropout:
        blocks = [block.partition("```")[0] for block in card.split("```python\n")[1:]]
        assert "guidance_scale=1.5" in blocks[-1]
        scope = {"checkpoint": tmp_path / "checkpoint"}
        exec(blocks[0] + blocks[-1], scope)
        assert len(scope["images"]) == 16


def test_a_pipeline_that_lost_its_classifier_or_has_another_is_pushed_as_it_is(
    hub, checkpoint, classifier, make_classifier
):
    main(["push", str(checkpoint), "ada/moons", "--classifier", str(classifier)])
    folder = checkpoint.parent / "pulled"
    for name, content in hub.files("ada/moons").items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    HFDDPMPipeline.from_pretrained(folder, classifier=make_classifier(seed=1, num_classes=5)).push_to_hub("ada/other")
    files = hub.files("ada/other")
    assert json.loads(files["classifier/config.json"])["num_classes"] == 5
    assert b"a NoisyClassifier (classes: 5)" in files["README.md"] and {"samples.png", RAW} <= {*files}
    HFDDPMPipeline.from_pretrained(folder, classifier=None).push_to_hub("ada/moons")
    files = hub.files("ada/moons")
    assert not [name for name in files if name.startswith("classifier/")]
    assert b"NoisyClassifier" not in files["README.md"] and b"| optimizer steps | 1,200," in files["README.md"]
    assert b"The content of an image cannot be chosen." in files["README.md"]
    assert HFDDPMPipeline.from_pretrained("ada/moons").classifier is None


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("{checkpoint}", "contains a diffusion model without a classifier"),
        ("{large}", "the classifier has the sample size (16, 16), but the network has (8, 8)"),
        ("./nowhere", "--classifier: there is no checkpoint folder at './nowhere'"),
        ("{vit}", "a classifier of transformers cannot be part of a checkpoint: set pipeline.classifier and"),
    ],
)
def test_what_cannot_be_joined_is_one_sentence(source, sentence, hub, checkpoint, make_classifier, tmp_path):
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

    make_classifier(sample_size=16).save_pretrained(tmp_path / "large")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    ViTForImageClassification(ViTConfig(**sizes, image_size=8, patch_size=4)).save_pretrained(tmp_path / "vit")
    ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(tmp_path / "vit")
    places = {"checkpoint": checkpoint, "large": tmp_path / "large", "vit": tmp_path / "vit"}
    with pytest.raises(SystemExit) as stop:
        main(["push", str(checkpoint), "ada/moons", "--classifier", source.format(**places)])
    assert sentence in str(stop.value.code) and "\n" not in str(stop.value.code)
    assert not hub.repos()

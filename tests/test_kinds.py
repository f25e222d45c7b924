"""The table of kinds: it is complete, one entry is found for every model, and a kind without pictures needs no more."""

import argparse
import inspect
import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image

from hf_ddpm import HFVAE, HFClassifierPipeline, HFDDPMPipeline, HFVAEPipeline, classifier_preset
from hf_ddpm.checkpoint import load_checkpoint, load_pipeline, save_checkpoint
from hf_ddpm.cli import main
from hf_ddpm.commands.kind_options import KindCommand, add_kind_options, commands_of_kinds, option, settle
from hf_ddpm.errors import UserError
from hf_ddpm.hub import push_checkpoint
from hf_ddpm.kinds import KINDS, Kind, family_of, kind_of, kind_of_index, kind_of_run, resolve
from hf_ddpm.model_card import render_card
from hf_ddpm.pipelines.opening import components_of
from hf_ddpm.training.family import family_class

ROOT = Path(__file__).parent.parent


STEPS = option("--steps", default=4, type=int)
SAMPLE = KindCommand(lambda options, pipeline: {}, (STEPS, option("--strength", default=1.0, type=float)))
OF_EVALUATE = {"options", "accelerator"}
FACTS = {"name": "digits", "metrics": [{"name": "accuracy", "type": "accuracy", "value": 0.987, "how": "test"}]}


@pytest.fixture
def classifier():
    """Of a kind without pictures."""
    torch.manual_seed(0)
    return HFClassifierPipeline(classifier_preset("tiny"))


@pytest.fixture
def vae_pipeline():
    torch.manual_seed(0)
    return HFVAEPipeline(HFVAE(sample_size=8, latent_channels=3, hidden_sizes=(8,)).eval())


def refused(*words):
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    assert "\n" not in str(stop.value.code)
    return str(stop.value.code)


# --- the table ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", KINDS)
def test_every_name_of_an_entry_is_there(key):
    kind = KINDS[key]
    pipeline = resolve(kind.pipeline)
    assert pipeline.__name__ == kind.pipeline_name
    assert set(kind.components) == set(pipeline._get_signature_keys(pipeline)[0])
    assert set(components_of(pipeline)) <= set(kind.components)
    assert {"pipeline", "sample", "measure", "blocks"} <= set(dir(resolve(kind.family)))
    assert (ROOT / "src" / "hf_ddpm" / kind.card).is_file()
    assert {"recipe", "family", "accelerator"} == set(inspect.signature(resolve(kind.evaluator)).parameters)
    if kind.draw is None:  # of a kind without pictures
        assert kind.sample is None and set(inspect.signature(resolve(kind.evaluate)).parameters) == OF_EVALUATE
        return
    assert {"pipeline", "indices", "seed", "batch_size"} <= set(inspect.signature(resolve(kind.draw)).parameters)
    assert isinstance(resolve(kind.sample), KindCommand)
    assert kind.likelihood is None or isinstance(resolve(kind.likelihood), KindCommand)


def test_a_kind_is_what_a_recipe_calls_its_family():
    assert [family_class({"family": key}) for key in KINDS] == [resolve(kind.family) for kind in KINDS.values()]
    assert len({kind.pipeline for kind in KINDS.values()}) == len(KINDS)


def test_a_model_is_found_by_its_class_its_index_and_its_run(make_pipeline, vae_pipeline, tmp_path):
    class Derived(HFVAEPipeline):
        """A user's own."""

    for pipeline, key in ((make_pipeline(), "diffusion"), (vae_pipeline, "vae"), (Derived(vae_pipeline.vae), "vae")):
        assert kind_of(pipeline) is KINDS[key]
    for pipeline, key in ((make_pipeline(), "diffusion"), (vae_pipeline, "vae")):
        pipeline.save_pretrained(tmp_path / key)
        assert kind_of_index(json.loads((tmp_path / key / "model_index.json").read_text())) is KINDS[key]
        assert kind_of(load_checkpoint(str(tmp_path / key))) is KINDS[key]
    for owner in ("DDPMPipeline", "LDMPipeline", ["HFVAEPipeline"], None):
        assert kind_of_index({"_class_name": owner}) is KINDS["diffusion"]  # whose checks refuse what is none


def test_runs_of_before_say_it_by_their_blocks():
    assert kind_of_run({"family": "vae"}) is kind_of_run({"recipe": {"family": "vae"}}) is KINDS["vae"]
    assert kind_of_run({"recipe": {"data": {}, "vae": {}}}) is KINDS["vae"]
    assert kind_of_run({}) is kind_of_run({"recipe": None}) is kind_of_run({"recipe": {"model": {}}})
    assert kind_of_run({}) is KINDS["diffusion"]
    assert family_of({"family": "diffusion", "vae": {}}) == "diffusion"


def test_the_kind_of_a_card_goes_before_its_facts():
    assert "HFVAEPipeline" in render_card({"recipe": {"model": {}}}, KINDS["vae"])
    assert "HFVAEPipeline" in render_card({"family": "vae"})
    assert "HFDDPMPipeline" in render_card({"family": "vae"}, KINDS["diffusion"])
    without_facts = render_card({}, KINDS["classifier"], pictured=False)
    assert (
        "HFClassifierPipeline" in without_facts
        and "| noise schedule | not measured, T = not measured |" in without_facts
    )


# --- what a pipeline says of itself, which a page in a Space reads --------------------------------------------------


def test_an_image_starts_from_the_noise_that_its_pipeline_names(make_pipeline, vae_pipeline):
    for pipeline, walk in ((make_pipeline(), {"num_inference_steps": 2}), (vae_pipeline, {})):
        noise = torch.randn(1, *pipeline.noise_shape, generator=torch.Generator().manual_seed(5))
        drawn = pipeline(1, generator=torch.Generator().manual_seed(5), output_type="pt", **walk).images
        generator = torch.Generator().manual_seed(5)
        torch.randn(1, *pipeline.noise_shape, generator=generator)  # the walk goes on from there
        again = pipeline(1, latents=noise, generator=generator, output_type="pt", **walk).images
        assert torch.equal(drawn, again)
        assert drawn.shape[1] == pipeline.image_channels
        seen = []
        pipeline.noise_network.register_forward_pre_hook(lambda _network, given, seen=seen: seen.append(given[0]))
        pipeline(1, latents=noise, **walk)
        assert torch.equal(seen[0].flatten(), noise.flatten())


def test_classes_and_sizes_are_those_of_the_network(make_pipeline, vae_pipeline):
    assert make_pipeline().num_classes is vae_pipeline.num_classes is None
    assert make_pipeline(num_class_embeds=3).num_classes == 3
    assert make_pipeline(sample_size=(8, 16)).noise_shape == (1, 8, 16)
    assert make_pipeline(sample_size=None).noise_shape is None


def test_a_space_without_hf_ddpm_reads_it_off_the_code_files(make_pipeline, vae_pipeline, run_python, tmp_path):
    said = "print(p.noise_shape, p.num_classes, p.image_channels, next(p.noise_network.parameters()).dtype)"
    for name, pipeline in (("ddpm", make_pipeline(num_class_embeds=3)), ("vae", vae_pipeline)):
        folder = str(tmp_path / name)
        pipeline.save_pretrained(folder)
        door_3 = f"DiffusionPipeline.from_pretrained({folder!r}, custom_pipeline={folder!r}, trust_remote_code=True)"
        code = f"from diffusers import DiffusionPipeline\np = {door_3}\n{said}"
        expected = f"{pipeline.noise_shape} {pipeline.num_classes} 1 torch.float32"
        assert run_python(code, without_hf_ddpm=True).stdout.splitlines()[-1] == expected


# --- options of one kind --------------------------------------------------------------------------------------------


def test_an_option_of_two_kinds_is_declared_once_and_taken_by_both(monkeypatch):
    gan = Kind(**{**vars(KINDS["classifier"]), "word": "GAN", "sample": f"{__name__}:SAMPLE"})
    monkeypatch.setitem(KINDS, "gan", gan)
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint")
    add_kind_options(parser, "sample")
    options = parser.parse_args(["x", "--steps", "3"])
    assert settle(options, gan, "sample") is SAMPLE
    assert (options.steps, options.strength, options.eta) == (3, 1.0, None)
    settle(parser.parse_args(["x", "--steps", "3"]), KINDS["diffusion"], "sample")
    with pytest.raises(
        UserError, match="--strength is not supported for 'x', which contains a diffusion model: leave the option"
    ):
        settle(parser.parse_args(["x", "--strength", "2"]), KINDS["diffusion"], "sample")
    with pytest.raises(UserError, match=r"--eta 0\.0 is only for diffusion models, and .* contains a GAN"):
        settle(parser.parse_args(["x", "--eta", "0"]), gan, "sample")


@pytest.mark.parametrize("command", ["sample", "likelihood"])
def test_every_option_of_a_kind_is_refused_by_the_other(command):
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint")
    add_kind_options(parser, command)
    of_kinds = commands_of_kinds(command)
    for key, other in (("diffusion", "vae"), ("vae", "diffusion")):
        for one in of_kinds[key].options:
            options = parser.parse_args(["x"])
            setattr(options, one.name, 1)
            with pytest.raises(UserError, match=rf"^{one.flag}\b"):
                settle(options, KINDS[other], command)
            assert settle(options, KINDS[key], command) is of_kinds[key]
            assert getattr(options, one.name) == 1


# --- a kind without pictures ----------------------------------------------------------------------------------------


def test_a_kind_without_pictures_is_saved_opened_and_pushed(classifier, hub, tmp_path):
    folder = tmp_path / "checkpoint"
    raw = {name: weight + 1 for name, weight in classifier.classifier.state_dict().items()}
    save_checkpoint(classifier, folder, FACTS, None, raw=raw)
    assert not (folder / "samples.png").exists()
    images = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = classifier(images).probabilities
    assert torch.equal(load_checkpoint(str(folder))(images).probabilities, expected)
    opened = load_checkpoint(str(folder), variant="raw")
    assert type(opened) is HFClassifierPipeline
    assert all(torch.equal(opened.classifier.state_dict()[name], weight) for name, weight in raw.items())
    push_checkpoint(str(folder), "ada/digits")
    files = hub.files("ada/digits")
    assert {"model_index.json", "training.json", "classifier/diffusion_pytorch_model.safetensors"} <= set(files)
    assert "samples.png" not in files
    for card in ((folder / "README.md").read_text(), files["README.md"].decode()):
        assert "samples.png" not in card
        assert "| accuracy | 0.987 | test |" in card
        data = ModelCard(card).data
        assert (data.pipeline_tag, data.tags) == ("image-classification", ["diffusers", "noisy-classifier", "hf_ddpm"])
        (result,) = data.eval_results
        assert (result.task_type, result.metric_value) == ("image-classification", 0.987)
    there = load_checkpoint("ada/digits")
    assert torch.equal(there(images).probabilities, expected)
    assert "contains a noisy classifier: draw is only supported for diffusion models and VAEs" in refused(
        "space", "ada/digits"
    )


def test_a_push_of_another_kind_leaves_nothing_of_the_one_before(classifier, vae_pipeline, hub, tmp_path):
    save_checkpoint(vae_pipeline, tmp_path / "vae", {"name": "vae"}, Image.new("L", (8, 8)))
    push_checkpoint(str(tmp_path / "vae"), "ada/model")
    assert {"samples.png", "vae/config.json"} <= set(hub.files("ada/model"))
    save_checkpoint(classifier, tmp_path / "classifier", FACTS, None)
    push_checkpoint(str(tmp_path / "classifier"), "ada/model")
    files = set(hub.files("ada/model"))
    assert "classifier/config.json" in files and not {"samples.png", "vae/config.json"} & files


def test_a_checkpoint_that_had_a_picture_is_replaced_by_one_without(vae_pipeline, tmp_path):
    for samples in (Image.new("L", (8, 8)), None):
        save_checkpoint(vae_pipeline, tmp_path / "c", {"name": "one"}, samples)
        assert (tmp_path / "c" / "samples.png").exists() == (samples is not None)
        assert ("samples.png" in (tmp_path / "c" / "README.md").read_text()) == (samples is not None)


def test_commands_that_need_images_say_that_there_are_none(classifier, tmp_path):
    folder = tmp_path / "checkpoint"
    save_checkpoint(classifier, folder, FACTS, None)
    out = ("--out", tmp_path / "out.png")
    assert "contains a noisy classifier: sample is only supported for diffusion models and VAEs" in refused(
        "sample", folder, *out
    )
    measured = refused("likelihood", folder, "--data", "digits", "--device", "cpu", "--out", tmp_path / "x.json")
    assert "contains a noisy classifier: likelihood is only supported for diffusion models and VAEs" in measured
    assert "contains a noisy classifier: pass a diffusion model" in refused("figure", "progressive", folder, *out)
    picture = tmp_path / "picture.png"
    Image.new("L", (8, 8)).save(picture)
    assert "contains a noisy classifier: pass a" in refused("edit", "reconstruct", folder, picture, *out)
    with pytest.raises(UserError, match="contains a noisy classifier"):
        load_pipeline(str(folder))
    with pytest.raises(ValueError, match="has no vae for HFVAEPipeline"):
        HFVAEPipeline.from_pretrained(folder)
    assert not (tmp_path / "out.png").exists()


def test_what_is_no_pipeline_of_ours_is_opened_as_a_diffusion_model(classifier, make_pipeline, tmp_path):
    """A third kind in the table changes nothing of the others."""
    make_pipeline().save_pretrained(tmp_path / "stock")  # whose index names DDPMPipeline
    assert type(load_pipeline(str(tmp_path / "stock"))) is HFDDPMPipeline

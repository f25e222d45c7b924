"""The card says what training measured, all of it and nothing else."""

import json
import re

import pytest
import yaml
from huggingface_hub import ModelCard

from hf_ddpm.data import ImageData
from hf_ddpm.model_card import render_card

FACTS = {
    "name": "three-tens",
    "recipe": {
        "data": {"source": "digits", "image_size": 28, "channels": 1},
        "model": {"preset": "mnist"},
        "scheduler": {"beta_schedule": "cosine", "prediction_type": "v_prediction", "num_train_timesteps": 1000},
        "objective": {},
        "optimization": {"lr": 2e-3, "betas": (0.9, 0.99)},
        "training": {"total_steps": 2400, "batch_size": 32, "seed": 7},
    },
    "data": ImageData(label_column="auto").facts.to_dict(),
    "num_images": 5000,
    "weights": 686769,
    "steps": 2400,
    "images_seen": 76800,
    "seconds": 3701.4,
    "last_loss": 0.03412,
    "device": "2 CPU cores (x86_64)",
    "processes": 3,
    "mixed_precision": "bf16",
    "date": "2026-11-21",
    "torch": "2.13.0",
    "sampling": {"num_inference_steps": 50, "eta": 0.25},
    "metrics": [{"name": "feature distance", "value": 48.7, "how": "1,000 samples"}],
    "stock": True,
}


def changed(dotted, value):
    facts = json.loads(json.dumps(FACTS))
    *path, last = dotted.split(".")
    inner = facts
    for key in path:
        inner = inner[key]
    inner[last] = value
    return facts


@pytest.mark.parametrize("facts", [{}, FACTS], ids=["no facts", "all facts"])
def test_the_hub_reads_the_header(facts):
    data = ModelCard(render_card(facts)).data
    assert data.library_name == "diffusers"
    assert data.license == ("apache-2.0" if facts else None)
    assert data.pipeline_tag == "unconditional-image-generation"
    assert {"ddpm", "hf_ddpm"} <= set(data.tags)


def test_a_licence_is_said_where_it_is_given():
    own = changed("recipe.data.source", "my/photos")
    card = render_card(own)
    assert ModelCard(card).data.license is None and "No licence was given for the weights" in card
    own["recipe"]["hub"] = {"license": "cc-by-4.0"}
    card = render_card(own)
    assert ModelCard(card).data.license == "cc-by-4.0" and "The licence of the weights is cc-by-4.0." in card


def test_the_header_names_the_data_set_only_when_it_is_known():
    assert ModelCard(render_card(FACTS)).data.datasets == ["ylecun/mnist"]
    assert ModelCard(render_card(changed("recipe.data.source", "my/photos"))).data.datasets is None


@pytest.mark.parametrize(
    ("fact", "value", "shown"),
    [
        ("name", "moons", "# moons"),
        ("data.source", "twelve-moons", "images of twelve-moons, split train, as 1x28x28, 8 bits, in 10 classes."),
        ("data.split", "test[:12]", "images of digits, split test[:12], as"),
        ("data.num_images", None, ") on a stream of images of digits"),
        ("data.num_images", 12, ") on 12 images of digits"),
        ("data.config_name", "small", "images of digits (small), split"),
        ("data.revision", "v1", "split train, revision v1, as"),
        ("data.image_size", [4, 6], "as 1x4x6, 8 bits"),
        ("data.bit_depth", 16, "as 1x28x28, 16 bits"),
        ("data.binarization", {"kind": "static", "seed": 0}, ", binarised (static)."),
        ("data.converted", {"a": 1, "b": 2000}, " Converted: a (1 images); b (2,000 images)."),
        ("data.empty", 3, "in 10 classes (3 of them without an image)"),
        ("data.skipped", 1234, "Images that could not be decoded and were skipped: 1,234."),
        ("data.latents", {"vae": "HFVAE", "shape": [2, 4, 4]}, "Encoded as latents of HFVAE, 2x4x4."),
        ("num_images", 12, " 12 images"),
        ("weights", 1234567, "1,234,567 parameters"),
        ("steps", 31415, "31,415, batch size: 32"),
        ("images_seen", 271828, "271,828"),
        ("seconds", 62, "0 h 01 min 02 s"),
        ("last_loss", 0.5, "0.50000"),
        ("device", "an abacus", "an abacus"),
        ("processes", 17, "17 process(es)"),
        ("mixed_precision", "fp16", "fp16"),
        ("date", "1999-12-31", "1999-12-31"),
        ("torch", "9.9", "9.9"),
        ("recipe.objective.loss", "hybrid", "| loss | hybrid, distribution of t: uniform |"),
        ("recipe.objective.timestep_sampling", "stratified", "| loss | simple, distribution of t: stratified |"),
        ("recipe.scheduler.variance_type", "learned_range", "| reverse variance | learned_range |"),
        ("sampling.num_inference_steps", 33, "num_inference_steps=33"),
        ("sampling.eta", 0.75, "eta=0.75"),
        ("sampling.eta", None, "Algorithm 2 of DDPM |"),
        ("recipe.training.seed", 4242, "| seed | 4242 |"),
        ("recipe.training.batch_size", 99, ", batch size: 99 |"),
        ("recipe.scheduler.num_train_timesteps", 250, "T = 250"),
        ("recipe.model.preset", "ddpm-256", "| network | ddpm-256,"),
        ("metrics", [{"name": "FID", "value": 3.17}], "| FID | 3.17 |"),
        ("recipe.data.label_column", "label", "class_labels=0"),
    ],
)
def test_the_card_follows_every_fact(fact, value, shown):
    before, after = render_card(FACTS), render_card(changed(fact, value))
    assert shown not in before
    assert shown in after


@pytest.mark.parametrize(
    "fact",
    ["num_images", "weights", "steps", "images_seen", "seconds", "last_loss", "device", "mixed_precision", "torch"],
)
def test_a_missing_fact_is_named_as_not_measured(fact):
    for facts in (changed(fact, None), {k: v for k, v in FACTS.items() if k != fact}):
        card = render_card(facts)
        assert card.count("not measured") == render_card(FACTS).count("not measured") + 1
        assert "None" not in card


def test_an_old_sentence_about_the_data_is_not_read():
    """Versions before this one recorded prose, which may hold a folder of the machine."""
    old = changed("data", "9 images of '/home/o'brien/moons', split 'test'")
    old["metrics"] = [{"name": "FID", "value": 3, "data": "9 images of '/home/o'brien/moons', split 'test'"}]
    old["recipe"]["data"] = {"source": "/home/o'brien/moons", "split": "test"}
    card = render_card(old)
    assert ") on images of moons, split test.\n" in card and "brien" not in card
    (result,) = ModelCard(card).data.eval_results
    assert (result.dataset_name, result.dataset_split) == ("not recorded", None)
    assert "trained on data that was not recorded.\n" in render_card({"data": "9 images of '/home/o'brien/moons'"})


def test_of_places_the_card_says_the_last_name():
    local = changed("data", {**FACTS["data"], "source": "/home/o'brien/moons", "origin": "local"})
    local["recipe"]["data"]["source"] = "/home/o'brien/moons"
    assert "images of moons, split train" in render_card(local) and "brien" not in render_card(local)
    named = changed("data", {**FACTS["data"], "source": "ada/moons", "origin": "hub"})
    named["recipe"]["data"]["source"] = "ada/moons"
    assert "| data | ada/moons, split train" in render_card(named)
    named["data"]["origin"] = "local"  # a folder in a folder
    assert "| data | moons, split train" in render_card(named) and "ada/moons" not in render_card(named)


def test_without_any_fact_the_card_has_no_number_to_show():
    training = render_card({}).split("## How it was trained")[1].split("## How to open it")[0]
    assert re.findall(r"\d+", training.replace("Algorithm 2", "")) == []
    assert "Nothing was measured" in training


def test_metrics_that_were_not_measured_are_a_sentence_not_an_empty_table():
    card = render_card(changed("metrics", []))
    assert "Nothing was measured" in card
    assert "| metric |" not in card
    assert "Nothing was measured" not in render_card(FACTS)


def test_the_stock_door_is_shown_only_where_it_draws_the_same_images():
    stock, ours = render_card(FACTS), render_card(changed("stock", False))
    unknown = render_card({k: v for k, v in FACTS.items() if k != "stock"})
    assert "from diffusers import DDPMPipeline" in stock
    assert "from diffusers import DDPMPipeline" not in ours + unknown
    assert "wrong images" in ours
    assert "wrong images" not in stock + unknown
    for card in (stock, ours, unknown):
        assert "from hf_ddpm import HFDDPMPipeline" in card
        assert "trust_remote_code=True" in card


def test_the_recipe_in_the_card_is_the_recipe():
    block = re.search(r"## The recipe\n\n```yaml\n(.*?)```", render_card(FACTS), re.S)[1]
    written = {name: values for name, values in json.loads(json.dumps(FACTS["recipe"])).items() if values}
    assert yaml.safe_load(block) == written


def test_its_python_is_python():
    for code in re.findall(r"```python\n(.*?)```", render_card(FACTS), re.S):
        compile(code, "card", "exec")


def test_a_bar_in_a_fact_does_not_break_the_table():
    row = next(line for line in render_card(changed("device", "a|b")).splitlines() if line.startswith("| device"))
    assert len(re.findall(r"(?<!\\)\|", row)) == 3


def test_a_model_in_latents_names_the_vae_and_its_scale():
    plain, latent = render_card(FACTS), render_card({**FACTS, "latents": {"class": "HFVAE", "scaling_factor": 0.73124}})
    assert "latents of the HFVAE in `vae/`, multiplied by 0.73124" in latent
    assert "rombach2022high" in latent
    assert "latents" not in plain
    assert "rombach" not in plain


def card_of_classes(label_dropout=None, **classes):
    facts = changed("recipe.objective", {} if label_dropout is None else {"label_dropout": label_dropout})
    facts["recipe"]["data"]["label_column"] = "auto"
    return render_card(facts | {"classes": {"null_class": None, "id2label": None, **classes}})


def test_the_card_of_classes_says_how_to_ask_for_one():
    plain, named = card_of_classes(), card_of_classes(id2label={str(k): f"digit {k}" for k in range(10)})
    for card in (plain, named):
        assert "## Classes" in card and "`class_labels=0` draws images of class 0" in card
        assert "no label" not in card
    assert "Its classes are 0 to 9, which have no names." in plain
    assert "Its classes are 0 to 9.\n" in named and "a class may be given by its number or its name" in named
    assert "| 7 | digit 7 |" in named
    assert "## Classes" not in render_card(FACTS)


def test_the_card_says_which_labels_were_dropped():
    dropped, kept = card_of_classes(0.1, null_class=10), card_of_classes(null_class=10)
    for card in (dropped, kept):
        assert 'Class 10 of the network stands for "no label" and is never drawn.' in card
    assert "it replaced a label with probability 0.1" in dropped and "arXiv 2207.12598" in dropped
    assert "No label was dropped in training" in kept and "2207.12598" not in kept


@pytest.mark.parametrize("facts", [{"recipe": {"vae": {}}}, {**FACTS, "recipe": {"vae": {"likelihood": "logistic"}}}])
def test_the_card_of_a_vae_is_one_of_a_vae(facts):
    card = render_card(facts)
    assert {"vae", "hf_ddpm"} <= set(ModelCard(card).data.tags)
    assert "kingma2014auto" in card
    assert "ho2020denoising" not in card
    assert "from hf_ddpm import HFVAEPipeline" in card
    assert "None" not in card


def test_the_card_of_a_gan_says_what_is_there():
    without = render_card({"family": "ddgan"})
    assert "an image in a few steps" in without and "`discriminator/`" not in without and "sd over z" not in without
    logged = {"discriminator/loss": 1.3, "discriminator/gap_t1": 0.5, "generator/z_variance_t1": 0.04}
    card = render_card({"family": "ddgan", "num_train_timesteps": 2, "with_discriminator": True, "last_logged": logged})
    assert "an image in 2 steps" in card and "and sampling does not need them" in card
    assert "| gap of the logits | not measured | 0.5000 |\n| sd over z | not measured | 0.2000 |\n" in card


def test_classes_are_listed_and_many_are_cut_short():
    few = {"null_class": 3, "id2label": {"0": "cat", "1": "a|b\nc", "2": "x" * 100}}
    card = render_card({**FACTS, "classes": few})
    assert "| number | name |\n|---|---|\n| 0 | cat |\n| 1 | a\\|b c |\n| 2 | " + "x" * 57 + "... |" in card
    assert 'Class 3 of the network stands for "no label" and is never drawn.' in card
    many = {"null_class": None, "id2label": {str(k): f"class {k}" for k in range(1000)}}
    card = render_card({**FACTS, "classes": many})
    assert "| 19 | class 19 |" in card and "class 20 " not in card
    assert "These are the first 20 of 1,000; `id2label` in `model_index.json` contains all of them." in card
    assert "no label" not in card and "## Classes" not in render_card({**FACTS, "classes": None})

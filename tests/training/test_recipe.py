"""Recipes: shipped ones, overrides, and the sentence for every mistake, before anything is built."""

import re
import types
from importlib import resources

import pytest
import torch
import yaml

from hf_ddpm import HFVAE
from hf_ddpm.errors import UserError
from hf_ddpm.kinds import FAMILY, KINDS, family_of
from hf_ddpm.training.command_line import parse_command_line, read_recipe
from hf_ddpm.training.family import check_recipe, family_class, make_family
from hf_ddpm.training.recipe import keys_of
from hf_ddpm.training.run_folder import RunFolder
from hf_ddpm.training.settings import Optimization, Training

RECIPES = sorted(
    p.name.removesuffix(".yaml") for p in resources.files("hf_ddpm.training").joinpath("recipes").iterdir()
)


def text_of(name: str) -> str:
    return resources.files("hf_ddpm.training").joinpath(f"recipes/{name}.yaml").read_text()


def test_the_recipes_that_were_promised_are_there():
    diffusion = {"mnist", "mnist-hybrid", "cifar10", "cifar10-iddpm", "lsun-256", "celebahq-256", "celeba-64"}
    vaes = {"mnist-vae", "mnist-vae-binary", "mnist-vae-iwae", "mnist-vae-aevb", "cifar10-vae", "faces-vae"}
    conditional = {"mnist-conditional", "mnist-conditional-cfg", "cifar10-conditional"}
    diffusion |= {"lsun-adm-256", "imagenet-iddpm-64", "imagenet-iddpm-64-conditional"}
    sizes = (64, 128, 256, 512)
    diffusion |= {f"imagenet-adm-{size}" for size in sizes}
    classifiers = {"mnist-classifier", "cifar10-classifier", *(f"imagenet-classifier-{size}" for size in sizes)}
    gans = {"mnist-ddgan", "mnist-ddgan-unconditional", "stacked-mnist-ddgan", "cifar10-ddgan"}
    gans |= {"celebahq-256-ddgan", "church-256-ddgan"}
    assert diffusion | vaes | conditional | classifiers | gans | {"mnist-vae-conv", "mnist-latent"} <= set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_first_comment_states_command_weights_seed_hardware_and_figure(name):
    comment = "\n".join(line for line in text_of(name).splitlines() if line.startswith("#"))
    assert "accelerate launch" in comment and f"--recipe {name}" in comment
    assert f"seed {yaml.safe_load(text_of(name))['training']['seed']}" in comment
    assert re.search(r"[\d,]{7,} weights", comment)
    assert re.search("GPU|TPU|CPU", comment) and re.search("FID|digit distance|nats|bits/dim|accuracy|KL", comment)


def latents_of_another_recipe(recipe, folder):
    """Put random weights where `recipe` looks for its VAE, and give the shape (J, h, w) of its latents."""
    first = check_recipe(read_recipe("mnist-vae-conv"))
    assert recipe["latents"]["vae"] == first["training"]["output_dir"] + "/checkpoint"
    recipe["latents"]["vae"] = str(folder)
    vae = HFVAE(sample_size=first["data"]["image_size"], in_channels=first["data"]["channels"], **first["vae"])
    vae.save_pretrained(folder)
    return vae.latent_shape


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_builds_with_the_weights_it_states(name, tmp_path):
    recipe = check_recipe(read_recipe(name))
    stated = int(re.search(r"([\d,]{7,}) weights", text_of(name)).group(1).replace(",", ""))
    blocks = family_class(recipe).blocks
    data = types.SimpleNamespace(**{k: recipe["data"][k] for k in ("image_size", "channels")})
    classes = 1000 if name.startswith("imagenet") else 10
    data.num_classes = classes if recipe["data"].get("label_column") else None
    data.facts = types.SimpleNamespace(class_names=None)
    if recipe.get("latents"):
        data.channels, *data.image_size = latents_of_another_recipe(recipe, tmp_path)
    family = make_family(recipe)
    with torch.device("meta"):
        model = family.build_players(data)[family.artefact].model
    assert sum(p.numel() for p in model.parameters()) == stated
    assert set(recipe) == {FAMILY, *blocks}
    Training(**recipe["training"])
    for block in blocks:
        if block.endswith("optimization"):
            Optimization(**recipe[block])


def test_the_command_line_overrides_the_recipe():
    recipe, resume = parse_command_line(
        [
            "--recipe",
            "cifar10",
            "--data.source",
            "elsewhere",
            "--lr",
            "1e-3",
            "--optimization.betas",
            "[0.5, 0.9]",
            "--total_steps=7",
            "--horizontal_flip",
            "false",
            "--max_grad_norm",
            "null",
            "--resume",
            "latest",
        ]
    )
    assert recipe["data"]["source"] == "elsewhere"
    assert recipe["data"]["horizontal_flip"] is False
    assert recipe["optimization"]["lr"] == 1e-3
    assert recipe["optimization"]["betas"] == (0.5, 0.9)
    assert recipe["optimization"]["max_grad_norm"] is None
    assert recipe["training"]["total_steps"] == 7
    assert resume == "latest"


def test_the_default_is_mnist():
    assert parse_command_line([])[0]["data"]["source"] == "digits"


def test_a_saved_recipe_reads_back(tmp_path):
    recipe, _ = parse_command_line(["--betas", "[0.5, 0.9]"])
    folder = RunFolder(tmp_path / "run")
    folder.create(recipe)
    assert parse_command_line(["--recipe", str(folder.recipe)])[0] == recipe


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--learning_rat", "1"], r"unknown option --learning_rat; did you mean"),
        (["--optimization.lrr", "1"], r"unknown option --optimization\.lrr; did you mean --optimization\.lr\?"),
        (["--total_steps", "many"], r"training\.total_steps='many' must be int"),
        (["--total_steps", "2.5"], r"training\.total_steps=2\.5 must be int"),
        (["--horizontal_flip", "1"], r"data\.horizontal_flip=1 must be bool"),
        (["--beta_schedule", "cosin"], r"scheduler\.beta_schedule='cosin' must be one of .*did you mean cosine"),
        (["--betas", "[0.9]"], r"optimization\.betas=\[0\.9\] must be a list of float"),
        (["--loss", "hybird"], r"objective\.loss='hybird' must be one of simple, vlb, hybrid; did you mean hybrid"),
        (["--rescaled", "1"], r"objective\.rescaled=1 must be bool"),
        (["--recipe", "minst"], r"no recipe 'minst'.*mnist"),
        (["--lr"], r"expected one argument"),
    ],
)
def test_mistakes_on_the_command_line(words, sentence):
    with pytest.raises(UserError, match=sentence):
        parse_command_line(words)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "optimization: {lr: 1e-3, warmup_step: 3}",
            r"unknown key optimization\.warmup_step; did you mean warmup_steps",
        ),
        ("optimizer: {lr: 1e-3}", "unknown block 'optimizer'; did you mean optimization"),
        ("training: {batch_size: 3}", r"optimization\.lr is missing|model\.preset is missing"),
        ("training: [1", "not valid YAML"),
        ("just words", "must contain blocks"),
    ],
)
def test_mistakes_in_a_file(text, sentence, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=sentence):
        parse_command_line(["--recipe", str(path)])


def test_numbers_without_a_dot_are_numbers(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("optimization: {lr: 1e-3}\nmodel: {preset: tiny}\ntraining: {total_steps: 3}")
    recipe, _ = parse_command_line(["--recipe", str(path)])
    assert recipe["optimization"]["lr"] == 1e-3


@pytest.mark.parametrize("name", RECIPES)
def test_every_shipped_recipe_says_its_family_and_is_recognised_without(name):
    said = yaml.safe_load(text_of(name))
    family = said.pop("family")
    assert family == read_recipe(name)[FAMILY]
    assert family_of(said) == family or family in ("classifier", "ddgan")  # which the first recipes did not know


@pytest.mark.parametrize(
    ("family", "sentence"),
    [
        ("difusion", "family='difusion' is unknown; did you mean diffusion?"),
        ("flow", "family='flow' is unknown; it must be one of diffusion, vae"),
        ("3", "family=3 is unknown; it must be one of diffusion, vae"),
        ("[vae]", r"family=\['vae'\] is unknown"),
        ("null", "family=None is unknown"),
        ("vae", "unknown block 'model'"),
    ],
)
def test_a_family_that_is_not_there_or_has_no_such_block_is_named(family, sentence, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        f"family: {family}\nmodel: {{preset: tiny}}\noptimization: {{lr: 1e-3}}\ntraining: {{total_steps: 3}}"
    )
    with pytest.raises(UserError, match=sentence):
        parse_command_line(["--recipe", str(path)])


def test_a_run_of_another_family_is_not_resumed(tmp_path):
    folder = RunFolder(tmp_path)
    folder.create(check_recipe(read_recipe("mnist-vae")))
    with pytest.raises(UserError, match="family is 'diffusion' but the run began with 'vae'"):
        folder.changes(check_recipe(read_recipe("mnist")))


def test_a_saved_run_that_does_not_say_its_family_is_the_same_recipe(tmp_path):
    """As version 0.1 wrote it."""
    folder, recipe = RunFolder(tmp_path), check_recipe(read_recipe("mnist"))
    folder.create(recipe)
    folder.recipe.write_text(
        yaml.safe_dump({k: v for k, v in yaml.safe_load(folder.recipe.read_text()).items() if k != FAMILY})
    )
    assert folder.changes(recipe) == {}
    assert read_recipe(str(folder.recipe))[FAMILY] == "diffusion"


@pytest.mark.parametrize("family", KINDS)
def test_every_key_is_a_keyword_of_its_constructor(family):
    for block in family_class({FAMILY: family}).blocks.values():
        assert not {"self", "kwargs", "model", "scheduler", "latent_shape"} & set(keys_of(block))
    vae = family_class({FAMILY: "vae"}).blocks
    assert "likelihood" in keys_of(vae["vae"]) and "likelihood" not in keys_of(vae["elbo"])


@pytest.mark.parametrize(
    ("recipe", "family"), [("mnist", "diffusion"), ("mnist-vae", "vae"), ("mnist-classifier", "classifier")]
)
def test_help_shows_every_key_of_what_is_trained(recipe, family, capsys):
    with pytest.raises(SystemExit) as stop:
        parse_command_line(["--recipe", recipe, "--help"])
    shown = capsys.readouterr().out
    assert stop.value.code == 0
    for name, block in family_class({FAMILY: family}).blocks.items():
        assert f"{name}: keywords of {block.constructor.__name__}" in shown
        for key in keys_of(block):
            assert f"--{name}.{key}" in shown
    assert ("--scheduler.beta_schedule" in shown) == (family != "vae")


def test_help_tells_what_the_docstrings_say(capsys):
    with pytest.raises(SystemExit):
        parse_command_line(["--help"])
    shown = capsys.readouterr().out
    assert "peak learning rate" in shown
    assert "objective: keywords of make_objective" in shown
    flat = " ".join(shown.split())
    assert "or L_simple + 0.001 L_vlb for learned variances" in flat  # of a function's docstring too
    assert "How t is drawn, see docs/training.md [one of uniform, " in flat

"""Training of a denoising GAN by the same script: what it leaves, the same path everywhere, and the mistakes."""

import json
import re
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from huggingface_hub import ModelCard
from launching import SCRIPT, difference
from safetensors.torch import load_file

from hf_ddpm import HFDDGANPipeline
from hf_ddpm.checkpoint import load_checkpoint
from hf_ddpm.cli import main as hf_ddpm
from hf_ddpm.errors import UserError
from hf_ddpm.training.command_line import parse_command_line, read_recipe
from hf_ddpm.training.family import check_recipe
from hf_ddpm.training.remarks import remark
from hf_ddpm.training.train import main, train

TINY = ["--recipe", "mnist-ddgan", "--generator.preset", "tiny", "--discriminator.preset", "tiny"]
TINY += ["--image_size", "8", "--batch_size", "8", "--log_every", "1", "--num_images", "4", "--max_images", "200"]
TINY += ["--checkpoints.every", "null", "--tracker", "none", "--cpu_threads", "1"]
TINY += ["--samples", "0", "--evaluation.every", "null"]
TINY += ["--generator_optimization.warmup_steps", "0", "--discriminator_optimization.warmup_steps", "0"]


def words(folder, *more):
    return [*TINY, "--output_dir", str(folder), "--total_steps", "6", *more]


def tiny(folder, *more):
    return train(*parse_command_line(words(folder, *more)))


def state(folder, step=6):
    """All weights of a saved state, by their file: both players' and the average."""
    found = Path(folder) / "states" / f"step_{step:08d}"
    return {str(f.relative_to(found)): load_file(f) for f in sorted(found.rglob("*.safetensors"))}


def largest_difference(one, two):
    assert one.keys() == two.keys()
    return max(difference(one[name], two[name]) for name in one)


def log(folder):
    return [json.loads(line) for line in (Path(folder) / "log.jsonl").read_text().splitlines()]


def test_a_run_leaves_a_gan_with_both_players_and_a_card(tmp_path, capsys):
    more = ["--total_steps", "25", "--log_every", "25", "--timestep_group", "1"]  # all t are drawn by then
    checkpoint = tiny(tmp_path / "run", *more)
    said = capsys.readouterr().out
    assert re.search(r"denoising GAN, tiny, T = 4, 15,\d{3} weights of the generator, \d,\d{3} .*of the disc", said)
    pipeline = load_checkpoint(str(checkpoint))
    assert type(pipeline) is HFDDGANPipeline and pipeline.discriminator is not None and pipeline.num_classes == 10
    assert pipeline.scheduler.config["beta_schedule"] == "vp" and len(pipeline.scheduler) == 4
    averaged = load_file(checkpoint / "generator" / "diffusion_pytorch_model.safetensors")
    raw = load_file(checkpoint / "generator" / "diffusion_pytorch_model.raw.safetensors")
    assert difference(raw, averaged) > 0
    judge = load_file(checkpoint / "discriminator" / "diffusion_pytorch_model.safetensors")
    assert difference(judge, state(tmp_path / "run", 25)["model_1.safetensors"]) == 0  # of the two prepared models
    card = ModelCard((checkpoint / "README.md").read_text())
    assert "draws an image in 4 steps" in card.content and "HFDDGANPipeline.from_pretrained(checkpoint)" in card.content
    assert re.search(r"\| gap of the logits \|( -?\d\.\d{4} \|){4}\n", card.content)
    assert re.search(
        r"\| sd over z \|( \d\.\d{4} \|){4}\n\nR1, .*: \d.*Norms .* generator \d.*discriminator \d", card.content
    )
    assert "its raw weights are in `discriminator/`" in card.content
    hf_ddpm(["sample", str(checkpoint), "-n", "3", "--class", "7", "--device", "cpu", "--out", str(tmp_path / "x.png")])
    assert "(images: 3, network calls per image: 4)" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="--steps 2 must be 4, the number of steps in training"):
        hf_ddpm(["sample", str(checkpoint), "--steps", "2", "--device", "cpu", "--out", str(tmp_path / "y.png")])
    with pytest.raises(SystemExit, match=r"--eta 0\.0 is only for diffusion models, and .* contains a denoising GAN"):
        hf_ddpm(["sample", str(checkpoint), "--eta", "0", "--device", "cpu", "--out", str(tmp_path / "y.png")])


def test_the_log_says_how_the_game_stands(tmp_path):
    tiny(tmp_path, "--log_every", "3")
    first, second = log(tmp_path)
    assert {f"discriminator/gap_t{t}" for t in range(4)} <= first.keys()
    assert {"discriminator/loss", "discriminator/r1", "generator/loss", "generator/l2"} <= first.keys()
    assert any(name.startswith("generator/z_variance_t") for name in first)
    assert first["generator/gradient_norm"] > 0 and first["discriminator/gradient_norm"] > 0
    assert first["generator/lr"] == 4 * first["discriminator/lr"]  # of its own block in the recipe
    assert "discriminator/r1" in second  # of step 4


def test_resumed_is_uninterrupted_bit_for_bit_with_the_phase_of_r1(tmp_path):
    """The penalty is due every 4 steps, and the run is cut after 3."""
    steady = ["--l2_until", "null"]  # nothing follows from the length of the run
    for player in ("generator", "discriminator"):
        steady += [f"--{player}_optimization.decay", "constant"]
    tiny(tmp_path / "whole", *steady)
    tiny(tmp_path / "cut", *steady, "--total_steps", "3")
    tiny(tmp_path / "cut", *steady, "--resume", "latest")
    assert largest_difference(state(tmp_path / "whole"), state(tmp_path / "cut")) == 0


def test_parts_and_processes_walk_the_same_path(on_two_processes, tmp_path):
    """One process with 16 images, 2 parts of 8, 2 processes of 8, and both: equal to 1e-5 after 6 steps, with R1."""
    # Adam divides a gradient by its own size: by its rounding, where that is all there is of it
    more = [word for player in ("generator", "discriminator") for word in (f"--{player}_optimization.eps", "1e-5")]
    more, in_parts = [*more, "--batch_size", "16"], ["--gradient_accumulation_steps", "2"]
    tiny(tmp_path / "whole", *more)
    tiny(tmp_path / "parts", *more, *in_parts)
    for name, parts in (("processes", []), ("both", in_parts)):
        process = on_two_processes(SCRIPT, *words(tmp_path / name, *more, *parts))
        assert process.returncode == 0, process.stderr
    for name in ("parts", "processes", "both"):
        assert largest_difference(state(tmp_path / "whole"), state(tmp_path / name)) < 1e-5, name


def test_one_image_at_a_time_trains(tmp_path):
    tiny(tmp_path, "--batch_size", "1", "--total_steps", "2")
    assert all(torch.isfinite(torch.tensor(line["discriminator/loss"])) for line in log(tmp_path))


def test_images_without_classes_have_a_generator_without(tmp_path):
    checkpoint = tiny(tmp_path, "--label_column", "null", "--total_steps", "1")
    pipeline = HFDDGANPipeline.from_pretrained(checkpoint)
    assert pipeline.num_classes is None and pipeline.discriminator.config["num_classes"] is None
    assert len(pipeline(2, generator=torch.Generator().manual_seed(0)).images) == 2


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (
            ["--gradient_accumulation_steps", "4"],
            "is divided into 4 parts.*must be a multiple of the discriminator's group_size=4",
        ),
        (["--prediction_type", "epsilon"], "objective: prediction_type='epsilon' must be 'sample'"),
        (["--scheduler.num_train_timesteps", "0"], "scheduler: num_train_timesteps=0 must be"),
        (["--generator.preset", "tyni"], "there is no generator preset 'tyni'.*did you mean tiny"),
        (["--objective.timestep_weights", "[1.0, 1.0]"], r"must be one number of at least 0 for each timestep \(T=4\)"),
        (["--compile", "true"], "torch.compile does not support the double backward of R1 and R2"),
        (["--max_decay", "2"], r"ema: max_decay=2\.0 must lie in \[0, 1\)"),
        (["--variance_type", "fixed_large"], "variance_type='fixed_large' must be 'fixed_small'"),
        (["--beta_schedule", "geometric"], r"alpha_bar after the last step is 0\.99, but it must be at most 0\.01"),
        (["--generator.num_classes", "10"], "generator.num_classes"),
        (["--l2_until", "2"], "l2_until=2.0 must be a fraction of the training"),
        (["--generator_optimization.floor", "1"], "floor=1.0 must be a fraction of the peak learning rate"),
    ],
)
def test_a_mistake_is_one_sentence_before_data_are_opened(more, sentence, tmp_path):
    with pytest.raises(UserError, match=sentence):
        check = words(tmp_path / "run", "--source", str(tmp_path / "nowhere"))
        tiny_recipe = parse_command_line([*check, *more])
        train(*tiny_recipe)
    assert not (tmp_path / "run").exists()


def test_an_option_that_both_players_have_is_asked_for_by_its_block():
    with pytest.raises(UserError, match=r"^--lr is a key of several blocks: use --generator_.*lr or --disc.*lr$"):
        parse_command_line([*TINY, "--lr", "1e-3"])


@pytest.mark.parametrize(
    ("began", "resumed", "sentence"),
    [
        ([], ["--scheduler.num_train_timesteps", "2"], "scheduler.num_train_timesteps is 2 but the run began with 4"),
        ([], ["--latent_dim", "8"], "generator.latent_dim is 8 but the run began without one"),
        (["--latent_dim", "8"], [], "generator.latent_dim is not set but the run began with 8"),
    ],
)
def test_a_run_is_not_resumed_as_another(began, resumed, sentence, tmp_path):
    tiny(tmp_path / "run", "--total_steps", "1", *began)
    with pytest.raises(SystemExit, match=sentence):
        main(words(tmp_path / "run", *resumed, "--resume", "latest"))


def test_a_state_that_lost_its_discriminator_is_not_gone_on_from(tmp_path):
    tiny(tmp_path / "run", "--total_steps", "1")
    (discriminator,) = (tmp_path / "run").glob("states/*/model_1.safetensors")
    discriminator.unlink()
    with pytest.raises(SystemExit, match=r"step_00000001 is damaged \(model_1.safetensors is missing\)"):
        main(words(tmp_path / "run", "--resume", "latest"))
    state = discriminator.parent
    manifest = json.loads((state / "state.json").read_text())
    (state / "state.json").rename(state / "counters.json")  # as version 0.1 calls it, without checksums
    (state / "counters.json").write_text(json.dumps({key: manifest[key] for key in ("step", "seconds")}))
    with pytest.raises(
        SystemExit, match=r"does not contain model_1.safetensors, the weights of the discriminator: resume"
    ):
        main(words(tmp_path / "run", "--resume", "latest"))


@pytest.mark.parametrize("name", sorted(file.stem for file in SCRIPT.parent.glob("recipes/*-ddgan*.yaml")))
def test_every_recipe_trains_a_shrunken_copy(name, tmp_path):
    recipe = read_recipe(name)
    recipe["generator"] = {"preset": "tiny"}
    recipe["discriminator"] = {"preset": "tiny"}
    labels = {key: value for key, value in recipe["data"].items() if key == "label_column"}
    recipe["data"] = {"source": "digits", "image_size": 8, "channels": 1, "max_images": 50, **labels}
    recipe["training"] |= {"total_steps": 2, "batch_size": 4, "output_dir": str(tmp_path), "tracker": "none"}
    recipe["sampling"] |= {"every": None, "num_images": 2}
    recipe["evaluation"] = {"samples": 0}
    pipeline = HFDDGANPipeline.from_pretrained(train(check_recipe(recipe)))
    assert len(pipeline.scheduler) == recipe["scheduler"]["num_train_timesteps"]


@pytest.mark.parametrize(
    ("logged", "said"),
    [
        ({"discriminator/gap_t0": 12.0, "discriminator/gap_t1": 0.1}, "the discriminator has won at t = 0: its logits"),
        (
            {"discriminator/loss": 1.4, "discriminator/gap_t0": 0.002, "discriminator/gap_t1": -0.001},
            "the generator has",
        ),
        ({"discriminator/loss": 1.2, "discriminator/gap_t0": 0.5, "discriminator/gap_t1": 0.0}, None),
        ({"loss": 0.01}, None),
    ],
)
def test_a_game_that_is_over_is_said(logged, said):
    found = remark(logged)
    assert found is None if said is None else found.startswith(said)


def test_stacked_digits_are_measured_without_being_given_data(tmp_path, capsys):
    """The recipe as it is, with a smaller generator: its images have no test split."""
    words = ["--recipe", "stacked-mnist-ddgan", "--generator.block_out_channels", "[4]", "--total_steps", "2"]
    words += ["--evaluation.every", "2", "--samples", "40", "--batch_size", "8", "--tracker", "none"]
    train(*parse_command_line([*words, "--cpu_threads", "1", "--output_dir", str(tmp_path / "run")]))
    assert re.search(r"measured: +stacked digit distance \d.* split train", capsys.readouterr().out)


def test_a_game_that_is_over_is_said_once(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("hf_ddpm.training.train.remark", lambda means: "a player has won")
    tiny(tmp_path / "run", "--total_steps", "3")
    said = "".join(capsys.readouterr())
    assert "step 1: a player has won" in said and said.count("a player has won") == 1


def test_bf16_keeps_the_penalty_in_float32(tmp_path):
    """R1 of the first step, before any weight has moved, is that of float32; the losses are those of bf16."""
    tiny(tmp_path / "half", "--mixed_precision", "bf16", "--total_steps", "2")
    AcceleratorState._reset_state(reset_partial_state=True)
    tiny(tmp_path / "whole", "--total_steps", "2")
    half, whole = log(tmp_path / "half")[0], log(tmp_path / "whole")[0]
    assert half["discriminator/r1"] == pytest.approx(whole["discriminator/r1"], rel=1e-5)
    assert half["discriminator/loss"] == pytest.approx(whole["discriminator/loss"], rel=0.05)
    assert half["discriminator/loss"] != whole["discriminator/loss"]

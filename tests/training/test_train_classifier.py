"""Training of a noisy classifier by the same script: what it leaves, the same path everywhere, and the mistakes."""

import json
import re
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from launching import SCRIPT, difference, losses
from safetensors.torch import load_file

from hf_ddpm import HFClassifierPipeline, HFDDPMScheduler, NoisyClassifier
from hf_ddpm.checkpoint import load_checkpoint
from hf_ddpm.cli import main as hf_ddpm
from hf_ddpm.errors import UserError
from hf_ddpm.training.command_line import parse_command_line, read_recipe
from hf_ddpm.training.family import check_recipe
from hf_ddpm.training.train import main, train

TINY = ["--recipe", "mnist-classifier", "--preset", "tiny", "--image_size", "8", "--batch_size", "8"]
TINY += ["--warmup_steps", "2", "--log_every", "1", "--checkpoints.every", "null", "--tracker", "none"]
TINY += ["--max_images", "300", "--held_back", "100", "--samples", "100", "--cpu_threads", "1"]


def tiny(folder, *words):
    return train(*parse_command_line([*TINY, "--output_dir", str(folder), "--total_steps", "6", *words]))


def weights(folder):
    return load_file(Path(folder) / "checkpoint" / "classifier" / "diffusion_pytorch_model.safetensors")


def log(folder):
    return [json.loads(line) for line in (Path(folder) / "log.jsonl").read_text().splitlines()]


def test_a_run_leaves_a_classifier_with_its_accuracy(tmp_path, capsys):
    checkpoint = tiny(tmp_path / "run")
    shown = capsys.readouterr().out
    assert "noisy classifier, tiny" in shown and "100 noisy images of 100 images held back from training" in shown
    assert [*(tmp_path / "run" / "samples").iterdir()] == [] and not (checkpoint / "samples.png").exists()
    pipeline = load_checkpoint(str(checkpoint))
    assert type(pipeline) is HFClassifierPipeline and pipeline.classifier.class_names == [str(i) for i in range(10)]
    schedule = HFDDPMScheduler(**pipeline.classifier.config["noise_schedule"])
    assert torch.equal(schedule.alphas_cumprod, HFDDPMScheduler(beta_schedule="cosine").alphas_cumprod)
    record = json.loads((checkpoint / "evaluation.json").read_text())
    assert record["conditions"]["noise"] == {"seed": 1, "num_train_timesteps": 1000}
    card = ModelCard((checkpoint / "README.md").read_text())
    assert (card.data.pipeline_tag, card.data.model_name) == ("image-classification", "run")
    figures = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert figures == {number["name"]: round(number["value"], 4) for number in record["numbers"]}
    assert {f"{name} accuracy, quartile {q} of t" for name in ("top-1", "top-5") for q in (1, 2, 3, 4)} <= set(figures)
    assert "| noise schedule | cosine, T = 1000 |" in card.content and "HFClassifierPipeline" in card.content


def test_there_is_no_average_unless_it_is_asked_for(tmp_path):
    checkpoint = tiny(tmp_path / "none")
    (state,) = (tmp_path / "none" / "states").iterdir()
    assert not (state / "ema").exists()
    assert difference(weights(tmp_path / "none"), load_file(state / "model.safetensors")) == 0
    assert not [*checkpoint.rglob("*.raw.safetensors")]
    tiny(tmp_path / "averaged", "--max_decay", "0.9", "--samples", "0", "--total_steps", "2")
    (state,) = (tmp_path / "averaged" / "states").iterdir()
    assert difference(weights(tmp_path / "averaged"), load_file(state / "model.safetensors")) > 0
    raw = NoisyClassifier.from_pretrained(tmp_path / "averaged" / "checkpoint", subfolder="classifier", variant="raw")
    assert difference(raw.state_dict(), load_file(state / "model.safetensors")) == 0


def test_it_learns_the_digits_and_keeps_its_best(tmp_path):
    words = ["--optimizer", "muon", "--muon_lr", "0.05", "--lr", "1e-2", "--batch_size", "50", "--log_every", "20"]
    tiny(tmp_path, *words, "--total_steps", "60", "--evaluation.every", "60", "--samples", "50")
    first, *_, last = (line for line in log(tmp_path) if "loss" in line)
    assert last["loss"] < first["loss"] - 0.1 and last["top1_q1"] > 0.25 > 0.2 > last["top1_q4"]
    assert last["top5_q1"] > last["top1_q1"]
    assert any("evaluation/top-1 accuracy, quartile 1 of t" in line for line in log(tmp_path))
    best = json.loads((tmp_path / "best" / "training.json").read_text())
    assert best["selection"]["name"] == "-log p(y | x_t, t) in nats" and best["metrics"]


def test_a_line_of_the_log_leaves_out_quartiles_without_images(tmp_path):
    tiny(tmp_path, "--batch_size", "2")
    for line in log(tmp_path):
        said = {name: value for name, value in line.items() if name.startswith("top1_q")}
        assert 1 <= len(said) <= 2 and set(said.values()) <= {0.0, 0.5, 1.0}
    assert len({tuple(line) for line in log(tmp_path)}) > 1


def test_parts_and_processes_walk_the_same_path_and_say_the_same(on_two_processes, tmp_path):
    """Of 8 images some part of 4 or 2 has none of a quartile: means of means would be others."""
    words = ["--total_steps", "4", "--optimization.eps", "1e-3"]  # of a gradient of 0, Adam follows the rounding
    tiny(tmp_path / "one", *words)
    tiny(tmp_path / "parts", *words, "--gradient_accumulation_steps", "2")
    process = on_two_processes(SCRIPT, *TINY, *words, "--output_dir", str(tmp_path / "two"))
    assert process.returncode == 0, process.stderr
    expected = [{k: v for k, v in line.items() if re.match("loss|top", k)} for line in log(tmp_path / "one")]
    for other in ("parts", "two"):
        assert difference(weights(tmp_path / "one"), weights(tmp_path / other)) < 1e-4
        for line, known in zip(log(tmp_path / other), expected, strict=True):
            assert {k: v for k, v in line.items() if re.match("loss|top", k)} == pytest.approx(known, abs=1e-4)
    records = [json.loads((tmp_path / n / "checkpoint" / "evaluation.json").read_text()) for n in ("one", "two")]
    for one, two in zip(*(record["numbers"] for record in records), strict=True):
        assert one == {**two, **{k: pytest.approx(v, abs=0.02) for k, v in two.items() if type(v) is float}}


def test_resumed_is_uninterrupted_bit_for_bit(tmp_path):
    words = ["--decay", "constant", "--samples", "0", "--total_steps"]
    tiny(tmp_path / "whole", *words, "4")
    tiny(tmp_path / "parts", *words, "2")
    tiny(tmp_path / "parts", *words, "4", "--resume", "latest")
    assert difference(weights(tmp_path / "parts"), weights(tmp_path / "whole")) == 0
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


IMAGENET = {64: 4, 128: 5, 256: 6, 512: 7}  # the number of levels
LEVELS = {"mnist-classifier": 3, "cifar10-classifier": 4} | {f"imagenet-classifier-{k}": n for k, n in IMAGENET.items()}


@pytest.mark.parametrize("name", LEVELS)
def test_every_recipe_trains_a_shrunken_copy(name, tmp_path):
    recipe = read_recipe(name)
    recipe["data"] |= {
        "source": "digits",
        "image_size": max(16, 2 ** LEVELS[name]),
        "max_images": 60,
        "held_back": 20,
        "num_workers": 0,
    }
    recipe["model"] |= {"block_out_channels": [8] * LEVELS[name], "norm_num_groups": 4}
    recipe["model"] |= {"attention_head_dim": 8, "layers_per_block": 1}
    recipe["training"] |= {"total_steps": 2, "batch_size": 4, "output_dir": str(tmp_path / "run"), "tracker": "none"}
    recipe["training"] |= {"cpu_threads": 1, "mixed_precision": "no"}
    recipe["evaluation"] |= {"samples": 8}
    classifier = HFClassifierPipeline.from_pretrained(train(check_recipe(recipe))).classifier
    assert classifier.config["num_classes"] == 10 and classifier.config["pool"] == "attention"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--label_column", "null"], "data.label_column is missing, but a classifier needs labels"),
        (["--label_column", "lable"], "lable"),
        (["--model.preset", "tinny"], "model: there is no classifier preset 'tinny'.*did you mean tiny"),
        (["--pool", "atention"], "model.pool='atention' must be one of adaptive, attention"),
        (["--norm_num_groups", "3"], "model: block_out_channels=.* must be multiples of norm_num_groups=3"),
        (["--image_size", "9"], "model: images of size 9x9 do not fit a network with 2 levels"),
        (["--num_classes", "1"], "num_classes"),
        (["--model.num_classes", "5"], r"unknown option --model\.num_classes"),
        (["--held_back", "0"], "evaluation: .*split.*or measure nothing with --samples 0"),
        (["--samples", "0", "--evaluation.every", "3"], "evaluation.every=3 has no effect with samples=0"),
        (["--timestep_sampling", "unifrom"], "objective.timestep_sampling='unifrom'.*did you mean uniform"),
        (["--max_decay", "1.5"], r"ema: max_decay=1\.5"),
    ],
)
def test_mistakes_are_one_sentence_and_leave_nothing(words, sentence, tmp_path):
    with pytest.raises(SystemExit) as stop:
        main([*TINY, "--output_dir", str(tmp_path / "run"), "--total_steps", "2", *words])
    assert re.search(sentence, str(stop.value.code)), stop.value.code
    assert "\n" not in str(stop.value.code)
    assert not (tmp_path / "run").exists()


# --- hf-ddpm evaluate ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny(tmp_path_factory.mktemp("run"), "--total_steps", "2", "--samples", "0")


def test_evaluate_measures_the_accuracy(checkpoint, tmp_path, capsys):
    assert not (checkpoint / "evaluation.json").exists()
    out = tmp_path / "accuracy.json"
    words = ["--data", "digits", "--split", "train", "-n", "20", "--device", "cpu", "--out", str(out)]
    hf_ddpm(["evaluate", str(checkpoint), *words])
    record = json.loads(out.read_text())
    assert record["kind"] == "noisy classifier" and record["conditions"]["num_images"] == 20
    shown = capsys.readouterr().out
    assert "| top-1 accuracy, all t |" in shown
    assert "20 noisy images of digits, split train, t drawn uniformly from 0 .. 999, seed 0." in shown
    assert sorted(file.name for file in tmp_path.iterdir()) == ["accuracy.json", "accuracy.md"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["--metrics", "fd,classes"],
            "--metrics is not supported for .*, which contains a noisy classifier: its accuracy is measured on --data",
        ),
        (["--steps", "5"], "--steps is not supported for .*, which contains a noisy classifier"),
        (["--extractor", "digits"], "--extractor is not supported for .*, which contains a noisy classifier"),
        (["--raw"], "has no weights with variant='raw'"),
    ],
)
def test_evaluate_refuses_what_is_of_samples(words, sentence, checkpoint, tmp_path):
    asked = ["--data", "digits", "--split", "train", "--device", "cpu", "--out", str(tmp_path / "x.json"), *words]
    with pytest.raises(SystemExit) as stop:
        hf_ddpm(["evaluate", str(checkpoint), *asked])
    assert re.search(sentence, str(stop.value.code)) and "\n" not in str(stop.value.code)
    assert [*tmp_path.iterdir()] == []


def test_a_run_without_labels_in_its_data_is_refused_before_it_begins(tmp_path):
    with pytest.raises(UserError, match="set --label_column auto"):
        tiny(tmp_path, "--label_column", "null")

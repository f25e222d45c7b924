"""Samples measured in training: the best checkpoint, and figures in cards that the command finds again."""

import json
import re

import pytest
import torch
import yaml

from hf_ddpm import HFDDPMPipeline
from hf_ddpm.cli import main as hf_ddpm
from hf_ddpm.data import ImageData
from hf_ddpm.metrics import feature_statistics
from hf_ddpm.metrics.reference import Reference, save_reference
from hf_ddpm.training.command_line import parse_command_line
from hf_ddpm.training.train import main, train

TINY = ["--preset", "tiny", "--image_size", "28", "--batch_size", "8", "--warmup_steps", "1", "--log_every", "2"]
TINY += ["--num_images", "4", "--num_inference_steps", "2", "--sampling.every", "null", "--checkpoints.every", "2"]
TINY += ["--tracker", "none", "--max_images", "80", "--cpu_threads", "1", "--checkpoints.keep", "9"]
MEASURED = ["--samples", "20", "--reference", "mnist-test"]


@pytest.fixture(autouse=True)
def own_assets(tmp_path, monkeypatch):
    """A cache of statistics that is empty when the test begins."""
    monkeypatch.setattr("hf_ddpm.metrics.reference.cached_assets_path", lambda *_: tmp_path / "assets")


def words(folder, *more):
    return [*TINY, "--output_dir", str(folder), "--total_steps", "6", *more]


def tiny(folder, *more):
    return train(*parse_command_line(words(folder, *more)))


def facts(checkpoint):
    return json.loads((checkpoint / "training.json").read_text())


def lines(folder):
    """The log without clocks."""
    found = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "images_per_second")} for line in found]


def test_the_command_finds_the_figures_of_the_card_again(tmp_path, capsys):
    """Of the last and of the best checkpoint: the test digits, the sampling seed, the sampler."""
    run = tmp_path / "run"
    tiny(run, *MEASURED, "--evaluation.every", "2", "--sampling_seed", "7")
    shown = capsys.readouterr().out
    assert "evaluation: 20 samples against statistics mnist-test, at the end" in shown
    assert "measured:   digit distance " in shown and f"best:       {run / 'best'}, step " in shown
    for checkpoint in (run / "checkpoint", run / "best"):
        kept = json.loads((checkpoint / "evaluation.json").read_text())
        again = [
            "evaluate",
            str(checkpoint),
            "--reference",
            "mnist-test",
            "-n",
            "20",
            "--allow-few",
            "--seed",
            "7",
            "--steps",
            "2",
        ]
        hf_ddpm([*again, "--device", "cpu", "--out", str(tmp_path / "again.json")])
        measured = json.loads((tmp_path / "again.json").read_text())
        assert measured["weights_sha256"] == kept["weights_sha256"]
        for one, other in zip(kept["numbers"], measured["numbers"], strict=True):
            assert one["name"] == other["name"] and one["value"] == pytest.approx(other["value"], rel=1e-3)
        card = (checkpoint / "README.md").read_text()
        assert f"| digit distance | {round(kept['numbers'][0]['value'], 4)} |" in card
        assert "model-index" in card and "Nothing was measured" not in card
        assert facts(checkpoint)["last_loss"] is not None


def test_the_best_is_the_smallest_of_the_log(tmp_path):
    run = tmp_path / "run"
    tiny(run, *MEASURED, "--evaluation.every", "1")
    name = "evaluation/digit distance"
    figures = {line["step"]: line[name] for line in lines(run) if name in line}
    assert [*figures] == [1, 2, 3, 4, 5, 6]
    chosen = facts(run / "best")["selection"]
    assert chosen["step"] == min(figures, key=figures.get) == facts(run / "best")["steps"]
    assert chosen["value"] == figures[chosen["step"]]
    assert HFDDPMPipeline.from_pretrained(run / "best").image_size == (28, 28)


def test_a_resumed_run_selects_what_the_uninterrupted_one_does(tmp_path):
    whole, part = tmp_path / "whole", tmp_path / "part"
    more = [*MEASURED, "--evaluation.every", "2"]
    tiny(whole, *more)
    tiny(part, *more)
    later = facts(part / "best")["steps"] > 2
    train(*parse_command_line(words(part, *more, "--resume", str(part / "states" / "step_00000002"))))
    assert lines(part) == lines(whole)
    assert facts(part / "best")["selection"] == facts(whole / "best")["selection"]
    assert later == (facts(whole / "best")["steps"] > 2)


def test_two_processes_select_the_same(tmp_path, on_two_processes):
    more = [*MEASURED, "--evaluation.every", "3"]
    tiny(tmp_path / "one", *more)
    done = on_two_processes("-m", "hf_ddpm.cli", "train", *words(tmp_path / "two", *more))
    assert done.returncode == 0, done.stderr
    one, two = (json.loads((tmp_path / name / "checkpoint" / "evaluation.json").read_text()) for name in ("one", "two"))
    for first, second in zip(one["numbers"], two["numbers"], strict=True):
        assert first["value"] == pytest.approx(second["value"], rel=1e-2)
    assert facts(tmp_path / "one" / "best")["steps"] == facts(tmp_path / "two" / "best")["steps"]


def test_the_embedded_digits_are_measured_unless_told_otherwise(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_ddpm.training.evaluation.OF_DIGITS", 16)
    checkpoint = tiny(tmp_path / "run")
    assert json.loads((checkpoint / "evaluation.json").read_text())["conditions"]["num_images"] == 16
    assert not (tmp_path / "run" / "best").exists()
    checkpoint = tiny(tmp_path / "none", "--samples", "0")
    assert not (checkpoint / "evaluation.json").exists() and facts(checkpoint)["metrics"] == []
    for name, more in (("small", ["--image_size", "8"]), ("colour", ["--channels", "3"])):  # no digits to that network
        assert not (tiny(tmp_path / name, *more) / "evaluation.json").exists()


def test_a_split_of_the_embedded_digits_that_is_named_is_the_one_that_counts(tmp_path):
    checkpoint = tiny(tmp_path / "run", "--samples", "20", "--test_split", "train[4500:4600]")
    found = json.loads((checkpoint / "evaluation.json").read_text())
    assert found["measured_on"] == "split train[4500:4600]"
    assert found["conditions"]["reference"]["num_images"] == 100


def test_a_reference_of_another_network_costs_no_training(tmp_path):
    statistics = feature_statistics(torch.randn(80, 64, generator=torch.Generator().manual_seed(0)))
    save_reference(Reference(statistics, None, {"extractor": "another"}), tmp_path / "other.safetensors")
    more = ["--samples", "20", "--reference", str(tmp_path / "other.safetensors")]
    with pytest.raises(SystemExit, match="error: the reference was made with extractor='another' but the samples"):
        main(words(tmp_path / "run", *more))
    assert not (tmp_path / "run").exists()


def test_images_held_back_from_training(tmp_path, capsys):
    """They are not trained on, they are measured against, and the card's record says so."""
    more = ["--samples", "20", "--held_back", "20"]
    checkpoint = tiny(tmp_path / "run", *more)
    assert "against 20 images held back from training" in capsys.readouterr().out
    record = json.loads((checkpoint / "evaluation.json").read_text())
    assert record["measured_on"] == "20 images held back from training"
    assert record["conditions"]["reference"]["num_images"] == 20
    block = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())["data"]
    rest, held = ImageData(**block), ImageData(**block, part="held_back")
    assert (rest.num_images, held.num_images) == (60, 20)
    everything = ImageData(**(block | {"held_back": 0}))
    of_all = {one.numpy().tobytes() for one in everything.pixels(torch.arange(80))}
    trained, tested = (
        {d.pixels(torch.tensor([i])).numpy().tobytes() for i in range(d.num_images)} for d in (rest, held)
    )
    assert not trained & tested and trained | tested == of_all


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (
            ["--samples", "20", "--test_source", "digits"],
            "there is no split 'test' in 'digits'.*hold back training images with --held_back",
        ),
        (["--samples", "1"], "evaluation.samples=1 is too small for a distance"),
        (["--samples", "0", "--evaluation.every", "2"], "evaluation.every=2 needs samples, but their number is 0"),
        (["--image_size", "8", "--evaluation.every", "2"], "evaluation.every=2 needs samples, but their number is 0"),
        (["--samples", "20", "--reference", "nowhere"], "nowhere does not contain the statistics"),
        (
            ["--samples", "20", "--reference", "mnist-test", "--image_size", "8"],
            r"evaluation: .* are not digits.*--evaluation.extractor, or measure nothing with --samples 0$",
        ),
        (
            ["--samples", "20", "--evaluation.every", "2", "--reference", "mnist-test", "--image_size", "8"],
            r"evaluation: .* are not digits.* measure nothing with --samples 0 --evaluation.every null$",
        ),
        (["--samples", "20", "--extractor", "./nowhere"], "cannot be opened as a vision model"),
        (["--held_back", "80"], "held_back is 80; it must be less than 80, the number of images of the dataset"),
        (["--part", "held_back"], "part is 'held_back', but held_back is 0"),
        (["--eta", "0.5", "--solver", "unipc"], "sampling.eta=0.5 does not apply to solver='unipc'"),
        (["--solver", "heun", "--prediction_type", "v_prediction"], "sampling: the solver heun would draw noise"),
        (["--solver", "heun"], "sampling: the solver heun does not support this network's prediction_type='sample'"),
    ],
)
def test_mistakes_cost_no_training(more, sentence, tmp_path):
    with pytest.raises(SystemExit) as stop:
        main(words(tmp_path / "run", *more))
    assert str(stop.value.code).startswith("error: ") and "\n" not in str(stop.value.code)
    assert re.search(sentence, str(stop.value.code))
    assert not (tmp_path / "run").exists()

"""The GPU benchmark keeps its time, writes what it has, and never takes a rehearsal for a measurement."""

import json
import subprocess
import sys
import time

import pytest
import torch

from benchmarks import gpu, gpu_page
from benchmarks.gpu import FULL_BUDGET, REHEARSAL_BUDGET, Order, begin, file_name, parse, run_part, run_until
from benchmarks.gpu_job import FULL, SUBJECTS, TINY, Job, note
from benchmarks.gpu_quality import known_speed, our_recipe, steps_between
from benchmarks.gpu_speed import COMPILED, EXAMPLE, OURS, TRAINING_PAIRS, speeds, take_turns
from benchmarks.options import Options
from benchmarks.report import write_json
from benchmarks.run import BENCHMARKS, write_page
from hf_ddpm.training.command_line import read_recipe

ON_CPU = "None of the numbers below was measured on a GPU"


@pytest.fixture
def folder(tmp_path):
    """A folder with files of the names that a command line asks for."""
    data = tmp_path / "data"
    data.mkdir()
    for split in ("train", "test"):
        (data / f"{split}.parquet").touch()
    return data


@pytest.fixture
def job(tmp_path):
    """What a part of a rehearsal is told."""
    write_json(tmp_path / "result.json", {"parts": {}})
    return Job(tmp_path / "result.json", tmp_path, 60.0, None, 0, TINY)


def finished(rehearsal):
    """A result with figures, of a rehearsal or of a GPU."""
    speed = {"hf_ddpm": 2000.0, "diffusers' example": 1000.0}
    stage = {"rounds": 5, "images_per_second": speed, "times_faster": [{"of": OURS, "over": EXAMPLE, "ratio": 2.0}]}
    machine = {"date": "2026-11-29", "cpu": "c", "cores": 8, "threads": 8, "load_before": 0.1, "python": "3"}
    machine |= {"torch": "2", "diffusers": "0", "gpu": None if rehearsal else "NVIDIA A100"}
    training = {"batch_size": 128, "mixed_precision": "bf16", "workers": 8, "stages": [stage], "ended": "in time"}
    point = {"step": 400, "images": 51200, "seconds": 40.0, "name": "FD (EfficientNet-Lite0)", "value": 123.0}
    quality = {"batch_size": 128, "compiled": True, "warmup_steps": 500, "samples": 2048, "points": [point]}
    final = {"name": "FD (EfficientNet-Lite0)", "value": 120.0, "measured_on": "split test", "step": 400}
    final["seconds_for_100"] = 1.5
    quality |= {"steps": 400, "seconds": 40.0, "final": final, "grid": "x.png", "grid_step": 400, "ended": "in time"}
    about = {"machine": machine, "command": "run", "quick": False, "rehearsal": rehearsal, "device": machine["gpu"]}
    return about | {"seed": 0, "recipe": "cifar10", "data": "d", "parts": {"training": training, "quality": quality}}


@pytest.mark.parametrize("budget", [FULL_BUDGET, REHEARSAL_BUDGET])
def test_parts_that_all_reach_their_limits_end_in_time(budget):
    for start in (0.0, 12.0, 60.0):
        spent = start
        for part in SUBJECTS["cifar10"].parts:
            spent += budget.limit(part, spent)
        assert spent == pytest.approx(budget.total - budget.closing)
    assert budget.limit("quality", budget.total + 1) == budget.limit("training", budget.total + 1) == 0
    assert min(budget.limit(part, 0) for part in SUBJECTS["cifar10"].parts) > budget.notice


def test_ten_minutes_and_two_are_not_exceeded_and_training_has_what_is_left():
    assert FULL_BUDGET.total < 600
    assert REHEARSAL_BUDGET.total < 120
    unhurried = FULL_BUDGET.limit("quality", 100)
    assert FULL_BUDGET.limit("quality", 300) == unhurried - 200
    worst = FULL_BUDGET.training + FULL_BUDGET.sampling
    assert FULL_BUDGET.limit("quality", worst + 15) > 270


def test_a_process_is_ended_at_its_limit_with_those_that_it_started(tmp_path):
    left = tmp_path / "left"
    child = f"import time, pathlib; time.sleep(3); pathlib.Path({str(left)!r}).touch()"
    code = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)"
    started = time.perf_counter()
    assert run_until([sys.executable, "-c", code], 1.0, tmp_path / "said", without_gpu=True) is None
    assert time.perf_counter() - started < 10
    time.sleep(4)
    assert not left.exists()


def test_a_rehearsal_sees_no_gpu(tmp_path):
    code = "import os, sys; print(os.environ['CUDA_VISIBLE_DEVICES'] == '', file=sys.stderr); sys.exit(3)"
    assert run_until([sys.executable, "-c", code], 60, tmp_path / "said", without_gpu=True) == 3
    assert (tmp_path / "said").read_text() == "True\n"


@pytest.mark.parametrize(("code", "ended"), [(0, "in time"), (None, "at its limit"), (1, "with an error")])
def test_how_a_part_ended_is_written_whatever_it_did(tmp_path, monkeypatch, code, ended):
    def run(command, seconds, complaints, without_gpu):
        complaints.write_text(f"Traceback\nerror: {tmp_path / 'data'} is full, and so is {tmp_path}")
        note(tmp_path / "result.json", "training", {"batch_size": 4})
        return code

    monkeypatch.setattr(gpu, "run_until", run)
    write_json(tmp_path / "result.json", {"parts": {}})
    run_part("training", Order(tmp_path / "data", tmp_path, 0, True), tmp_path / "result.json", tmp_path)
    text = (tmp_path / "result.json").read_text()
    part = json.loads(text)["parts"]["training"]
    assert (part["batch_size"], part["ended"]) == (4, ended)
    assert part.get("error") == ("error: <data> is full, and so is <work>" if code else None)
    assert str(tmp_path) not in text


def test_a_machine_without_a_gpu_rehearses(folder):
    assert parse([], on_gpu=False).rehearsal
    assert parse(["--rehearse"], on_gpu=True).rehearsal
    assert not parse(["--data", str(folder)], on_gpu=True).rehearsal
    assert parse(["--data", str(folder)], on_gpu=True).budget == FULL_BUDGET


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "training data is missing: set --data to a folder with train.parquet and test.parquet of CIFAR-10"),
        (["--data", "nowhere"], "--data nowhere must be a folder with train.parquet and test.parquet of CIFAR-10"),
        (["--rehearse", "--seed", "-1"], "--seed -1 must not be negative"),
    ],
)
def test_what_cannot_be_measured_is_one_sentence(words, sentence, capsys):
    with pytest.raises(SystemExit):
        parse(words, on_gpu=True)
    assert capsys.readouterr().err.strip().splitlines()[-1].endswith(f"error: {sentence}")


def test_a_rehearsal_names_no_gpu_even_where_there_is_one(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(gpu, "machine", lambda: {"gpu": "NVIDIA H200"})
    rehearsal = begin(Order(folder, tmp_path, 0, rehearsal=True))
    assert rehearsal.name == "rehearsal.json"
    assert "H200" not in rehearsal.read_text()
    measured = begin(Order(folder, tmp_path, 3, rehearsal=False))
    assert measured.name == "NVIDIA-H200.json"
    assert str(tmp_path) not in measured.read_text()
    found = json.loads(measured.read_text())
    assert (found["device"], found["seed"], found["rehearsal"]) == ("NVIDIA H200", 3, False)


def test_devices_are_names_of_files():
    assert file_name("NVIDIA GeForce RTX 4090 / 24GB") == "NVIDIA-GeForce-RTX-4090-24GB"
    assert (file_name(None), file_name(None, "cifar10-ddgan")) == ("rehearsal", "rehearsal-cifar10-ddgan")


def test_page_shows_devices_and_a_rehearsal_only_without_them(tmp_path):
    def page():
        write_page(Options(out=tmp_path))
        return (tmp_path / "README.md").read_text()

    write_json(tmp_path / "results" / "gpu" / "rehearsal.json", finished(rehearsal=True))
    rehearsed = page()
    assert "One GPU, ten minutes: a rehearsal without a GPU" in rehearsed
    assert rehearsed.index(ON_CPU) < rehearsed.index("### Training")
    write_json(tmp_path / "results" / "gpu" / "NVIDIA-A100.json", finished(rehearsal=False))
    measured = page()
    assert "One GPU, ten minutes: NVIDIA A100" in measured
    assert ON_CPU not in measured
    assert "| hf_ddpm | 2,000 | 64 | - |" in measured
    assert "| 400 | 51,200 | 40 | 123 |" in measured
    assert "120 against the split test; 100 images took 1.5 s" in measured


def test_what_a_part_had_measured_before_it_was_ended_is_shown():
    result = finished(rehearsal=False)
    result["parts"]["training"] |= {"ended": "at its limit", "limit_seconds": 190.0, "took_seconds": 190.1}
    result["parts"]["sampling"] = {"ended": "with an error", "took_seconds": 3.0, "error": "error: it is too large"}
    result["parts"]["quality"] = {"ended": "at its limit", "limit_seconds": 0.0, "took_seconds": 0.0}
    text = gpu_page.render(result)
    assert "| hf_ddpm | 2,000 |" in text
    assert "This part was stopped at its limit of 190 s; figures up to then are shown." in text
    assert "This part failed after 3 s: error: it is too large" in text


def test_ratios_are_those_of_the_same_rounds():
    found = speeds({OURS: [1.0, 2.0, 4.0], EXAMPLE: [2.0, 6.0, 4.0]}, 8, TRAINING_PAIRS)
    assert found["rounds"] == 3
    assert found["images_per_second"] == {OURS: 4.0, EXAMPLE: 2.0}
    assert found["times_faster"] == [{"of": OURS, "over": EXAMPLE, "ratio": 2.0}]


def test_contestants_take_turns_until_the_time_is_over_and_once_at_least():
    turns = []
    calls = {"a": lambda: turns.append("a"), "b": lambda: turns.append("b")}
    (found,) = take_turns(calls, 2, seconds=-1.0)
    assert turns == ["a", "a", "b", "b"]
    assert [len(times) for times in found.values()] == [1, 1]
    rounds = list(take_turns({"a": lambda: time.sleep(0.01)}, 1, seconds=0.1))
    assert 2 < len(rounds) < 12


def test_a_training_is_as_the_speed_that_was_measured_says(job):
    assert known_speed(job) == (1000, False)
    job.note("training", stages=[{"images_per_second": {OURS: 40.0}}])
    assert known_speed(job) == (40.0, False)
    job.note("training", stages=[{"images_per_second": {OURS: 40.0, COMPILED: 80.0}}])
    assert known_speed(job) == (80.0, True)
    assert steps_between(10.0, 40.0, 50) == 400
    assert steps_between(0.1, 40.0, 50) == 50


@pytest.mark.parametrize("name", SUBJECTS)
def test_the_recipe_on_a_gpu_is_the_shipped_one_but_for_what_the_page_says(tmp_path, folder, name):
    write_json(tmp_path / "result.json", {"parts": {}})
    job = Job(tmp_path / "result.json", tmp_path, 60.0, folder, 0, FULL, name)
    recipe, shipped = our_recipe(job), read_recipe(name)
    changed = {
        f"{block}.{key}"
        for block in shipped.keys() - {"family"}
        for key in recipe[block].keys() | shipped[block].keys()
        if recipe[block].get(key) != shipped[block].get(key)
    }
    of_the_machine = {"data.source", "data.split", "training.output_dir", "training.tracker", "training.cpu_threads"}
    of_the_clock = {"training.total_steps", "training.log_every", "optimization.warmup_steps", "checkpoints.every"}
    sampling = {"sampling.every", "sampling.num_inference_steps", "sampling.eta"}
    precision = {"training.mixed_precision", "training.compile"}
    evaluation = {f"evaluation.{key}" for key in ("every", "samples", "extractor", "test_split", "sampling_seed")}
    betas = {f"{block}.betas" for block in recipe} & changed
    assert (
        changed - betas - {"training.cpu_threads"} <= of_the_machine | of_the_clock | sampling | precision | evaluation
    )
    assert recipe["training"].get("channels_last") or name != "cifar10"


def test_the_benchmark_of_a_gpu_is_no_part_of_make_bench():
    assert not [name for name in BENCHMARKS if "gpu" in name]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "stem"), [("cifar10", "rehearsal"), ("cifar10-ddgan", "rehearsal-cifar10-ddgan")])
def test_a_rehearsal_runs_every_part(tmp_path, name, stem):
    """Two minutes at most, without any data but the embedded digits."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--rehearse", "--recipe", name, "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=gpu.ROOT, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr
    assert "Its figures are not those of a GPU" in done.stdout
    result = json.loads((tmp_path / "results" / "gpu" / f"{stem}.json").read_text())
    assert {part["ended"] for part in result["parts"].values()} == {"in time"}
    assert result["parts"].keys() == {*SUBJECTS[name].parts}
    assert result["device"] is None and result["machine"]["torch"] == torch.__version__
    assert len(result["parts"]["quality"]["points"]) > 1
    assert (tmp_path / "results" / "gpu" / f"{stem}.png").is_file()
    assert ON_CPU in (tmp_path / "README.md").read_text()

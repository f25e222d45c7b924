"""The benchmarks run, resume and render. Budgets are tiny: the figures mean nothing here."""

import json
import math
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers.optimization import get_scheduler
from PIL import Image
from safetensors.torch import load_file, save_file

from benchmarks import (
    architecture,
    before_after,
    ddgan,
    diffusers_example,
    gaussians,
    guidance,
    mode_coverage,
    quality_cell,
    stacked_mnist,
    throughput,
    time_to_quality,
)
from benchmarks.diffusers_example import DiffusersExample, to_tensor
from benchmarks.options import Options, parse
from benchmarks.ours import recipe_with
from benchmarks.quality_cell import Cell, run_cell, train_for
from benchmarks.report import section, table, verdict
from benchmarks.run import BENCHMARKS, main
from benchmarks.timing import Rounds
from hf_ddpm import HFVAE, unet_preset
from hf_ddpm.data import ImageData
from hf_ddpm.data.sources import open_source
from hf_ddpm.training.command_line import parse_command_line, read_recipe
from hf_ddpm.training.family import make_family

QUICK = Options(seconds=0.5, seeds=(0,), quick=True)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A folder with the results of every benchmark, the cells of time_to_quality trained in this process."""
    out = tmp_path_factory.mktemp("benchmarks")
    cells = [("ours", None), ("diffusers", None), *(("diffusers-tuned", lr) for lr in time_to_quality.TUNED_LRS[:2])]
    for arm, lr in cells:
        run_cell(time_to_quality.cell_of(QUICK, arm, 0, lr), out)
    main(["--quick", "--seconds", "0.5", "--seeds", "0", "--out", str(out)])
    return out


@pytest.mark.parametrize(
    "words",
    [
        *guidance.RECIPES.values(),
        *(arm.train for arm in ddgan.ARMS.values() if arm.train),
        *(architecture.words_of(name) for name in architecture.VARIANTS),
    ],
    ids=str,
)
def test_what_trains_for_hours_begins_with_a_recipe_that_is_whole(words):
    recipe, _ = parse_command_line([*words, "--tracker", "none"])
    make_family(recipe)


def test_the_plane_of_25_gaussians_is_counted_and_played():
    data = gaussians.SCALE * gaussians.grid(10_000, torch.Generator().manual_seed(0)).flatten(1)
    assert data.std() == pytest.approx(gaussians.SCALE, rel=0.02)
    found = gaussians.counted(data)
    assert found["modes"] == 25 and found["good"] == pytest.approx(1 - math.exp(-4.5), abs=0.01)
    assert found["KL"] < 0.005
    assert gaussians.counted(torch.zeros(100, 2)) == {"modes": 1, "good": 1.0, "KL": pytest.approx(math.log(25))}
    for arm in gaussians.ARMS.values():
        found = gaussians.counted(gaussians.played(replace(arm, total_steps=2, batch_size=8), 0))
        assert 0 <= found["modes"] <= 25 and 0 <= found["good"] <= 1


def test_benchmarks_that_train_arms_say_what_data_they_need(tmp_path, capsys):
    with pytest.raises(SystemExit):
        mode_coverage.main(["--data", str(tmp_path)])
    assert f"--data {tmp_path} must be a folder with train.parquet and test.parquet" in capsys.readouterr().err


def test_stacked_digits_are_three_digits_each(tmp_path):
    digits = open_source("digits").rows.select(range(20))
    (tmp_path / "mnist").mkdir()
    for split in ("train", "test"):
        digits.to_parquet(tmp_path / "mnist" / f"{split}.parquet")
    stacked_mnist.main(["--data", str(tmp_path / "mnist"), "--out", str(tmp_path / "out")])
    data = ImageData(str(tmp_path / "out"), split="test", image_size=28, channels=3, cache="none")
    grey = ImageData("digits", image_size=28, channels=1, cache="none", max_images=20).pixels(torch.arange(20))
    three = data.pixels(torch.arange(20))
    for channel in range(3):
        ours = sorted(image.numpy().tobytes() for image in three[:, channel])
        assert ours == sorted(image.numpy().tobytes() for image in grey[:, 0])
    assert not torch.equal(three[:, 0], three[:, 1])


@pytest.mark.slow
def test_every_benchmark_leaves_a_result_that_says_where_it_was_taken(results):
    for name in BENCHMARKS:
        result = json.loads((results / "results" / f"{name}.json").read_text())
        assert result["command"] == "python -m benchmarks.run --out <out> --seconds 0.5 --seeds 0 --quick"
        assert result["machine"]["torch"] == torch.__version__
        assert result["machine"]["cores"] >= 1


@pytest.mark.slow
def test_page_holds_every_table_and_no_path(results):
    page = (results / "README.md").read_text()
    assert all(f"## {benchmark.TITLE}" in page for benchmark in BENCHMARKS.values())
    assert page.count("these figures mean nothing") == len(BENCHMARKS)
    assert str(results) not in page


@pytest.mark.slow
def test_cells_keep_their_grid_and_their_settings(results):
    cells = sorted((results / "results" / "time_to_quality").glob("*.json"))
    assert len(cells) == 4  # all from the fixture: main trained none of them again
    for path in cells:
        assert Image.open(path.with_suffix(".png")).size == (8 * 28, 8 * 28)
        cell = json.loads(path.read_text())
        assert cell["num_samples"] == 64
        assert str(Path.cwd()) not in path.read_text()


@pytest.mark.slow
def test_finished_cell_counts_only_for_its_own_settings(results):
    cell = time_to_quality.cell_of(QUICK, "ours", 0)
    assert cell.done(results)["arm"] == "ours"
    assert replace(cell, seconds=9.0).done(results) is None
    assert replace(cell, seed=1).done(results) is None


def test_best_learning_rate_stands_for_the_tuned_arm():
    def cell(arm, lr, distance):
        shared = {"seed": 0, "share": 0.5, "steps": 10, "batch_size": 16, "weights": 5, "last_loss": 0.1}
        return {"arm": arm, "lr": lr, "distance": distance, **shared}

    result = {
        "seconds": 300.0,
        "num_samples": 1000,
        "data": "digits",
        "best_lr": 1e-3,
        "real": {"distance": 5.0, "share": 0.96},
        "cells": [
            cell("ours", None, 20.0),
            cell("diffusers", None, 100.0),
            cell("diffusers-tuned", 3e-4, 60.0),
            cell("diffusers-tuned", 1e-3, 40.0),
        ],
    }
    assert [c["lr"] for c in time_to_quality.chosen(result)["diffusers-tuned"]] == [1e-3]
    text = time_to_quality.render(result)
    assert "| 4 | at most 8: reached |" in text
    assert "| 0.2 | at most 0.25: reached |" in text
    assert "| 0.5 | at most 0.6: reached |" in text
    assert "| 0.5 | at least 0.7: missed |" in text


def test_training_stops_at_the_clock_and_its_plan_ends_there():
    plans: list[int] = []
    losses, seconds = train_for(lambda: time.sleep(0.005), plans.append, seconds=0.2)
    assert 0.2 <= seconds < 1
    assert 10 < len(losses) <= 40
    assert all(plan >= done for done, plan in enumerate(plans, start=1))
    assert plans[-1] == len(losses)


def test_example_follows_the_learning_rate_of_diffusers():
    stock = get_scheduler(
        "cosine", torch.optim.SGD([torch.zeros(1)], 1.0), num_warmup_steps=500, num_training_steps=3000
    )
    ours = [diffusers_example.learning_rate(step, 3000) for step in range(0, 3001, 50)]
    assert ours == pytest.approx([stock.lr_lambdas[0](step) for step in range(0, 3001, 50)])


def test_speedup_is_the_ratio_of_the_times():
    times = Rounds({"fast": lambda: time.sleep(0.002), "slow": lambda: time.sleep(0.01)}, rounds=3)
    assert times.median("fast") < times.median("slow")
    assert 2 < times.speedup("fast", over="slow") < 6
    assert all(len(seconds) == 3 for seconds in times.seconds.values())


def test_example_transform_is_the_training_grid():
    digits = open_source("digits").rows
    x = to_tensor(digits[0]["image"], channels=1, size=28, pad=False)
    assert x.shape == (1, 28, 28)
    assert x.min() == -1 and x.max() <= 1
    padded = to_tensor(digits[0]["image"], channels=1, size=32, pad=True)
    assert torch.equal(padded[:, 2:30, 2:30], x)
    assert (padded.sum() - x.sum()).item() == pytest.approx(-(32 * 32 - 28 * 28))  # a black border


def test_example_learns_and_averages():
    torch.manual_seed(0)
    example = DiffusersExample(unet_preset("tiny"), open_source("digits").rows, total_steps=600, lr=5e-2)  # 8x8 pixels
    losses = [example.step() for _ in range(50)]
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])
    weights = [w.clone() for w in example.accelerator.unwrap_model(example.model).parameters()]
    averaged = list(example.averaged_model().parameters())
    assert not torch.equal(weights[0], averaged[0])


def test_default_unet_is_the_one_of_the_example():
    with torch.device("meta"):
        model = quality_cell.UNet2DModel(**quality_cell.DEFAULT_UNET)
    assert sum(p.numel() for p in model.parameters()) == 113_668_609


def test_networks_of_the_throughput_benchmark_can_be_built():
    for overrides in throughput.NETWORKS.values():
        recipe = recipe_with("mnist", overrides)
        with torch.device("meta"):
            unet_preset(
                **{"name": recipe["model"]["preset"]} | {k: v for k, v in recipe["model"].items() if k != "preset"}
            )


@pytest.mark.slow
def test_nothing_heavy_is_imported_before_it_is_used(results):
    imported = json.loads((results / "results" / "startup.json").read_text())["imported"]
    assert set(imported["hf_ddpm"]) <= set(imported["diffusers"])


def test_tables_and_verdicts():
    assert (
        table(["a", "b"], [["x", 0.12345], ["y", 1234.5]]) == "| a | b |\n| --- | ---: |\n| x | 0.123 |\n| y | 1,234 |"
    )
    assert verdict(5.0, 4) == "at least 4: reached"
    assert verdict(5.0, 4, at_most=True) == "at most 4: missed"


def test_data_without_its_files_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        parse(["--data", str(tmp_path)], list(BENCHMARKS))
    assert "must be a folder with train.parquet and test.parquet" in capsys.readouterr().err


def test_section_names_machine_and_command():
    machine = {"date": "d", "cpu": "c", "cores": 2, "gpu": None, "threads": 2, "load_before": 0.1}
    result = {"machine": {**machine, "python": "3", "torch": "2", "diffusers": "0"}, "command": "run", "quick": False}
    assert "2 cores of c" in section("T", "about", result, "body")


def test_cell_names_are_distinct():
    cells = [Cell("diffusers-tuned", seed, 300.0, lr) for seed in (0, 1) for lr in time_to_quality.TUNED_LRS]
    assert len({cell.name for cell in cells}) == 8


@pytest.mark.parametrize("name", before_after.shipped(before_after.ROOT))
def test_a_shrunken_recipe_is_small_and_keeps_its_kind(tmp_path, name):
    shipped = read_recipe(name)
    recipe, _ = parse_command_line(["--recipe", name, *before_after.shrunken(name, tmp_path, tmp_path)])
    assert (recipe["training"]["total_steps"], recipe["training"]["batch_size"]) == (3, 4)
    assert recipe["data"]["source"] in ("digits", str(tmp_path))
    for block in ("scheduler", "objective", "elbo", "optimization", "ema"):
        changed = {key for key, value in recipe.get(block, {}).items() if shipped[block].get(key) != value}
        assert changed <= {"num_train_timesteps", "warmup_steps", "betas"}  # betas: a list becomes a tuple
    with torch.device("meta"):
        if "vae" in recipe:
            keys = {"sample_size": recipe["data"]["image_size"], "in_channels": recipe["data"]["channels"]}
            model = HFVAE(**keys, **recipe["vae"])
        else:
            model = unet_preset(**{"name" if k == "preset" else k: v for k, v in recipe["model"].items()})
    assert sum(p.numel() for p in model.parameters()) < 200_000


def test_equal_bits_are_told_from_equal_numbers():
    nan = torch.tensor([float("nan"), 0.0])
    assert before_after.equal({"a": [nan, 1, None]}, {"a": [nan.clone(), 1, None]})
    assert not before_after.equal(nan, torch.tensor([float("nan"), -0.0]))
    assert not before_after.equal(torch.zeros(2), torch.zeros(2, dtype=torch.float64))
    assert not before_after.equal(torch.zeros(2), torch.zeros(1, 2))
    assert not before_after.equal({"a": 1}, {"a": 1, "b": 2})
    assert not before_after.equal([1.0], [1.0 + 2**-52])
    assert not before_after.equal([1], [True])
    assert before_after.without({"a": {"seconds": 1, "bits": [{"date": 2}]}}, {"seconds", "date"}) == {
        "a": {"bits": [{}]}
    }


@pytest.fixture(scope="module")
def one_checkout_twice(tmp_path_factory):
    """What is found when this checkout is compared with itself by one recipe."""
    folder = tmp_path_factory.mktemp("before_after")
    sides = {n: before_after.Side(before_after.ROOT, sys.executable, folder / n) for n in ("before", "after")}
    return folder, before_after.measure(sides, ["mnist-vae-aevb"], rounds=0)


@pytest.mark.slow
def test_a_checkout_gives_the_bits_that_it_gives_again(one_checkout_twice):
    _, found = one_checkout_twice
    (row,) = found["recipes"]
    assert row["parameters"][0] == row["parameters"][1] > 0
    assert {row[key] for key in ("losses", "averaged", "raw", "images", "likelihood")} == {True}
    text = before_after.render(found)
    assert text.count("equal") == 5
    assert "DIFFERENT" not in text


@pytest.mark.slow
def test_a_changed_weight_image_or_figure_is_seen(one_checkout_twice):
    folder, _ = one_checkout_twice
    for name in ("before", "after"):
        shutil.copytree(folder / name / "mnist-vae-aevb", folder / f"{name} again" / "mnist-vae-aevb")
    run = folder / "after again" / "mnist-vae-aevb"
    (weights,) = [f for f in (run / "checkpoint").glob("*/*.safetensors") if ".raw." not in f.name]
    changed = load_file(weights)
    next(iter(changed.values())).view(-1)[0] += 1e-3
    save_file(changed, weights, metadata={"format": "pt"})
    measured = json.loads((run / "likelihood.json").read_text())
    measured["a figure more"] = 1.0
    (run / "likelihood.json").write_text(json.dumps(measured))
    Image.new("L", (4, 4)).save(run / "grid.png")
    row = before_after.compare("mnist-vae-aevb", folder / "before again", folder / "after again")
    assert (row["averaged"], row["raw"], row["images"], row["likelihood"]) == (False, True, False, False)
    assert before_after.render({"recipes": [row], "times": None}).count("DIFFERENT") == 3


def test_times_are_shown_with_their_ratio():
    steps = {"before": [0.1, 0.2, 0.1], "after": [0.11, 0.2, 0.1]}
    text = before_after.render({"recipes": [], "times": {"training step": steps}})
    assert "| training step | 100 | 110 | 1 | at most 1.05: reached |" in text


def test_a_python_of_another_checkout_is_refused(tmp_path):
    with pytest.raises(SystemExit, match=r"install .* for it with pip install -e"):
        before_after.check_import(before_after.Side(tmp_path, sys.executable, tmp_path))
    with pytest.raises(SystemExit):
        before_after.main(["--before", str(tmp_path), "--before-python", sys.executable])

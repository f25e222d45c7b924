"""Compare two checkouts of this project, before and after a change: are the results identical, and as fast?

    python -m benchmarks.before_after --before <another checkout> --before-python <the Python it is installed for>

Both sides are used like a user would use them, with command lines and public classes, and their files are compared.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.report import Result, machine, table, verdict, write_json
from hf_ddpm import UNET_PRESETS

TITLE = "Before and after a change"
ABOUT = """A small copy of every shipped recipe that draws images (a tiny network, small images, 3 steps of 4 images) is
trained in two checkouts with the same command line, each in its own process and on one thread. Then it is sampled and
its likelihood is measured. The losses, averaged and raw weights, images and likelihoods are compared bit by bit. A
training step and a sampling step of the `mnist` recipe itself are timed in turns; the ratio (after / before) is the
median of the ratios of the rounds."""
ROOT = Path(__file__).resolve().parent.parent
ALONE = Path(__file__).with_name("before_after_side.py").read_text()  # it runs with the packages of either checkout
EMBEDDED = {"digits", "ylecun/mnist"}  # sources that are replaced by the embedded digits
IMAGES = 256  # the smallest number of images that `hf-ddpm likelihood` accepts
SHORT = ["--total_steps", "3", "--batch_size", "4", "--warmup_steps", "1", "--log_every", "1", "--num_images", "4"]
CALM = ["--tracker", "none", "--cpu_threads", "1"]
OF_NO_RESULT = {"data", "date", "seconds", "command", "checkpoint", "versions", "path"}  # not compared in JSON files


@dataclass(frozen=True)
class Side:
    """One of the two checkouts.

    Args:
        folder: The folder of the checkout.
        python: The Python for which it is installed.
        work: The folder for its output.
    """

    folder: Path
    python: str
    work: Path

    def start(self, words: Sequence[str], **options: Any) -> subprocess.Popen[str]:
        """Start a Python process in the checkout, with one thread, its own caches and no network."""
        own = {
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "TQDM_DISABLE": "1",
            "HF_DATASETS_CACHE": str(self.work / "cache"),
        }
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | own
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
        return subprocess.Popen([self.python, *words], cwd=self.folder, env=environment, **pipes)

    def run(self, *words: str) -> str:
        """Run a Python process in the checkout and return its output.

        Raises:
            SystemExit: If it failed, with the end of its error output.
        """
        process = self.start(words)
        said, complained = process.communicate()
        if process.returncode:
            sys.exit(f"{self.work.name}: a process failed:\n{complained[-2000:]}")
        return said

    def checkpoint(self, recipe: str) -> Path:
        return self.work / recipe / "checkpoint"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.before_after", description=__doc__)
    parser.add_argument("--before", type=Path, required=True, help="the other checkout")
    parser.add_argument("--before-python", required=True, help="the Python for which the other checkout is installed")
    parser.add_argument("--only", nargs="+", choices=shipped(ROOT), metavar="RECIPE", help="compare these recipes")
    parser.add_argument("--rounds", type=int, default=3, help="number of timing rounds (default: 3); 0 skips timing")
    parser.add_argument("--out", type=Path, default=Path("benchmarks"), help="folder that contains results/")
    options = parser.parse_args(argv)
    if not (options.before / "training" / "recipes").is_dir():
        parser.error(f"--before {options.before} is not a checkout of this project: it has no training/recipes")
    both = [name for name in shipped(ROOT) if name in shipped(options.before)]
    names = [name for name in both if options.only is None or name in options.only]
    about = {"machine": machine(), "command": command_of(options), "quick": False}
    with tempfile.TemporaryDirectory() as temporary:
        sides = {
            "before": Side(options.before.resolve(), options.before_python, Path(temporary) / "before"),
            "after": Side(ROOT, sys.executable, Path(temporary) / "after"),
        }
        result = about | measure(sides, names, options.rounds)
    write_json(options.out / "results" / "before_after.json", result)
    print(render(result))


def command_of(options: argparse.Namespace) -> str:
    """Return the command line for the results, without paths of this machine."""
    only = ["--only", *options.only] if options.only else []
    words = ["--before <checkout>", "--before-python <python>", *only, "--rounds", str(options.rounds)]
    return " ".join(["python -m benchmarks.before_after", *words])


WITHOUT_LIKELIHOOD = ("classifier", "ddgan")  # families


def shipped(checkout: Path) -> list[str]:
    """Return the recipes of models with a likelihood, which is also compared."""
    paths = sorted((checkout / "training" / "recipes").glob("*.yaml"))
    return [path.stem for path in paths if yaml.safe_load(path.read_text()).get("family") not in WITHOUT_LIKELIHOOD]


def measure(sides: Mapping[str, Side], names: Sequence[str], rounds: int) -> Result:
    """Train, sample and measure each recipe on both sides, compare the results, then measure times."""
    for side in sides.values():
        side.work.mkdir(parents=True)
        check_import(side)
    images = sides["before"].work.parent / "images"
    draw_pictures(images)
    names = sorted(names, key=lambda name: "latents" in blocks_of(name))  # a VAE comes before models of its latents
    with ThreadPoolExecutor(len(sides)) as pool:
        list(pool.map(lambda side: use(side, names, images), sides.values()))
    rows = [compare(name, *(side.work for side in sides.values())) for name in names]
    return {"recipes": rows, "times": times(sides, rounds) if rounds else None}


def check_import(side: Side) -> None:
    """Check that a Python imports hf_ddpm from its checkout."""
    look = "import importlib.util; print(importlib.util.find_spec('hf_ddpm').origin)"
    place = Path(side.run("-c", look).strip()).resolve()
    if side.folder not in place.parents:
        sys.exit(f"{side.python} imports hf_ddpm from {place.parent}: install {side.folder} for it with pip install -e")


def draw_pictures(folder: Path) -> None:
    """Write colour images of waves, 48 x 40, the same at every call."""
    folder.mkdir()
    y, x = np.mgrid[0:48, 0:40]
    for i, (a, b) in enumerate(np.random.default_rng(0).uniform(0.05, 0.5, (IMAGES, 2))):
        waves = [np.sin(a * x + b * y + phase) for phase in (0, 1 + i % 3, 4)]
        place = folder / str(i % 2)  # the classes of recipes with labels
        place.mkdir(exist_ok=True)
        Image.fromarray(np.uint8(127.5 + 127.5 * np.stack(waves, axis=-1))).save(place / f"{i:03}.png")


def use(side: Side, names: Sequence[str], images: Path) -> None:
    """Run everything on one side: train each recipe, sample from it, and measure it."""
    calls = [
        {
            "train": ["--recipe", name, *shrunken(name, images, side.work), "--output_dir", str(side.work / name)],
            "checkpoint": str(side.checkpoint(name)),
            "likelihood": likelihood_options(name, images),
        }
        for name in names
    ]
    side.run("-c", ALONE, "all", json.dumps(calls))


def blocks_of(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / "training" / "recipes" / f"{name}.yaml").read_text())


def shrunken(name: str, images: Path, work: Path) -> list[str]:
    """Return the options of train.py that make a recipe small: its network, images, T, steps and batch."""
    blocks = blocks_of(name)
    data, latents = blocks["data"], blocks.get("latents", {})
    keys: dict[str, Any] = {"data.source": source_of(name, images)}
    keys["data.image_size"] = [24, 20] if isinstance(data["image_size"], list) else 16
    keys |= {"crop_box": [2, 3, 34, 35]} if "crop_box" in data else {}
    keys |= {"num_workers": 0} if "num_workers" in data else {}
    keys |= {"latents.vae": str(work / Path(latents["vae"]).parent.name / "checkpoint")} if latents else {}
    if "vae" in blocks:
        vae = blocks["vae"]
        keys["latent_channels"] = 4
        if vae["network"] == "mlp":
            keys["hidden_sizes"] = [16] * len(vae["hidden_sizes"])
        else:
            keys |= {"block_out_channels": [8] * len(vae["block_out_channels"]), "norm_num_groups": 4}
    else:
        config = UNET_PRESETS[blocks["model"]["preset"]].config
        levels = len(config["block_out_channels"])
        keys["data.image_size"] = max(16, 2 ** (levels - 1))
        keys |= {"block_out_channels": [4] + [8] * (levels - 1), "layers_per_block": 1, "norm_num_groups": 2}
        keys |= {"scheduler.num_train_timesteps": 8, "num_inference_steps": 3}
        keys |= {} if config.get("attention_head_dim") is None else {"attention_head_dim": 4}
        keys |= {"time_embedding_channels": 8} if config.get("time_embedding_channels") else {}
    words = [
        word
        for key, value in keys.items()
        for word in (f"--{key}", value if isinstance(value, str) else json.dumps(value))
    ]
    return [*words, *SHORT, *CALM]


def source_of(name: str, images: Path) -> str:
    return "digits" if blocks_of(name)["data"]["source"] in EMBEDDED else str(images)


def likelihood_options(name: str, images: Path) -> list[str] | None:
    """Return the options of `hf-ddpm likelihood` for a reduced recipe; None for latents, which are not supported."""
    blocks = blocks_of(name)
    words = ["--data", source_of(name, images), "-n", str(IMAGES), "--device", "cpu"]
    if "vae" in blocks:
        return [*words, "--num-samples", "2"]
    return None if "latents" in blocks else [*words, "--ode-steps", "2"]


def compare(name: str, before: Path, after: Path) -> dict[str, Any]:
    """Compare which results of a recipe are identical on both sides."""
    folders = before / name, after / name

    def same(found: Callable[[Path], Any]) -> bool:
        one, two = map(found, folders)
        return equal(one, two)

    return {
        "recipe": name,
        "parameters": [number_of_weights(folder) for folder in folders],
        "losses": same(losses),
        "averaged": same(lambda folder: weights(folder, raw=False)),
        "raw": same(lambda folder: weights(folder, raw=True)),
        "images": same(pictures),
        "likelihood": same(likelihood) if likelihood(folders[0]) is not None else None,
    }


def equal(one: Any, two: Any) -> bool:
    """Return whether two results, dictionaries and lists of arrays and plain values, are identical bit by bit."""
    if isinstance(one, Tensor) and isinstance(two, Tensor):
        same_kind = one.dtype == two.dtype and one.shape == two.shape
        return same_kind and one.contiguous().numpy().tobytes() == two.contiguous().numpy().tobytes()  # NaN included
    if isinstance(one, dict) and isinstance(two, dict):
        return one.keys() == two.keys() and all(equal(value, two[key]) for key, value in one.items())
    if isinstance(one, list) and isinstance(two, list):
        return len(one) == len(two) and all(map(equal, one, two))
    return type(one) is type(two) and one == two


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "log.jsonl").read_text().splitlines()]


def weights(run: Path, raw: bool) -> dict[str, Tensor]:
    """Return all weights of a checkpoint, the averaged or the raw ones; for a latent model, also those of its VAE.

    Raises:
        FileNotFoundError: If the checkpoint has none.
    """
    files = [f for f in sorted((run / "checkpoint").glob("*/*.safetensors")) if raw == (".raw." in f.name)]
    if not files:
        raise FileNotFoundError(f"{run / 'checkpoint'} contains no {'raw' if raw else 'averaged'} weights")
    return {f"{file.parent.name}.{key}": w for file in files for key, w in load_file(file).items()}


def number_of_weights(run: Path) -> int:
    return sum(w.numel() for w in weights(run, raw=False).values())


def pictures(run: Path) -> dict[str, Any]:
    """Return the grid of training, that of `hf-ddpm sample`, and the pipeline's images before they are rounded."""
    checkpoint = run / "checkpoint"
    grids = {f.name: torch.from_numpy(np.array(Image.open(f))) for f in (checkpoint / "samples.png", run / "grid.png")}
    return {**grids, **load_file(run / "images.safetensors")}


def likelihood(run: Path) -> Any:
    """Return the output of `hf-ddpm likelihood` without times and places; None if it was not measured."""
    file = run / "likelihood.json"
    return without(json.loads(file.read_text()), OF_NO_RESULT) if file.is_file() else None


def without(value: Any, keys: set[str]) -> Any:
    if isinstance(value, dict):
        return {k: without(v, keys) for k, v in value.items() if k not in keys}
    return [without(v, keys) for v in value] if isinstance(value, list) else value


def times(sides: Mapping[str, Side], rounds: int) -> dict[str, Any]:
    """Measure the seconds of a training step and of a sampling step of the recipe `mnist` on each side, by round."""
    training: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds):
        for name in in_turn(sides, turn):
            training[name].append(training_step(sides[name], turn))
    sampling: dict[str, list[float]] = {name: [] for name in sides}
    workers = {name: sampler(side) for name, side in sides.items()}
    for turn in range(-1, 4 * rounds):  # the first turn warms up
        for name in in_turn(sides, turn):
            seconds = call(workers[name])
            if turn >= 0:
                sampling[name].append(seconds)
    for worker in workers.values():
        worker.communicate()
    return {"training step": training, "sampling step": sampling}


def in_turn(sides: Mapping[str, Side], turn: int) -> list[str]:
    """Return the sides in their order, which alternates between rounds."""
    return list(sides)[:: 1 if turn % 2 else -1]


def training_step(side: Side, turn: int) -> float:
    """Return the median seconds of a step in a short run, without its first steps."""
    run = side.work / f"timed-{turn}"
    words = ["--total_steps", "20", "--log_every", "1", "--num_images", "1", "--num_inference_steps", "1", *CALM]
    side.run("training/train.py", "--recipe", "mnist", *words, "--output_dir", str(run))
    seconds = [json.loads(line)["seconds"] for line in (run / "log.jsonl").read_text().splitlines()]
    return statistics.median(b - a for a, b in itertools.pairwise(seconds[4:]))


def sampler(side: Side) -> subprocess.Popen[str]:
    """Start a process that draws a batch for each line of input."""
    words = ["-c", ALONE, "sample", str(side.work / "timed-0" / "checkpoint")]
    return side.start(words, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)


def call(worker: subprocess.Popen[str]) -> float:
    """Return the seconds of a sampling step in a process of `sampler`."""
    assert worker.stdin is not None and worker.stdout is not None
    print("draw", file=worker.stdin, flush=True)
    return float(worker.stdout.readline())


def render(result: Result) -> str:
    def word(value: Any) -> str:
        return "-" if value is None else "equal" if value else "DIFFERENT"

    checks = ("losses", "averaged", "raw", "images", "likelihood")
    header = ["recipe, reduced", "parameters", "losses", "averaged weights", "raw weights", "images", "likelihood"]
    rows = []
    for row in result["recipes"]:
        one, two = row["parameters"]
        count = f"{one:,}" if one == two else f"{one:,} before, {two:,} after"
        rows.append([row["recipe"], count, *(word(row[check]) for check in checks)])
    parts = [table(header, rows)]
    if result["times"]:
        parts.append(
            table(["`mnist`", "before, ms", "after, ms", "after / before", "target"], timed_rows(result["times"]))
        )
    return "\n\n".join(parts)


def timed_rows(found: Mapping[str, Mapping[str, Sequence[float]]]) -> list[list[object]]:
    rows: list[list[object]] = []
    for name, seconds in found.items():
        before, after = seconds["before"], seconds["after"]
        ratio = statistics.median(b / a for a, b in zip(before, after, strict=True))
        medians = [statistics.median(side) * 1e3 for side in (before, after)]
        rows.append([name, *medians, ratio, verdict(ratio, 1.05, at_most=True)])
    return rows


if __name__ == "__main__":
    main()

"""ADM's claims about the network, on conditional digits: equal steps, three seeds.

    python -m benchmarks.architecture --data <folder with train.parquet and test.parquet of MNIST>

Trains eight variants of `mnist-conditional` with one thread each, so that two of these commands, with different
`--seeds` or `--only`, use two cores. A variant takes eight minutes, the one with attention at all levels fifteen.
Existing results are kept.
"""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from benchmarks.by_command import Place, evaluated, figures_of, measure_arms, trained
from benchmarks.guidance import spread
from benchmarks.report import Result, table

TITLE = "ADM's changes to the network, on digits"
ABOUT = """`mnist-conditional` was trained on the 60,000 training digits, with one change at a time and the same 1,400
steps. Each row was measured with 1,000 samples, a tenth of each class, by 50 trailing steps of Algorithm 2, seed 0,
against the 10,000 test digits. The values are medians of three training seeds, with the smallest and the largest. The
last column is the change of FID on ImageNet 128x128 in the paper's Tables 1 to 3, quoted from memory; there, the data
and the size are different, and the network has a thousand times as many weights."""
STEPS = 1400  # half of the recipe's, because there are 24 trainings
FIGURES = ("digit distance", "class accuracy", "precision", "recall")
ATTENTION = ("AttnDownBlock2D", "AttnUpBlock2D")


class Variant(NamedTuple):
    """A network with one change to that of the recipe: its keyword arguments, and the result in the paper."""

    model: dict[str, Any]
    paper: str


def _attended(*levels: int, others: tuple[str, str] = ("DownBlock2D", "UpBlock2D"), **more: Any) -> dict[str, Any]:
    """Return keyword arguments for attention at some of the levels, from 0 (28x28) to 2 (7x7)."""
    kinds = [ATTENTION if level in levels else others for level in range(3)]
    down, up = [kind[0] for kind in kinds], [kind[1] for kind in reversed(kinds)]
    return {"down_block_types": down, "up_block_types": up, **more}


RESAMPLED: dict[str, Any] = {
    "others": ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D"),
    "downsample_type": "resnet",
    "upsample_type": "resnet",
}
VARIANTS = {
    "as it is: addition, attention in the middle": Variant({}, ""),
    "adaptive group norm": Variant({"resnet_time_scale_shift": "scale_shift"}, "15.08 to 13.06"),
    "attention at 7x7, one head": Variant(_attended(2), ""),
    "attention at 7x7, four heads": Variant(_attended(2, attention_head_dim=16), "-0.97 (4 heads)"),
    "attention at 7x7, heads of 8 channels": Variant(_attended(2, attention_head_dim=8), "-1.03 (64 channels)"),
    "attention at all levels, one head": Variant(_attended(0, 1, 2), "-0.66 (32, 16, 8 for 16)"),
    "residual resampling": Variant(_attended(**RESAMPLED), "-1.21"),
    "all of ADM's, attention at 14x14 and 7x7": Variant(
        _attended(1, 2, attention_head_dim=8, resnet_time_scale_shift="scale_shift", **RESAMPLED), "-3.00"
    ),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Train and measure what is missing, and write the medians."""
    print(render(measure_arms("architecture", str(__doc__), argv, list(VARIANTS), measure)))


def measure(place: Place, name: str, seed: int) -> Result:
    """Train one variant with one seed, and return its figures."""
    checkpoint = trained(name, seed, place, *words_of(name))
    walk = ["--eta", "none", "--steps", "50", "--spacing", "trailing"]
    found = evaluated(name, seed, place, checkpoint, "--metrics", "fd,prdc,classes", *walk)
    facts = json.loads((checkpoint / "training.json").read_text())
    about = {"variant": name, "weights": facts["weights"], "seconds": facts["seconds"]}
    return {**about, **figures_of(found, FIGURES)}


def words_of(name: str) -> list[str]:
    """Return the options of `train.py` for a variant."""
    words = ["--recipe", "mnist-conditional", "--samples", "0", "--total_steps", str(STEPS), "--cpu_threads", "1"]
    words += [word for key, value in VARIANTS[name].model.items() for word in (f"--model.{key}", json.dumps(value))]
    if "resnet_time_scale_shift" in VARIANTS[name].model:
        words += ["--model.attn_norm_num_groups", "4"]
    return words


def render(result: Result) -> str:
    """Return a table with a row for each variant."""
    rows = [
        [name, f"{row['weights'][0]:,}", *(spread(row[figure]) for figure in FIGURES), VARIANTS[name].paper]
        for name, row in result["arms"].items()
    ]
    return table(["network", "weights", *FIGURES, "the paper's FID"], rows)


if __name__ == "__main__":
    main()

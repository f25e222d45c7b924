"""One part of the GPU benchmark in its own process, which `benchmarks.gpu` starts, and stops at its time limit."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks.gpu_job import FULL, RECIPE, SUBJECTS, TINY, Job
from benchmarks.gpu_quality import measure_quality
from benchmarks.gpu_speed import measure_sampling, measure_training
from hf_ddpm.errors import exit_with_a_sentence

PARTS: Mapping[str, Callable[[Job], None]] = {
    "training": measure_training,
    "sampling": measure_sampling,
    "quality": measure_quality,
}


def main(argv: Sequence[str] | None = None) -> None:
    part, job = parse(argv)
    with exit_with_a_sentence():
        PARTS[part](job)


def parse(argv: Sequence[str] | None) -> tuple[str, Job]:
    """Parse the part and its settings."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_part", description=__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--result", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--recipe", dest="name", choices=SUBJECTS, default=RECIPE)
    parser.add_argument("--rehearse", action="store_true")
    given = vars(parser.parse_args(argv))
    part, scale = given.pop("part"), TINY if given.pop("rehearse") else FULL
    return part, Job(**given, scale=scale)


if __name__ == "__main__":
    main()

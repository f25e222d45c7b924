"""`hf-ddpm sweep`: evaluate a checkpoint over a grid of options, one cell after another."""

import argparse
import copy
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_ddpm.commands import evaluate
from hf_ddpm.commands.options import require_all_processes, require_packages, require_writable
from hf_ddpm.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from accelerate import Accelerator

# The values of an axis are separated by commas, so an interval, which contains one, cannot be varied.
NO_AXES = {"--over", "--out", "--samples", "--device", "--guidance-interval", "--help", "-h"}
NO_CONDITIONS = {"over", "out", "run", "parser", "device", "batch_size", "samples", "samples_format"}
Cell = dict[str, str]  # the value of each axis, as it is typed


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("checkpoint", help="a folder saved by training, or a Hub name")
    parser.add_argument(
        "--over",
        action="append",
        default=[],
        metavar="OPTION=A,B,...",
        help="an option of evaluate and its values, such as steps=5,10,20; repeat it for a grid",
    )
    evaluate.add_measure_options(parser)
    parser.add_argument("--out", default="sweep", help="folder for a record of each cell, a table and a plot")
    parser.set_defaults(parser=parser)


def run(options: argparse.Namespace) -> None:
    """Measure the cells without a record; write the table and the plot of all cells, and print the table."""
    from accelerate import Accelerator

    from hf_ddpm.evaluation.sweep import draw_sweep, sweep_table

    require_packages("the plot of a sweep", "matplotlib")
    axes = _axes(options)
    cells = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    of_cells = [_options_of(options, cell) for cell in cells]  # raises errors before the first cell is measured
    accelerator = Accelerator(cpu=options.device == "cpu")
    require_all_processes(accelerator)
    out = Path(options.out)
    if accelerator.is_main_process:
        require_writable(out / "sweep.json", out / "sweep.md", out / "sweep.png")
    records = [_record(one, cell, out, accelerator) for one, cell in zip(of_cells, cells, strict=True)]
    if accelerator.is_main_process:
        from hf_ddpm.checkpoint import writing

        found = {"axes": axes, "cells": [{"cell": cell, **one} for cell, one in zip(cells, records, strict=True)]}
        with writing(out):
            (out / "sweep.json").write_text(json.dumps(found, indent=2) + "\n")
            (out / "sweep.md").write_text(sweep_table(found) + "\n")
            draw_sweep(found).save(out / "sweep.png")
        print(f"{sweep_table(found)}\nwritten: {out / 'sweep.json'}, {out / 'sweep.md'}, {out / 'sweep.png'}")
    accelerator.end_training()


def _axes(options: argparse.Namespace) -> dict[str, list[str]]:
    """Return the values of each option that is varied, as they are typed."""
    if not options.over:
        raise UserError("there is nothing to sweep over: pass --over, such as --over steps=5,10,20")
    known = {flag for flag in options.parser._option_string_actions if flag.startswith("--")} - NO_AXES
    axes: dict[str, list[str]] = {}
    for word in options.over:
        name, equals, values = word.partition("=")
        flag, found = "--" + name.strip().lstrip("-").replace("_", "-"), [value.strip() for value in values.split(",")]
        if not equals or not all(found):
            raise UserError(f"--over {word} must be an option and its values, such as steps=5,10,20")
        if flag not in known:
            raise UserError(f"--over {word}: there is no option {flag} to vary{did_you_mean(flag, known)}")
        if flag[2:] in axes or len({*found}) < len(found):
            raise UserError(f"--over {word} repeats an option or a value: leave one of them out")
        axes[flag[2:]] = found
    return axes


def _options_of(options: argparse.Namespace, cell: Cell) -> argparse.Namespace:
    """Return the options of one cell, after checking them."""
    words = [word for name, value in cell.items() for word in (f"--{name}", value)]
    found: argparse.Namespace = options.parser.parse_args([options.checkpoint, *words], copy.copy(options))
    if options.samples is not None:
        found.samples = str(Path(options.samples) / _name(cell))
    evaluate.check(found)
    return found


def _record(options: argparse.Namespace, cell: Cell, out: Path, accelerator: "Accelerator") -> dict[str, Any]:
    """Return the record of a cell: from an earlier run with the same options, or measured now."""
    from hf_ddpm.checkpoint import read_object

    file = out / f"{_name(cell)}.json"
    asked = _conditions(options)
    if file.is_file():
        before = read_object(file, "delete it and run the sweep again")
        _check_same(before.get("options"), asked, file)
        return before
    accelerator.print(f"cell {_name(cell)}")
    measured = evaluate.measure(copy.copy(options), accelerator)
    measured.record["options"] = asked
    if accelerator.is_main_process:
        measured.write(file)
    return measured.record


def _conditions(options: argparse.Namespace) -> dict[str, Any]:
    """Return the options that a cell's numbers depend on, as in JSON, and the hashes of weights in local folders."""
    from hf_ddpm.weights import weights_of, weights_of_model

    asked = {key: value for key, value in vars(options).items() if key not in NO_CONDITIONS}
    folder = Path(options.checkpoint).expanduser()
    asked["weights"] = weights_of(folder) if folder.is_dir() else None
    if options.classifier is not None and (classifier := Path(options.classifier).expanduser()).is_dir():
        asked["classifier_weights"] = weights_of(classifier) | weights_of_model(classifier)
    found: dict[str, Any] = json.loads(json.dumps(asked))  # a tuple is a list in the record of an earlier run
    return found


def _check_same(before: Any, asked: Mapping[str, Any], file: Path) -> None:
    before = before if isinstance(before, dict) else {}
    for key, value in asked.items():
        if before.get(key) != value:
            raise UserError(
                f"{file} was measured with {key}={before.get(key)!r}, not with {key}={value!r}: choose a new --out, or "
                "pass the same options"
            )


def _name(cell: Cell) -> str:
    return ",".join(f"{name}={value}" for name, value in cell.items()).replace("/", "_")

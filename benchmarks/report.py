"""Results on disk: one JSON file per benchmark, and the page that is rendered from all of them."""

import json
import os
import platform
from collections.abc import Iterable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import diffusers
import torch

Result = dict[str, Any]


def machine() -> dict[str, Any]:
    """Return where and when figures were measured."""
    return {
        "date": date.today().isoformat(),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "load_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
    }


def write_json(path: Path, result: Result) -> None:
    """Write a file completely or not at all, so that an interrupted run leaves no incomplete result."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".unfinished")
    temporary.write_text(json.dumps(result, indent=2) + "\n")
    temporary.replace(path)


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table with numbers aligned to the right."""
    body = [[_cell(value) for value in row] for row in rows]
    numeric = [all(row[i].lstrip("-")[:1].isdigit() or row[i] in ("", "-") for row in body) for i in range(len(header))]
    rule = ["---:" if is_number else "---" for is_number in numeric]
    return "\n".join("| " + " | ".join(row) + " |" for row in [list(header), rule, *body])


def verdict(value: float, target: float, at_most: bool = False) -> str:
    """Return a target, and whether the value reaches it, as text."""
    reached = value <= target if at_most else value >= target
    return f"{'at most' if at_most else 'at least'} {target:g}: {'reached' if reached else 'missed'}"


def section(title: str, about: str, result: Result, body: str) -> str:
    """Return the section of one benchmark: a description, where and when it was measured, then its tables."""
    m = result["machine"]
    where = f"{m['cores']} cores of {m['cpu']}" + (f", {m['gpu']}" if m["gpu"] else "")
    taken = (
        f"{m['date']}, {where}, {m['threads']} threads, load {m['load_before']} before, Python {m['python']}, "
        f"torch {m['torch']}, diffusers {m['diffusers']}; `{result['command']}`"
    )
    warning = "**Measured with --quick: these figures mean nothing.**\n\n" if result["quick"] else ""
    return f"## {title}\n\n{' '.join(about.split())}\n\n{taken}\n\n{warning}{body}\n"


def _cell(value: object) -> str:
    return (
        f"{value:.3g}"
        if isinstance(value, float) and abs(value) < 100
        else f"{value:,.0f}"
        if isinstance(value, float)
        else str(value)
    )


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()

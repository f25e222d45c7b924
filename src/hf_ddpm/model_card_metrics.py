"""Read what commands measured on a checkpoint from the JSON files that they wrote."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hf_ddpm.checkpoint import read_object
from hf_ddpm.errors import UserError
from hf_ddpm.evaluation.report import described
from hf_ddpm.schedulers.config_files import WRONG_KIND
from hf_ddpm.weights import weights_of


def metrics_of(file: Path, folder: Path) -> list[dict[str, Any]]:
    """Return the figures of one file, as the card shows them.

    Args:
        file: A JSON file that `hf-ddpm evaluate` or `hf-ddpm likelihood` wrote.
        folder: The folder of the checkpoint that the figures must belong to.

    Returns:
        list: One or more {"name", "type", "value", "how", "data"}, where data has "source", "origin" and "split" of the
            measured data, if they were recorded.

    Raises:
        UserError: If the file does not exist, is of another kind, or has figures of other weights.
    """
    if not file.is_file():
        raise UserError(
            f"the metrics file {file} does not exist: pass a file that `hf-ddpm evaluate` or `hf-ddpm likelihood` wrote"
        )
    found = read_object(file, remedy="measure again")
    if "weights_sha256" not in found:
        raise UserError(
            f"{file} has no weights_sha256: pass a file that `hf-ddpm evaluate` or `hf-ddpm likelihood` wrote"
        )
    if found["weights_sha256"] not in weights_of(folder).values():
        raise UserError(f"{file} was not measured on the weights of {folder}: measure this checkpoint")
    try:
        metrics = entries_of(found)
    except (*WRONG_KIND, ValueError) as error:
        raise UserError(f"{file} is not a file that a measurement wrote ({error}): measure again") from error
    if not all(math.isfinite(entry["value"]) and math.isfinite(entry.get("standard_error", 0)) for entry in metrics):
        raise UserError(f"{file} contains a figure that is not finite: measure again")
    if not metrics:
        raise UserError(
            f"{file} contains no figure for a card: pass a file that `hf-ddpm evaluate` or `hf-ddpm likelihood` wrote"
        )
    return metrics


def entries_of(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the figures of a measurement, see `metrics_of`."""
    return [{**entry, "how": _how(found), "data": _data(found)} for entry in _entries(found)]


def _entries(found: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for key, name in {"bound": "variational bound", "ode": "probability-flow ODE"}.items():
        if key in found:
            yield _entry(f"bits/dim, {name}", "bits_per_dim", found[key]["bits_per_dim"])
    if "nll" in found:
        draws = found["num_samples"]
        yield _entry(f"-log p(x) in nats, K = {draws}", "nll", found["nll"]["nats"])
        yield _entry(f"-log p(x) in bits/dim, K = {draws}", "bits_per_dim", found["nll"]["bits_per_dim"])
        yield _entry("-ELBO in nats", "negative_elbo", found["negative_elbo"]["nats"])
    for number in found.get("numbers", ()):
        error = {key: round(number[key], 4) for key in ("standard_error",) if key in number}
        yield {"name": number["name"], "type": number["type"], "value": round(number["value"], 4), **error}


def _data(found: dict[str, Any]) -> dict[str, Any]:
    """Return which data were measured; older versions wrote a sentence, which is ignored."""
    data = found.get("data") or (found.get("conditions") or {}).get("reference", {}).get("data")
    return {key: data[key] for key in ("source", "origin", "split")} if isinstance(data, dict) else {}


def _entry(name: str, kind: str, figure: dict[str, float]) -> dict[str, Any]:
    mean, error = round(figure["mean"], 4), round(figure["standard_error"], 4)
    return {"name": name, "type": kind, "value": mean, "standard_error": error}


def _how(found: dict[str, Any]) -> str:
    """Return the settings that another measurement must have in common to be comparable."""
    if "numbers" in found:
        return described(found)
    said = {
        "n": "{:,} images",
        "num_samples": "{:,} samples",
        "num_inference_steps": "{} network calls",
        "eta": "eta {}",
    }
    said |= {"T": "T = {}", "seed": "seed {}"}
    if "nll" in found:
        del said["num_samples"]  # K is part of the name
    parts = [text.format(found[key]) for key, text in said.items() if found.get(key) is not None]
    if found.get("binarisation"):
        parts.append(f"binarised ({found['binarisation']['kind']}, seed {found['binarisation']['seed']})")
    return ", ".join(parts)

"""The output of an evaluation: a record with the conditions of every number, a table, a comparison of two records."""

import platform
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffusers
import torch

from hf_ddpm.checkpoint import read_object
from hf_ddpm.errors import UserError
from hf_ddpm.version import __version__
from hf_ddpm.weights import weights_sha256

if TYPE_CHECKING:  # model cards read records, and need none of these
    from hf_ddpm.evaluation.evaluate import Evaluation
    from hf_ddpm.evaluation.images import ImageSource
    from hf_ddpm.evaluation.measure import Number, Real
    from hf_ddpm.metrics.extractors import Extractor

NUMBERS, CONDITIONS = "numbers", "conditions"
MEASURE = ("num_images", "extractor", "reference", "real_images", "training_images")  # must agree for a comparison
_LONG = 16  # the length of the longest list that a record quotes in full
_SIGNIFICANT = 4
COUNTS = ("modes_found",)  # types of figures that are integers, unless they are means


def record(
    found: "Evaluation", source: "ImageSource", real: "Real", extractor: "Extractor", about: Mapping[str, Any]
) -> dict[str, Any]:
    """Return an evaluation as JSON.

    Args:
        found: The result of the evaluation.
        source, real, extractor: The images, the real images and the extractor of the evaluation.
        about: Further facts, which come first in the record.
    """
    reference = {key: value for key, value in real.reference.conditions.items() if key not in extractor.conditions}
    conditions: dict[str, Any] = {
        "num_images": found.num_images,
        "draws": found.draws,
        "samples": source.conditions,
        "extractor": extractor.conditions,
        "reference": reference,
        "versions": {
            "hf_ddpm": __version__,
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
            "python": platform.python_version(),
        },
    }
    if real.images is not None:
        conditions["real_images"] = len(real.images.pool)
    if real.training is not None:
        conditions["training_images"] = len(real.training.pool)
    total = found.num_images * found.draws
    speed = {f"{name}_per_second": total / max(taken, 1e-9) for name, taken in found.seconds.items()}
    return {
        **about,
        NUMBERS: to_json(found.numbers),
        CONDITIONS: conditions,
        "seconds": found.seconds,
        "speed": speed,
        "peak_memory_mib": _peak_memory(),
        "date": time.strftime("%Y-%m-%d"),
    }


def to_json(numbers: "Sequence[Number]") -> list[dict[str, Any]]:
    """Return figures as JSON, without fields that were not measured."""
    return [{key: value for key, value in number._asdict().items() if value is not None} for number in numbers]


def pipeline_conditions(pipeline: Any, keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Return what determines the images of a pipeline besides seed and index: weights, scheduler and call arguments."""
    parts = pipeline.components
    networks = {name: part for name, part in parts.items() if isinstance(part, torch.nn.Module)}
    found: dict[str, Any] = {"weights_sha256": {name: weights_sha256(part) for name, part in networks.items()}}
    scheduler = parts.get("scheduler")
    if scheduler is not None:
        config = {key: _short(value) for key, value in scheduler.config.items() if key[0] != "_" and value is not None}
        found["scheduler"] = {"class": type(scheduler).__name__, **config}
    default_eta = pipeline.config.get("default_eta")
    call = {key: value for key, value in keywords.items() if value is not None}
    found["call"] = ({} if default_eta is None else {"default_eta": default_eta}) | call
    return found


def markdown(found: Mapping[str, Any]) -> str:
    """Return the numbers of a record as a table, followed by a sentence about their conditions."""
    rows = ["| metric | value | |", "|---|---|---|"]
    for number in found[NUMBERS]:
        rows.append(f"| {number['name']} | {shown(number)} | {number.get('note', '')} |")
    return "\n".join([*rows, "", described(found)])


def shown(number: Mapping[str, Any]) -> str:
    """Return the value as text, with its standard error or standard deviation if there is one."""
    digits = 0 if number["type"] in COUNTS and number["value"] % 1 == 0 else _digits(number["value"])
    text = f"{number['value']:.{digits}f}"
    if number.get("standard_error") is not None:
        return f"{text} ± {number['standard_error']:.{digits}f}"
    if number.get("standard_deviation") is not None:
        return f"{text} (sd {number['standard_deviation']:.{digits}f})"
    return text


def described(found: Mapping[str, Any]) -> str:
    """Describe the conditions in a sentence."""
    c = found[CONDITIONS]
    data = c["reference"].get("data", {})
    where = f"{data.get('source', 'unknown')}" + (f", split {data['split']}" if data.get("split") else "")
    if "noise" in c:  # of a noisy classifier
        drawn = f"t drawn uniformly from 0 .. {c['noise']['num_train_timesteps'] - 1}, seed {c['noise']['seed']}"
        return f"{c['num_images']:,} noisy images of {where}, {drawn}."
    draws = f"{c['draws']} draws of " if c["draws"] > 1 else ""
    against = f"against {c['reference'].get('num_images', 0):,} images of {where}"
    how = "".join(f", {part}" for part in _how_drawn(c["samples"]))
    return f"{draws}{c['num_images']:,} images{how}, {against}, in the features of {c['extractor']['extractor']}."


def compared(files: list[Path]) -> str:
    """Return two records side by side, and the conditions in which they differ.

    Raises:
        UserError: If a file is not a record of an evaluation.
    """
    one, other = (_read(file) for file in files)
    tables = [{number["name"]: number for number in found[NUMBERS]} for found in (one, other)]
    rows = [f"| metric | {files[0]} | {files[1]} |", "|---|---|---|"]
    for name in dict.fromkeys([*tables[0], *tables[1]]):
        cells = [shown(table[name]) if name in table else "" for table in tables]
        rows.append(f"| {name} | {cells[0]} | {cells[1]} |")
    left, right = (dict(_flat(found[CONDITIONS])) for found in (one, other))
    different = [key for key in dict.fromkeys([*left, *right]) if left.get(key) != right.get(key)]
    rows.append("")
    if not different:
        return "\n".join([*rows, "The conditions are the same."])
    forbidding = [key for key in different if key.split(".")[0] in MEASURE]
    verdict = (
        f"These numbers cannot be compared, because they were measured with a different {', '.join(forbidding)}."
        if forbidding
        else "These numbers can be compared; their conditions differ in:"
    )
    rows += [verdict, "", "| condition | | |", "|---|---|---|"]
    rows += [f"| {key} | {left.get(key, 'not recorded')} | {right.get(key, 'not recorded')} |" for key in different]
    return "\n".join(rows)


def _read(file: Path) -> dict[str, Any]:
    found = read_object(file, "use a file that `hf-ddpm evaluate ... --out` wrote")
    if not isinstance(found.get(NUMBERS), list) or not isinstance(found.get(CONDITIONS), dict):
        raise UserError(f"{file} is not a record of an evaluation: use a file that `hf-ddpm evaluate ... --out` wrote")
    return found


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _flat(inner, f"{key}.{name}" if key else name)
    else:
        yield key, value


def _how_drawn(samples: Mapping[str, Any]) -> list[str]:
    """Return where images come from: their source, or the sampler and its seed."""
    if "images" in samples:
        return [samples["images"]["source"]]
    call, parts = samples.get("call", {}), []
    if "scheduler" in samples:
        steps = call.get("num_inference_steps")
        parts.append(samples["scheduler"]["class"] + (f" with {steps} steps" if steps else ""))
        parts += [f"truncation {call['truncation']:g}"] if call.get("truncation", 1) != 1 else []
        parts += [f"eta {call['eta']}"] if "eta" in call else []
        parts += [f"{scale} {call[scale]:g}" for scale in ("guidance_scale", "classifier_scale") if scale in call]
    return [*parts, f"seed {samples['seed']}"]


def _peak_memory() -> int | None:
    """Return the peak memory of this process since its start, in MiB; None on systems other than Linux."""
    if sys.platform != "linux":
        return None
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 2**10


def _digits(value: float) -> int:
    """Return the number of decimals for four significant digits, at least one and at most four."""
    whole = len(str(int(abs(value)))) if abs(value) >= 1 else 0
    return min(4, max(1, _SIGNIFICANT - whole))


def _short(value: Any) -> Any:
    """Return a value of a config; for a long list, its length and its first and last number."""
    if isinstance(value, list | tuple) and len(value) > _LONG:
        return f"{len(value)} numbers from {value[0]} to {value[-1]}"
    return value

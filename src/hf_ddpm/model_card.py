"""The model card: a template that is filled only with the facts that training measured."""

import re
from collections.abc import Mapping
from typing import Any

from hf_ddpm.data.sources import EMBEDDED
from hf_ddpm.kinds import Kind, kind_of_run
from hf_ddpm.places import names_on_the_hub, without_places

CONVERTED = "model_card_converted.md"  # of a checkpoint of another project


def render_card(facts: dict[str, Any], kind: Kind | None = None, *, pictured: bool = True) -> str:
    """Return the card's Markdown, with the header that the Hub reads.

    Args:
        facts: The result of `training.saving.facts`, with `stock` (whether diffusers' own classes draw the same
            images), `metrics` (the entries of `metrics_of`) and `repo_id` (the repository that it is pushed to). A
            missing fact, at any depth, is shown as not measured, never invented. Folders are cut to their last part.
        kind: The kind of the model; None determines it from the facts.
        pictured: Whether samples.png is beside the card.
    """
    import jinja2

    kind = kind or kind_of_run(facts)
    facts = without_places(facts, names_on_the_hub(facts))
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("hf_ddpm", ""),
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.ChainableUndefined,
    )
    template = environment.get_template(CONVERTED if "converted" in facts else kind.card)
    words = {"header": _header(facts, kind), "license": license_of(facts), "pictured": pictured}
    return template.render(facts=facts, **words).lstrip()


def license_of(facts: Mapping[str, Any]) -> str | None:
    """Return the licence of the weights: the one given to the run, or Apache-2.0 for the digits of this package."""
    recipe = facts.get("recipe") or {}
    given: str | None = (recipe.get("hub") or {}).get("license")
    return given or ("apache-2.0" if _of_digits(recipe) else None)


def _header(facts: dict[str, Any], kind: Kind) -> str:
    """Return the metadata as YAML; figures are `model-index` entries, which the Hub shows beside the card."""
    from huggingface_hub import EvalResult, ModelCardData

    recipe = facts.get("recipe") or {}
    digits = _of_digits(recipe)
    results = [
        EvalResult(
            task_type=kind.task,
            dataset_type=re.sub(r"[^\w/.-]+", "-", _of_data(metric, "source") or "not recorded").lower(),
            dataset_name=_of_data(metric, "source") or "not recorded",
            dataset_split=_of_data(metric, "split"),
            metric_type=metric.get("type") or metric["name"],
            metric_name=metric["name"],
            metric_value=metric["value"],
            metric_args={key: metric[key] for key in ("how", "standard_error") if metric.get(key) is not None},
        )
        for metric in facts.get("metrics") or []
    ]
    data = ModelCardData(
        library_name="diffusers",
        pipeline_tag=kind.task,
        license=license_of(facts),
        tags=["diffusers", kind.tag, "hf_ddpm"],
        datasets=["ylecun/mnist"] if digits else None,
        model_name=(facts.get("name") or "hf_ddpm") if results else None,
        eval_results=results or None,
    )
    return data.to_yaml()


def _of_digits(recipe: Mapping[str, Any]) -> bool:
    return (recipe.get("data") or {}).get("source") in EMBEDDED


def _of_data(metric: dict[str, Any], field: str) -> str | None:
    """Return a field of the data that were measured; older versions recorded a sentence, which is ignored."""
    data = metric.get("data")
    return data.get(field) if isinstance(data, Mapping) else None

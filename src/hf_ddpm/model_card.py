"""The model card: a template filled from the facts that training measured, and from nothing else."""

from importlib import resources
from typing import Any


def render_card(facts: dict[str, Any]) -> str:
    """The card's Markdown, with the header that the Hub reads.

    Args:
        facts: what `training.saving.facts` returns, with `stock`, whether diffusers' own classes draw the same images,
            and `metrics`, a list of {"name", "value", "how"}. A fact that is missing, at any depth, is named as not
            measured, never invented.
    """
    import jinja2

    name = "model_card_vae.md" if "vae" in (facts.get("recipe") or {}) else "model_card.md"
    template = resources.files("hf_ddpm").joinpath(name).read_text(encoding="utf-8")
    environment = jinja2.Environment(
        keep_trailing_newline=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.ChainableUndefined
    )
    return environment.from_string(template).render(facts=facts).lstrip()

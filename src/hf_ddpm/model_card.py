"""The model card: a template filled from the facts that training measured, and from nothing else."""

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
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("hf_ddpm", ""),
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.ChainableUndefined,
    )
    return environment.get_template(name).render(facts=facts).lstrip()

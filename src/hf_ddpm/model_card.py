"""The model card: `model_card.md` filled from the facts that training measured, and from nothing else."""

from importlib import resources
from typing import Any


def render_card(facts: dict[str, Any]) -> str:
    """The card's Markdown. A fact that is missing is named as not measured, never invented."""
    import jinja2

    template = resources.files("hf_ddpm").joinpath("model_card.md").read_text()
    environment = jinja2.Environment(keep_trailing_newline=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(facts=facts)

"""What the test Hub reads in a README's YAML: the metadata, whether they have the right types, the tags they become.

PyYAML comes with the client. The Hub also knows the names of licences, tasks and languages; this server does not.
"""

import re

import yaml

WORD = (str,)
WORDS = (str, list)
TYPES: dict[str, tuple[type, ...]] = {
    "license": WORDS,
    "license_name": WORD,
    "language": WORDS,
    "tags": (list,),
    "datasets": WORDS,
    "metrics": WORDS,
    "library_name": WORD,
    "pipeline_tag": WORD,
    "base_model": WORDS,
    "pretty_name": WORD,
    "model-index": (list,),
}


def front_matter(text: str) -> str | None:
    found = re.match(r"---[ \t]*\r?\n(.*?)^---[ \t]*$", text, re.DOTALL | re.MULTILINE)
    return found and found[1]


def metadata(text: str) -> dict:
    """The card's YAML; empty where there is none or it cannot be read."""
    return {} if errors(text) else yaml.safe_load(front_matter(text) or "") or {}


def errors(text: str) -> list[str]:
    """What is wrong with the YAML of a README, as sentences."""
    try:
        data = yaml.safe_load(front_matter(text) or "") or {}
    except yaml.YAMLError as error:
        return [f"YAML: {error}"]
    if not isinstance(data, dict):
        return ["The metadata have to be a mapping."]
    wrong = []
    for key in TYPES.keys() & data.keys():
        value = data[key]
        if value is not None and not isinstance(value, TYPES[key]):
            wrong.append(f'"{key}" must be {" or ".join(kind.__name__ for kind in TYPES[key])}')
        elif key != "model-index" and isinstance(value, list) and not all(isinstance(word, str) for word in value):
            wrong.append(f'"{key}" must be a list of strings')
    return sorted(wrong) or model_index_errors(data.get("model-index") or [])


def model_index_errors(models: list) -> list[str]:
    """Each model has results; each result has a task, a dataset and metrics, each of them a type."""
    wrong = []
    for m, model in enumerate(models):
        results = model.get("results") if isinstance(model, dict) else None
        if not isinstance(results, list):
            wrong.append(f'"model-index[{m}].results" is required')
        for r, result in enumerate(results or []):
            required = {
                "task.type": ("task", "type"),
                "dataset.name": ("dataset", "name"),
                "dataset.type": ("dataset", "type"),
            }
            for name, (part, key) in required.items():
                if not isinstance((result.get(part) or {}).get(key), str):
                    wrong.append(f'"model-index[{m}].results[{r}].{name}" is required')
            for k, metric in enumerate(result.get("metrics") or [{}]):
                if not isinstance(metric.get("type"), str) or metric.get("value") is None:
                    wrong.append(f'"model-index[{m}].results[{r}].metrics[{k}]" needs a type and a value')
    return wrong


def tags(card: dict) -> list[str]:
    """As the Hub lists them: the library, the card's tags, then what other fields say."""

    def words(key: str) -> list[str]:
        value = card.get(key) or []
        return value if isinstance(value, list) else [value]

    named = [f"{kind}:{word}" for kind, key in (("dataset", "datasets"), ("license", "license")) for word in words(key)]
    return list(dict.fromkeys([*words("library_name"), *words("tags"), *words("language"), *named, "region:us"]))

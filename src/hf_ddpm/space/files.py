"""Write the files of a Space that shows a pushed checkpoint, and upload them in one commit."""

import importlib.resources
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, ModelInfo, SpaceCardData

from hf_ddpm.checkpoint import INDEX, writing
from hf_ddpm.errors import UserError
from hf_ddpm.gate.hub_access import patient
from hf_ddpm.hub import check_private, hub_sentences

# the versions of constraints.txt, tested together; diffusers needs accelerate for large networks
VERSIONS = {"accelerate": "1.15.0", "diffusers": "0.42.1", "gradio": "6.31.0", "torch": "2.13.0"}
PYTHON = "3.11"
SECRET = "\nThe checkpoint is private: add a secret `HF_TOKEN` that can read it in the settings of this Space.\n"
README = """---
{header}
---

# {repo_id}

This Space samples from the checkpoint [{repo_id}](https://huggingface.co/{repo_id}): images from a seed, interpolations
between two seeds and, for a diffusion model, the denoising of an image step by step.
{secret}
checkpoint.json names the checkpoint and its commit; later commits are not used until you change it. The checkpoint is
opened with the code files of that commit, which run in this Space: name only a commit whose files you trust. To run the
page on your own machine:

```sh
pip install -r requirements.txt
python app.py
```

Written by `hf-ddpm space {repo_id}`.
"""


def find_checkpoint(repo_id: str, token: str | None = None) -> ModelInfo:
    """Return what the Hub knows about a checkpoint's repository.

    Args:
        repo_id: The name of the repository, `user/name`.
        token: A token to use instead of `HF_TOKEN` or the one of `hf auth login`.

    Raises:
        UserError: If the repository does not exist, or does not contain the code files of the pipeline, which a Space
            needs to open it.
    """
    with hub_sentences(repo_id):
        info = patient(lambda: HfApi(token=token).model_info(repo_id))
    there = {file.rfilename for file in info.siblings or []}
    if not {INDEX, "pipeline.py"} <= there:
        raise UserError(
            f"{repo_id} has no {INDEX if INDEX not in there else 'pipeline.py'}, which a Space needs to open it: "
            "push a checkpoint of hf_ddpm with hf-ddpm push"
        )
    return info


def space_files(info: ModelInfo) -> dict[str, bytes]:
    """Return the files of a Space for the current commit of a checkpoint, by name; the licence is that of its card."""
    licence = info.card_data.get("license") if info.card_data else None
    app = importlib.resources.files(__package__).joinpath("app.py").read_bytes()
    checkpoint = json.dumps({"checkpoint": info.id, "commit": info.sha}, indent=2) + "\n"
    requirements = "".join(f"{name}=={version}\n" for name, version in VERSIONS.items())
    readme = _readme(info.id, licence, bool(info.private))
    texts = {"checkpoint.json": checkpoint, "requirements.txt": requirements, "README.md": readme}
    return {"app.py": app} | {name: text.encode() for name, text in texts.items()}


def write_space(files: Mapping[str, bytes], folder: Path) -> None:
    """Write the files into a folder.

    Raises:
        UserError: If the folder cannot be written, or is not empty.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out {folder} is a file: choose a new folder")
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise UserError(f"the folder --out {folder} is not empty: choose a new one")
        for name, content in files.items():
            (folder / name).write_bytes(content)


def push_space(files: Mapping[str, bytes], space_id: str, *, private: bool = False, token: str | None = None) -> str:
    """Upload the files as a Gradio Space in one commit; other files of an existing Space are kept.

    Args:
        files: The files, from `space_files`.
        space_id: The name of the Space, `user/name`; it is created if it does not exist.
        private: Whether the Space must be private; a new one is created private.
        token: A token to use instead of `HF_TOKEN` or the one of `hf auth login`.

    Returns:
        str: The address of the Space.

    Raises:
        UserError: If the Hub refuses the upload, or the Space is to be private and is public.
    """
    with hub_sentences(space_id):
        api = HfApi(token=token)
        settings: dict[str, Any] = {"repo_type": "space", "space_sdk": "gradio", "private": private or None}
        made = patient(lambda: api.create_repo(space_id, exist_ok=True, **settings))
        if private:
            check_private(api, made.repo_id, "space")

        def commit() -> None:
            additions = [CommitOperationAdd(name, io.BytesIO(content)) for name, content in files.items()]
            api.create_commit(made.repo_id, additions, commit_message="Add a page for a checkpoint", repo_type="space")

        patient(commit)
    return f"{api.endpoint}/spaces/{made.repo_id}"


def _readme(repo_id: str, licence: str | None, private: bool) -> str:
    """Return the README of the Space, with the header that the Hub reads."""
    header = SpaceCardData(
        title=repo_id.split("/")[-1],
        sdk="gradio",
        sdk_version=VERSIONS["gradio"],
        python_version=PYTHON,
        app_file="app.py",
        models=[repo_id],
        license=licence,
    )
    return README.format(header=header.to_yaml(), repo_id=repo_id, secret=SECRET if private else "")

"""Loading and pushing of pipelines: what `from_pretrained` and `push_to_hub` add to diffusers' own methods."""

import inspect
import os
from abc import ABC
from collections.abc import Mapping
from typing import Any

from torch import nn

from hf_ddpm.models.pushing import of_package, pushing
from hf_ddpm.models.savable import check_savable, with_dtypes
from hf_ddpm.pipelines.doors import INDEX, known_modules


class CheckedOpening(ABC):  # noqa: B024  # DiffusionPipeline completes it
    """The part of a pipeline that loads, saves and pushes it; it comes before `DiffusionPipeline` in the bases."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> Any:
        """Load a checkpoint from a folder or the Hub. None of its code is run, and no pickle is read.

        In code that came with a checkpoint (door 3), and therefore runs already, this is diffusers' own method.

        Args:
            pretrained_model_name_or_path: A folder, or `user/name` on the Hub, which is cached.
            **kwargs: The keywords of diffusers: `revision`, `variant`, `dtype`, `cache_dir`, `local_files_only`,
                `token`, `force_download`, and components that replace the saved ones. In addition, `subfolder` is the
                folder of the checkpoint in it. `variant="raw"` loads the weights that training did not average.
                `use_safetensors=False` loads pickles; use it only if you trust their author.

        Raises:
            OSError: If the checkpoint does not exist, or cannot be downloaded from the Hub.
            ValueError: If the checkpoint is of another kind, is corrupted, would run code or would not fit in memory.
        """
        open_checked, kwargs = of_package("open_pipeline"), with_dtypes(kwargs)
        if open_checked is None:
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)  # type: ignore[misc]
        return open_checked(cls, pretrained_model_name_or_path, **kwargs)

    @classmethod
    def from_pipe(cls, pipeline: Any, **kwargs: Any) -> Any:
        """Create a pipeline from the components of another one, as in diffusers, with all that this class accepts.

        Args:
            pipeline: The pipeline whose components are used, in their dtype.
            **kwargs: Components that replace its own, and keywords of diffusers.
        """
        taken = inspect.signature(cls).parameters.keys() - kwargs.keys()
        kept = {name: part for name, part in pipeline.components.items() if name in taken}
        return super().from_pipe(pipeline, **{"dtype": pipeline.dtype, **kept, **kwargs})  # type: ignore[misc]

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Save as diffusers does; with `push_to_hub=True`, without the path that the pipeline was loaded from.

        Raises:
            ValueError: If a network is not saved whole; nothing is written.
        """
        for name, part in self.components.items():  # type: ignore[attr-defined]
            if isinstance(part, nn.Module):
                check_savable(name, part)
        with pushing(*([self, *self.components.values()] if kwargs.get("push_to_hub") else [])):  # type: ignore[attr-defined]
            super().save_pretrained(*args, **kwargs)  # type: ignore[misc]

    def push_to_hub(  # the arguments are diffusers'
        self,
        repo_id: str,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        create_pr: bool = False,
        safe_serialization: bool = True,
        variant: str | None = None,
        subfolder: str | None = None,
    ) -> str:
        """Push the pipeline in one commit, with a model card that contains what is known about these weights.

        If the pipeline was loaded from a checkpoint's folder and not changed, the files of its training are pushed
        too: facts, recipe, log, samples and the weights without the average. In code that came with a checkpoint (door
        3), and for pickles, a variant or a subfolder, this is diffusers' own push, with its default card.

        Args:
            repo_id: `user/name` on the Hub, which is created if it does not exist.
            commit_message: The commit message.
            private: Whether a new repository is private.
            token: The token, instead of `HF_TOKEN` or that of `hf auth login`.
            create_pr: Whether to open a pull request.
            safe_serialization: Whether to save safetensors; False saves pickles.
            variant: The variant in the file names of the weights.
            subfolder: The folder in the repository.

        Returns:
            str: The URL of what was pushed.

        Raises:
            ValueError: If the Hub does not accept the push, with the reason in one sentence.
        """
        push_with_card = of_package("push_pipeline")
        if push_with_card is None or variant or subfolder or not safe_serialization:
            own = (repo_id, commit_message, private, token, create_pr, safe_serialization, variant, subfolder)
            with pushing(self, *self.components.values()):  # type: ignore[attr-defined]
                return super().push_to_hub(*own)  # type: ignore[misc]
        about: dict[str, Any] = {"private": bool(private), "token": token, "create_pr": create_pr}
        address: str = push_with_card(self, repo_id, message=commit_message, **about)
        return address

    @classmethod
    def extract_init_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Return what diffusers uses of an index; raise a `ValueError` for a checkpoint of another class."""
        check_index(cls, config_dict)
        return super().extract_init_dict(known_modules(config_dict), **kwargs)  # type: ignore[misc]


def class_of_ours(kind: type) -> type:
    """Return the one of our pipeline classes that a class is, or is derived from."""
    return next(parent for parent in kind.__mro__ if CheckedOpening in parent.__bases__)


def components_of(kind: type) -> list[str]:
    """Return the required components of one of our pipelines: the constructor arguments without a default."""
    parameters = inspect.signature(class_of_ours(kind)).parameters.values()
    return [parameter.name for parameter in parameters if parameter.default is parameter.empty]


def check_index(kind: type, index: Mapping[str, Any]) -> None:
    """Reject an index that has no class name, or none of the components of a pipeline of `kind`.

    Raises:
        ValueError: If it does; the message says what is missing, or which of our classes loads the checkpoint.
    """
    owner = index.get("_class_name")
    if not owner:
        raise ValueError(f"{INDEX} does not contain '_class_name': restore it from another copy")
    ours, there = CheckedOpening.__subclasses__(), [component in index for component in components_of(kind)]
    of_another = owner in [one.__name__ for one in ours if one is not class_of_ours(kind)]
    if all(there) or (any(there) and not of_another):  # a damaged one may lack some
        return
    opens = [one.__name__ for one in ours if all(component in index for component in components_of(one))]
    opens = [owner] if owner in opens else opens
    raise ValueError(
        f"this is a checkpoint of {owner} and has no {' or '.join(components_of(kind))} for "
        f"{class_of_ours(kind).__name__}: load it with {(*opens, owner)[0]}.from_pretrained"
    )

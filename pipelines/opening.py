"""Pipelines and the Hub: what `from_pretrained` and a push do more where hf_ddpm is installed."""

import inspect
import os
from abc import ABC
from collections.abc import Mapping
from typing import Any

from hf_ddpm.models.pushing import of_package, pushing
from hf_ddpm.pipelines.doors import INDEX, known_modules


class CheckedOpening(ABC):  # noqa: B024  # DiffusionPipeline makes it whole
    """The half of a pipeline that opens saved ones; beside `DiffusionPipeline`, before it."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> Any:
        """Open a checkpoint from a folder or the Hub. None of its code runs, and no pickle is read.

        For code that came with a checkpoint (door 3), which runs already, this is diffusers' own opening.

        Args:
            pretrained_model_name_or_path: a folder, or `user/name`, kept in the cache for the next time.
            **kwargs: those of diffusers: `revision`, `variant`, `dtype`, `cache_dir`, `local_files_only`, `token`,
                `force_download`, components instead of the saved ones. Also `subfolder`, where in it the checkpoint
                is. `variant="raw"` are the weights that training did not average.
                `use_safetensors=False` opens pickles; give it only if you trust their author.

        Raises:
            OSError: nothing is there, or the Hub does not give it.
            ValueError: a checkpoint of another kind, damaged, or one that would run code or fill the memory.
        """
        open_checked = of_package("open_pipeline")
        if open_checked is None:
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)  # type: ignore[misc]
        return open_checked(cls, pretrained_model_name_or_path, **kwargs)

    @classmethod
    def from_pipe(cls, pipeline: Any, **kwargs: Any) -> Any:
        """Another pipeline around the parts of one, as diffusers' own; all parts that this one takes come along.

        Args:
            pipeline: whose parts they are, in their dtype.
            **kwargs: parts instead of its own, and keywords of diffusers'.
        """
        taken = inspect.signature(cls).parameters.keys() - kwargs.keys()
        kept = {name: part for name, part in pipeline.components.items() if name in taken}
        return super().from_pipe(pipeline, **{"dtype": pipeline.dtype, **kept, **kwargs})  # type: ignore[misc]

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """As diffusers' own; with `push_to_hub=True`, without the folder that the pipeline was opened from."""
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
        """Upload the pipeline in one commit, with a card of what is known of these weights.

        Opened from a checkpoint's folder and not changed, they take along what training left there: facts, recipe,
        log, samples, the weights without the average. For code that came with a checkpoint (door 3), and for pickles, a
        variant or a subfolder, this is diffusers' own push, whose card knows nothing.

        Args:
            repo_id: `user/name` on the Hub, which is made if it is not there.
            commit_message: of the commit.
            private: only its owner sees a new repository.
            token: instead of `HF_TOKEN` or the one of `hf auth login`.
            create_pr: open a pull request.
            safe_serialization: False writes pickles.
            variant: of the weights' names.
            subfolder: of the repository.

        Returns:
            str: the address of what was pushed.

        Raises:
            ValueError: what the Hub refuses, in one sentence.
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
        """What opening takes of an index; a `ValueError` for a checkpoint of another class."""
        check_index(cls, config_dict)
        return super().extract_init_dict(known_modules(config_dict), **kwargs)  # type: ignore[misc]


def class_of_ours(kind: type) -> type:
    """The pipeline class of ours that a class is, or is derived from."""
    return next(parent for parent in kind.__mro__ if CheckedOpening in parent.__bases__)


def components_of(kind: type) -> list[str]:
    """What a pipeline of ours cannot do without: the arguments of its constructor that have no default."""
    parameters = inspect.signature(class_of_ours(kind)).parameters.values()
    return [parameter.name for parameter in parameters if parameter.default is parameter.empty]


def check_index(kind: type, index: Mapping[str, Any]) -> None:
    """Refuse an index that names no class, or has nothing of what a pipeline of `kind` is made of.

    Raises:
        ValueError: what it lacks, or whose checkpoint it is and which of our classes opens it.
    """
    owner = index.get("_class_name")
    if not owner:
        raise ValueError(f"{INDEX} lacks '_class_name': restore it from another copy")
    ours, there = CheckedOpening.__subclasses__(), [component in index for component in components_of(kind)]
    of_another = owner in [one.__name__ for one in ours if one is not class_of_ours(kind)]
    if all(there) or (any(there) and not of_another):  # one that is damaged lacks some
        return
    opens = [one.__name__ for one in ours if all(component in index for component in components_of(one))]
    opens = [owner] if owner in opens else opens
    raise ValueError(
        f"this is a checkpoint of {owner} and has no {' or '.join(components_of(kind))} for "
        f"{class_of_ours(kind).__name__}: open it with {(*opens, owner)[0]}.from_pretrained"
    )

"""Pipelines and the Hub: `from_pretrained` looks at every file before anything is built of it, a push tells more."""

import os
import reprlib
import sys
from abc import ABC
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from diffusers import schedulers
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import nn

from hf_ddpm.gate.checked_files import CheckedFiles
from hf_ddpm.gate.config_checks import check_config
from hf_ddpm.gate.hub_access import pushing
from hf_ddpm.gate.weights import check_weights
from hf_ddpm.pipelines.doors import COMPONENTS, INDEX, OUR_MODULES, check_index, known_modules

SCHEDULER_FILE = "scheduler_config.json"
STOCK_CLASSES: dict[str, tuple[type, ...]] = {"unet": (UNet2DModel,), "vae": (AutoencoderKL, AutoencoderTiny)}
FACTS = ("id2label", "null_class")  # what an index says of classes, which are no components
MOST_CLASSES = 10**5
OUR_CLASSES = {"unet": (), "vae": ("HFVAE",), "scheduler": ("HFDDPMScheduler",)}


class CheckedOpening(ABC):  # noqa: B024  # DiffusionPipeline makes it whole
    """The half of a pipeline that opens saved ones; beside `DiffusionPipeline`, before it.

    Attributes:
        push_with_card: pushes a pipeline; `hf_ddpm` sets it, and code that came with a checkpoint has none.
    """

    push_with_card: ClassVar[Callable[..., str] | None] = None

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> Any:
        """Open a checkpoint from a folder or the Hub. None of its code runs, and no pickle is read.

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
        return cls.from_files(CheckedFiles(pretrained_model_name_or_path, INDEX, **kwargs), **kwargs)

    @classmethod
    def from_files(cls, files: CheckedFiles, **kwargs: Any) -> Any:
        """`from_pretrained` of files that somebody began to look at; `subfolder` is where they are."""
        kwargs.pop("subfolder", None)
        if kwargs.get("use_safetensors") is None:
            kwargs["use_safetensors"] = True
        given = kwargs.keys() & OUR_CLASSES.keys()
        check_files(_ours(cls), files, given, kwargs.get("variant"), pickles=not kwargs["use_safetensors"])
        with files.being_opened():
            pipeline = super().from_pretrained(files.folder, **kwargs)  # type: ignore[misc]
        for part in pipeline.components.values():
            if isinstance(part, nn.Module):
                check_weights(part)
        pipeline.register_to_config(_name_or_path=files.source)
        return pipeline

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
        if self.push_with_card is None or variant or subfolder or not safe_serialization:
            own = (repo_id, commit_message, private, token, create_pr, safe_serialization, variant, subfolder)
            with pushing(self, *self.components.values()):  # type: ignore[attr-defined]
                return super().push_to_hub(*own)  # type: ignore[misc]
        about: dict[str, Any] = {"private": bool(private), "token": token, "create_pr": create_pr}
        return self.push_with_card(repo_id, message=commit_message, **about)

    @classmethod
    def extract_init_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """What opening takes of an index; a `ValueError` for a checkpoint of another class."""
        check_index(_ours(cls), config_dict)
        return super().extract_init_dict(known_modules(config_dict), **kwargs)  # type: ignore[misc]


def check_files(
    pipeline: str, files: CheckedFiles, given: set[str], variant: str | None, *, pickles: bool = False
) -> dict[str, str]:
    """Fetch what a pipeline is made of, and refuse what is not what it should be.

    Args:
        pipeline: name of its class.
        files: with the index.
        given: components that the caller has, of which nothing is read.
        variant: of the weights, which at least one network must have.
        pickles: weights that are no safetensors.

    Returns:
        dict: the config's file of each component, in the root where the oldest layout has it.

    Raises:
        ValueError, OSError: one sentence.
    """
    index = files.json(INDEX)
    check_index(pipeline, index)
    _check_classes(files.shown(INDEX), index)
    in_latents = any(file.startswith("vae/") for file in files.names)  # which would be shown as images without it
    needed = {*COMPONENTS[pipeline], *(["vae"] if in_latents else [])} - given
    entries = _entries({name: value for name, value in index.items() if name not in given}, needed)
    taken = [*COMPONENTS[pipeline], "vae"]  # what another pipeline's index has more is left there
    kinds = {name: component_class(name, entry) for name, entry in entries.items() if name in taken}
    varied, configs = False, {}
    for name, kind in kinds.items():
        config = SCHEDULER_FILE if issubclass(kind, SchedulerMixin) else "config.json"
        in_root = config in files.names and not any(file.startswith(f"{name}/") for file in files.names)
        place = "" if in_root else name  # the oldest layout has no folders
        configs[name] = file = f"{place}/{config}".lstrip("/")
        if config == SCHEDULER_FILE:
            check_config(files.shown(file), kind, files.json(file))
        else:
            varied |= files.fetch_network(place, kind, variant, pickles=pickles)
    if variant is not None and not varied:
        raise ValueError(f"{files.shown(INDEX)} has no weights of variant={variant!r} beside it: leave variant out")
    return configs


def component_class(name: str, entry: tuple[str, str]) -> type:
    """The class that an index names for a component, one of a few; no module is imported for it.

    Raises:
        ValueError: any other class.
    """
    library, word = entry
    if word in OUR_CLASSES[name] and library in ("diffusers", OUR_MODULES[word]) and OUR_MODULES[word] in sys.modules:
        return getattr(sys.modules[OUR_MODULES[word]], word)
    stock: dict[str, Any] = {kind.__name__: kind for kind in STOCK_CLASSES.get(name, ())}
    if name == "scheduler" and word.endswith("Scheduler") and word.isidentifier():
        stock = {word: getattr(schedulers, word, None)}
    found = stock.get(word) if library == "diffusers" else None
    if isinstance(found, type) and (name in STOCK_CLASSES or issubclass(found, SchedulerMixin)):
        return found
    known = [*OUR_CLASSES[name], *(stock if name in STOCK_CLASSES else ["a scheduler of diffusers"])]
    raise ValueError(
        f"{INDEX} has {name}=[{library[:60]!r}, {word[:60]!r}], allowed are {', '.join(known)}: nothing else is "
        f"imported for a checkpoint; a class of yours is opened by you and given: from_pretrained(..., {name}=...)"
    )


def _check_classes(shown: str, index: Mapping[str, Any]) -> None:
    """Refuse names of classes that are no names, and a class for "no label" that is no class."""
    names, null_class = index.get("id2label"), index.get("null_class")
    if names is not None and not (isinstance(names, dict) and all(isinstance(name, str) for name in names.values())):
        raise ValueError(f"{shown} has id2label={reprlib.repr(names)}, which must be an object of names: mend it")
    if names is not None and len(names) > MOST_CLASSES:
        raise ValueError(f"{shown} has id2label of {len(names)} names, and {MOST_CLASSES} are allowed")
    if null_class is not None and not (type(null_class) is int and 0 <= null_class <= MOST_CLASSES):
        raise ValueError(
            f"{shown} has null_class={reprlib.repr(null_class)}, which must be null or a whole number from 0 to "
            f"{MOST_CLASSES}: mend it"
        )


def _entries(index: Mapping[str, Any], needed: set[str]) -> dict[str, tuple[str, str]]:
    """The components of an index.

    Raises:
        ValueError: one that is needed and lacks, one that nobody asked for, or code of the repository for a pipeline.
    """
    for name in sorted(needed):
        if not index.get(name):
            raise ValueError(f"{INDEX} lacks {name!r}: restore it from another copy")
    if not isinstance(index["_class_name"], str):
        raise ValueError(
            f"{INDEX} has _class_name={str(index['_class_name'])[:80]}, which is no class of diffusers or hf_ddpm: "
            "code of a repository runs only through DiffusionPipeline with custom_pipeline and trust_remote_code=True"
        )
    entries = {}
    for name, value in index.items():
        is_component = name in OUR_CLASSES or (isinstance(value, (list, dict)) and name not in FACTS)
        if name.startswith("_") or not is_component or (value == [None, None] and name not in needed):
            continue
        if name not in OUR_CLASSES:
            raise ValueError(f"{INDEX} has a component {name[:60]!r}, allowed are {', '.join(OUR_CLASSES)}")
        if not isinstance(value, list) or [type(word) for word in value] != [str, str]:
            raise ValueError(f"{INDEX} has {name}={reprlib.repr(value)}, not [library, class]: restore it")
        entries[name] = (value[0], value[1])
    return entries


def _ours(kind: type) -> str:
    """The name of a pipeline class of ours, for itself and for those derived from it."""
    return next(parent.__name__ for parent in kind.__mro__ if parent.__name__ in COMPONENTS)

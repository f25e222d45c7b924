"""What a saved checkpoint says to those who open it (the three doors of docs/checkpoints.md).

Door 1 is `HFDDPMPipeline.from_pretrained`. Door 2 is plain diffusers, opened only where its own classes return the same
images: the index then names them. Door 3 is plain diffusers with `custom_pipeline` and the code files written here.
"""

import ast
import inspect
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from diffusers.models.modeling_utils import ModelMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils.constants import DIFFUSERS_DYNAMIC_MODULE_NAME

INDEX = "model_index.json"
STOCK_PIPELINE, STOCK_SCHEDULER = "DDPMPipeline", "DDPMScheduler"
# What pipelines are made of, and where the classes of ours are defined that each part may have. `trust_remote_code`
# brings the same modules under these names (door 3).
OUR_CLASSES: dict[str, dict[str, str]] = {
    "unet": {},
    "vae": {"HFVAE": "hf_ddpm.models.vae"},
    "scheduler": {"HFDDPMScheduler": "hf_ddpm.schedulers.scheduling_hf_ddpm"},
    "classifier": {"NoisyClassifier": "hf_ddpm.models.noisy_classifier"},
    "image_processor": {},
    "generator": {"DDGANGenerator": "hf_ddpm.models.ddgan_generator"},
    "discriminator": {"DDGANDiscriminator": "hf_ddpm.models.ddgan_discriminator"},
}
OUR_MODULES = {word: module for classes in OUR_CLASSES.values() for word, module in classes.items()}
OUR_IMPORT = r"hf_ddpm\.\w+\.(\w+)"
GENERATED = "\n\n# Added by save_pretrained: diffusers copies the files that this one imports, and no others.\n"


def stock_samples_the_same(scheduler: Mapping[str, Any], unet: Mapping[str, Any], default_eta: float | None) -> bool:
    """Whether diffusers' DDPMPipeline and DDPMScheduler draw the images of `HFDDPMPipeline` from these configs.

    Stock takes `learned` for a variance, the root of a logarithm for `fixed_large_log`, has no mean prediction and no
    class labels, and splits 2C outputs for learned variances alone. Where the last timestep is not 0 its `fixed_large`
    and `learned_range` add noise to the final image.
    """
    ends_at_zero = scheduler["timestep_spacing"] == "linspace" or (
        scheduler["timestep_spacing"] == "leading" and scheduler["steps_offset"] == 0
    )
    right_variances = {"fixed_small", "fixed_small_log"} | ({"fixed_large", "learned_range"} if ends_at_zero else set())
    return (
        scheduler["prediction_type"] in ("epsilon", "sample", "v_prediction")
        and scheduler["variance_type"] in right_variances
        and (unet["out_channels"] == unet["in_channels"] or scheduler["variance_type"] == "learned_range")
        and unet.get("num_class_embeds") is None
        and unet.get("class_embed_type") is None
        and default_eta is None
    )


def open_stock_door(folder: Path) -> None:
    """Make the index of a saved pipeline name diffusers' own classes instead of ours."""
    with _editing_index(folder) as index:
        index["_class_name"] = STOCK_PIPELINE
        index["scheduler"] = ["diffusers", STOCK_SCHEDULER]
        for own in ("default_eta", "null_class", "id2label"):
            del index[own]


def forget_component(folder: Path, component: str) -> None:
    """Take an optional component that is not there out of the index of a saved pipeline."""
    with _editing_index(folder) as index:
        del index[component]


def name_ours(folder: Path) -> dict[str, str]:
    """Make the index of a saved pipeline name the components of ours by their classes alone.

    Opening a repository, diffusers refuses an index that names a module which is not brought, so the library is said to
    be diffusers, as it is for the pipeline; `known_modules` knows better, and stock classes fail loudly. A class that a
    user derived from ours keeps its own name and module.

    Returns:
        dict: the module of each component of ours, as this process calls it.
    """
    with _editing_index(folder) as index:
        ours = {name: entry[0] for name, entry in _components(index) if _is_ours(*entry)}
        index |= {name: ["diffusers", index[name][1]] for name in ours}
    return ours


def known_modules(index: Mapping[str, Any]) -> dict[str, Any]:
    """An index with our components under the modules that define them, and a stand-in for every class of others.

    Those of `transformers` that guide stay.
    """
    named = {}
    for name, (library, word) in _components(index):
        if library == "diffusers" or _is_ours(library, word):
            named[name] = [_beside(OUR_MODULES[word]) if word in OUR_MODULES else library, word]
        elif library == "transformers" and name in ("classifier", "image_processor"):
            named[name] = [library, word]  # the files of door 3 open it, as diffusers does; hf_ddpm wants it given
        else:
            named[name] = [__name__, AbsentScheduler.__name__ if name == "scheduler" else AbsentNetwork.__name__]
    return {**index, **named}


class AbsentNetwork(ModelMixin):
    """Stands for a network of a class that is neither ours nor diffusers', whose place only one that is given takes."""

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Refuse to import what the index names.

        Raises:
            ValueError: what to give.
        """
        _refuse(Path(args[0]))


class AbsentScheduler(SchedulerMixin):
    """The same for a scheduler."""

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As `AbsentNetwork` does."""
        _refuse(Path(args[0]))


def code_files(pipeline: str, components: Iterable[str] = ()) -> list[str]:
    """The modules that door 3 needs: these, what they import of ours, and so on.

    Args:
        pipeline: the module of a pipeline of ours, imported.
        components: the modules of its components that are ours.

    Returns:
        list: of the package, or of diffusers' cache in a process that came through door 3; the pipeline's first.
    """
    found: dict[str, None] = {}
    for root in (pipeline, *components):
        waiting = [root]
        while waiting:
            module = waiting.pop()
            if module not in found:
                found[module] = None
                waiting += _imports(module)
    return list(found)


def write_code(folder: Path, pipeline: str, components: Iterable[str]) -> None:
    """Write what `code_files` names, with relative imports: the pipeline as `pipeline.py`, which imports the rest."""
    files: dict[str, str] = {}
    for module in code_files(pipeline, components):
        files.setdefault(_file(module), module)  # beside door 3, hf_ddpm may have a second one of that name
    siblings = sorted(files.keys() - {_file(pipeline)})
    for name in siblings:
        (folder / f"{name}.py").write_text(relative_imports(_source(files[name])))
    (folder / "pipeline.py").write_text(relative_imports(_source(pipeline)) + _sibling_imports(siblings))


def _sibling_imports(siblings: Sequence[str]) -> str:
    """The end of `pipeline.py`."""
    return GENERATED + "\n".join(f"from .{name} import __name__ as _" for name in siblings) + "\n"


def _beside(module: str) -> str:
    """A module of ours as this process calls it: of code that came with a checkpoint, the file beside this one."""
    root = __name__.partition(".")[0]
    return module if root == module.partition(".")[0] else f"{__name__.rpartition('.')[0]}.{_file(module)}"


def _imports(module: str) -> list[str]:
    """The modules of ours that a module of ours imports at its top, in the package or in diffusers' cache."""
    nodes = [node for node in ast.parse(_source(module)).body if isinstance(node, ast.ImportFrom)]
    beside = [f"{module.rpartition('.')[0]}.{node.module}" for node in nodes if node.level == 1]
    return beside + [node.module for node in nodes if node.module and re.fullmatch(OUR_IMPORT, node.module)]


def _source(module: str) -> str:
    """The text of a module, without what `write_code` once added to it."""
    return inspect.getsource(sys.modules[module]).partition(GENERATED)[0]


def _file(module: str) -> str:
    return module.rpartition(".")[2]


def relative_imports(source: str) -> str:
    """`from hf_ddpm.<package>.x import` becomes `from .x import`; the rest stays as it is."""
    return re.sub(rf"^from {OUR_IMPORT} import", r"from .\1 import", source, flags=re.MULTILINE)


def _components(index: Mapping[str, Any]) -> list[tuple[str, tuple[str, str]]]:
    """The names, libraries and classes of what a pipeline of ours is made of."""
    entries = {name: index[name] for name in OUR_CLASSES if isinstance(index.get(name), list)}
    named = {name: entry for name, entry in entries.items() if [type(word) for word in entry] == [str, str]}
    return [(name, (library, word)) for name, (library, word) in named.items()]


def _is_ours(library: str, word: str) -> bool:
    """Whether this is a class of ours itself, of the package or of code files that came with a checkpoint."""
    module = OUR_MODULES.get(word, "")
    brought = library.startswith(f"{DIFFUSERS_DYNAMIC_MODULE_NAME}.") and _file(library) == _file(module)
    return library == module or brought


def _refuse(folder: Path) -> NoReturn:
    raise ValueError(
        f"{folder} holds a {folder.name} whose class is neither of diffusers nor of hf_ddpm, and nothing else is "
        f"imported for a checkpoint: open it yourself and give it, from_pretrained(..., {folder.name}=...)"
    )


@contextmanager
def _editing_index(folder: Path) -> Iterator[dict[str, Any]]:
    """The index of a saved pipeline, written again when the block ends."""
    path = folder / INDEX
    index = json.loads(path.read_text())
    yield index
    path.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")

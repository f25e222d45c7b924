"""The index and the code files of saved checkpoints, for the three ways to load them (docs/checkpoints.md).

Door 1 is `HFDDPMPipeline.from_pretrained`. Door 2 is plain diffusers, which is supported only if its own classes return
the same images: the index then names them. Door 3 is plain diffusers with `custom_pipeline` and the code files that are
written here.
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
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils.constants import DIFFUSERS_DYNAMIC_MODULE_NAME

INDEX = "model_index.json"
STOCK_PIPELINE, STOCK_SCHEDULER = "DDPMPipeline", "DDPMScheduler"
# The components of our pipelines, and the modules that define our classes for each of them. `trust_remote_code` imports
# the same modules under these names (door 3).
OUR_CLASSES: dict[str, dict[str, str]] = {
    "unet": {"ADMUNet": "hf_ddpm.models.adm_unet"},
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


def stock_samples_the_same(scheduler: Mapping[str, Any], network: Any, default_eta: float | None) -> bool:
    """Return whether diffusers' DDPMPipeline and DDPMScheduler draw the images of `HFDDPMPipeline`.

    Args:
        scheduler: The configuration of the scheduler.
        network: The UNet; diffusers has only `UNet2DModel`.
        default_eta: The `default_eta` of the pipeline.

    The stock classes treat `learned` as a variance, use the root of a logarithm for `fixed_large_log`, have no mean
    prediction and no class labels, and split 2C outputs only for learned variances. If the last timestep is not 0,
    their `fixed_large` and `learned_range` add noise to the final image.
    """
    if not isinstance(network, UNet2DModel):
        return False
    unet = network.config
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
    """Replace our classes in the index of a saved pipeline by diffusers' own."""
    with _editing_index(folder) as index:
        index["_class_name"] = STOCK_PIPELINE
        index["scheduler"] = ["diffusers", STOCK_SCHEDULER]
        for own in ("default_eta", "null_class", "id2label"):
            del index[own]


def forget_component(folder: Path, component: str) -> None:
    """Remove an optional component that does not exist from the index of a saved pipeline."""
    with _editing_index(folder) as index:
        del index[component]


def name_ours(folder: Path) -> dict[str, str]:
    """Write our components into the index of a saved pipeline with their class names only, and without their modules.

    diffusers does not load an index that names a module which the repository does not contain, so the library in the
    index is diffusers, as for the pipeline; `known_modules` corrects it, and stock classes raise an error. A class that
    a user derived from ours keeps its own name and module.

    Returns:
        dict: The module of each of our components, under its name in this process.
    """
    with _editing_index(folder) as index:
        ours = {name: entry[0] for name, entry in _components(index) if _is_ours(*entry)}
        index |= {name: ["diffusers", index[name][1]] for name in ours}
    return ours


def known_modules(index: Mapping[str, Any]) -> dict[str, Any]:
    """Return an index with our components under the modules that define them, and a placeholder for unknown classes.

    Classifiers and image processors from `transformers` are kept.
    """
    named = {}
    for name, (library, word) in _components(index):
        if library == "diffusers" or _is_ours(library, word):
            named[name] = [_beside(OUR_MODULES[word]) if word in OUR_MODULES else library, word]
        elif library == "transformers" and name in ("classifier", "image_processor"):
            named[name] = [library, word]  # loaded by the files of door 3, as by diffusers; hf_ddpm needs it passed
        else:
            named[name] = [__name__, AbsentScheduler.__name__ if name == "scheduler" else AbsentNetwork.__name__]
    return {**index, **named}


class AbsentNetwork(ModelMixin):
    """A placeholder for a network whose class is neither ours nor diffusers'; the user must pass the network."""

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Raise an error instead of importing the class that the index names.

        Raises:
            ValueError: Always; the message says what to pass.
        """
        _refuse(Path(args[0]))


class AbsentScheduler(SchedulerMixin):
    """A placeholder for a scheduler whose class is neither ours nor diffusers'."""

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Raise an error, like `AbsentNetwork`."""
        _refuse(Path(args[0]))


def code_files(pipeline: str, components: Iterable[str] = ()) -> list[str]:
    """Return the modules that door 3 needs: these, and all of our modules that they import, directly or indirectly.

    Args:
        pipeline: The module of one of our pipelines, which must be imported.
        components: The modules of those of its components that are ours.

    Returns:
        list: Modules of the package, or of diffusers' cache in a process that uses door 3, the pipeline's first.
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
    """Write the `code_files` with relative imports; the pipeline becomes `pipeline.py`, which imports all others."""
    files: dict[str, str] = {}
    for module in code_files(pipeline, components):
        files.setdefault(_file(module), module)  # next to door 3, hf_ddpm may have a second one with that name
    siblings = sorted(files.keys() - {_file(pipeline)})
    for name in siblings:
        (folder / f"{name}.py").write_text(relative_imports(_source(files[name])))
    (folder / "pipeline.py").write_text(relative_imports(_source(pipeline)) + _sibling_imports(siblings))


def _sibling_imports(siblings: Sequence[str]) -> str:
    """Return the end of `pipeline.py`."""
    return GENERATED + "\n".join(f"from .{name} import __name__ as _" for name in siblings) + "\n"


def _beside(module: str) -> str:
    """Return the name of one of our modules in this process: for code from a checkpoint, the file next to this one."""
    root = __name__.partition(".")[0]
    return module if root == module.partition(".")[0] else f"{__name__.rpartition('.')[0]}.{_file(module)}"


def _imports(module: str) -> list[str]:
    """Return our modules that one of our modules imports at its top, in the package or in diffusers' cache."""
    nodes = [node for node in ast.parse(_source(module)).body if isinstance(node, ast.ImportFrom)]
    beside = [f"{module.rpartition('.')[0]}.{node.module}" for node in nodes if node.level == 1]
    return beside + [node.module for node in nodes if node.module and re.fullmatch(OUR_IMPORT, node.module)]


def _source(module: str) -> str:
    """Return the text of a module, without the lines that `write_code` has added to it."""
    return inspect.getsource(sys.modules[module]).partition(GENERATED)[0]


def _file(module: str) -> str:
    return module.rpartition(".")[2]


def relative_imports(source: str) -> str:
    """Replace `from hf_ddpm.<package>.x import` by `from .x import`, and leave the rest unchanged."""
    return re.sub(rf"^from {OUR_IMPORT} import", r"from .\1 import", source, flags=re.MULTILINE)


def _components(index: Mapping[str, Any]) -> list[tuple[str, tuple[str, str]]]:
    """Return the names, libraries and classes of the components of one of our pipelines."""
    entries = {name: index[name] for name in OUR_CLASSES if isinstance(index.get(name), list)}
    named = {name: entry for name, entry in entries.items() if [type(word) for word in entry] == [str, str]}
    return [(name, (library, word)) for name, (library, word) in named.items()]


def _is_ours(library: str, word: str) -> bool:
    """Return whether this is one of our classes, from the package or from code files that came with a checkpoint."""
    module = OUR_MODULES.get(word, "")
    brought = library.startswith(f"{DIFFUSERS_DYNAMIC_MODULE_NAME}.") and _file(library) == _file(module)
    return library == module or brought


def _refuse(folder: Path) -> NoReturn:
    raise ValueError(
        f"the class of {folder} is defined neither in diffusers nor in hf_ddpm, and no other code is imported for a "
        f"checkpoint: load it yourself and pass it, from_pretrained(..., {folder.name}=...)"
    )


@contextmanager
def _editing_index(folder: Path) -> Iterator[dict[str, Any]]:
    """Read the index of a saved pipeline, and write it again when the block ends."""
    path = folder / INDEX
    index = json.loads(path.read_text())
    yield index
    path.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")

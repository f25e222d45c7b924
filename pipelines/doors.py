"""What a saved checkpoint says to those who open it (the three doors of docs/checkpoints.md).

Door 1 is `HFDDPMPipeline.from_pretrained`. Door 2 is plain diffusers, opened only where its own classes return the same
images: the index then names them. Door 3 is plain diffusers with `custom_pipeline` and the code files written here.
"""

import inspect
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

INDEX = "model_index.json"
STOCK_PIPELINE, STOCK_SCHEDULER = "DDPMPipeline", "DDPMScheduler"
COMPONENTS = {"HFDDPMPipeline": ("unet", "scheduler"), "HFVAEPipeline": ("vae",)}
# Where components of ours are defined. `trust_remote_code` brings the same modules under these names (door 3).
OUR_MODULES = {"HFDDPMScheduler": "hf_ddpm.schedulers.scheduling_hf_ddpm", "HFVAE": "hf_ddpm.models.vae"}


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
        del index["default_eta"]


def forget_component(folder: Path, component: str) -> None:
    """Take an optional component that is not there out of the index of a saved pipeline."""
    with _editing_index(folder) as index:
        del index[component]


def name_ours(folder: Path, component: str) -> None:
    """Make the index of a saved pipeline name a component of ours by its class alone.

    Opening a repository, diffusers refuses an index that names a module which is not brought, so the library is said to
    be diffusers, as it is for the pipeline; `our_modules` knows better, and stock classes fail loudly.
    """
    with _editing_index(folder) as index:
        index[component][0] = "diffusers"


def our_modules(index: Mapping[str, Any]) -> dict[str, Any]:
    """An index with our components under the modules that define them."""
    named = {name: value for name, value in index.items() if isinstance(value, list) and len(value) == 2}
    ours = {name: value[1] for name, value in named.items() if isinstance(value[1], str) and value[1] in OUR_MODULES}
    return {**index, **{name: [OUR_MODULES[word], word] for name, word in ours.items()}}


def check_index(pipeline: str, index: Mapping[str, Any]) -> None:
    """Refuse an index that names no class, or has nothing of what `pipeline` is made of.

    Raises:
        ValueError: what it lacks, or whose checkpoint it is and which of our classes opens it.
    """
    owner = index.get("_class_name")
    if not owner:
        raise ValueError(f"{INDEX} lacks '_class_name': restore it from another copy")
    if any(component in index for component in COMPONENTS[pipeline]):
        return
    opens = [name for name, components in COMPONENTS.items() if all(component in index for component in components)]
    raise ValueError(
        f"this is a checkpoint of {owner} and has no {' or '.join(COMPONENTS[pipeline])} for {pipeline}: "
        f"open it with {(*opens, owner)[0]}.from_pretrained"
    )


def write_code(folder: Path, pipeline: type, siblings: Sequence[type | Callable]) -> None:
    """Write the pipeline's file as `pipeline.py`, beside it the files that define `siblings`, with relative imports."""
    modules = {sibling.__module__.rsplit(".", 1)[-1]: sibling.__module__ for sibling in siblings}
    for name, module in ({"pipeline": pipeline.__module__} | modules).items():
        source = inspect.getsource(sys.modules[module])
        (folder / f"{name}.py").write_text(relative_imports(source))


def relative_imports(source: str) -> str:
    """`from hf_ddpm.<package>.x import` becomes `from .x import`; the rest stays as it is."""
    return re.sub(r"^from hf_ddpm\.\w+\.(\w+) import", r"from .\1 import", source, flags=re.MULTILINE)


@contextmanager
def _editing_index(folder: Path) -> Iterator[dict[str, Any]]:
    """The index of a saved pipeline, written again when the block ends."""
    path = folder / INDEX
    index = json.loads(path.read_text())
    yield index
    path.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")

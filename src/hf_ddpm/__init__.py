"""Models of the DDPM family in the Hugging Face format.

Names are imported when they are first used, so that code without torch does not have to wait for it.
"""

import sys
from typing import TYPE_CHECKING, Any

from hf_ddpm.errors import import_error
from hf_ddpm.version import __version__

if TYPE_CHECKING:
    from hf_ddpm.models import (
        CLASSIFIER_PRESETS,
        HFVAE,
        UNET_PRESETS,
        ADMUNet,
        NoisyClassifier,
        classifier_preset,
        unet_preset,
    )
    from hf_ddpm.pipelines import HFClassifierPipeline, HFDDGANPipeline, HFDDPMPipeline, HFVAEPipeline
    from hf_ddpm.schedulers import HFDDPMScheduler

__all__ = [
    "CLASSIFIER_PRESETS",
    "HFVAE",
    "UNET_PRESETS",
    "ADMUNet",
    "HFClassifierPipeline",
    "HFDDGANPipeline",
    "HFDDPMPipeline",
    "HFDDPMScheduler",
    "HFVAEPipeline",
    "NoisyClassifier",
    "__version__",
    "classifier_preset",
    "unet_preset",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'hf_ddpm' has no attribute {name!r}")
    _forget_brought_modules()
    try:
        from hf_ddpm import models, pipelines, schedulers
    except (ImportError, RuntimeError) as error:  # diffusers turns an ImportError into a RuntimeError
        raise import_error(error) from error
    return next(getattr(room, name) for room in (models, pipelines, schedulers) if name in room.__all__)


def __dir__() -> list[str]:
    return sorted(__all__)


def _forget_brought_modules() -> None:
    """Remove the modules that the code files of a checkpoint (door 3) have added under the names of this package.

    Such code replaces a package that is not installed; hf_ddpm uses its own classes, even if a checkpoint was opened
    with its code files before.
    """
    for name, module in [*sys.modules.items()]:
        if name.startswith("hf_ddpm.") and getattr(module, "__name__", None) != name:
            del sys.modules[name]


_forget_brought_modules()


# Functions of the package that its classes call, and that the code files of a checkpoint do without.


def open_pipeline(kind: Any, source: Any, **kwargs: Any) -> Any:
    """Load a pipeline, after checking its files."""
    from hf_ddpm import opening

    return opening.open_pipeline(kind, source, **kwargs)


def open_network(kind: Any, source: Any, **kwargs: Any) -> Any:
    """Load a network, after checking its files."""
    from hf_ddpm import opening

    return opening.open_network(kind, source, **kwargs)


def push_pipeline(pipeline: Any, repo_id: str, **kwargs: Any) -> str:
    """Push a pipeline with a model card of what is known about it."""
    from hf_ddpm import hub

    return hub.push_pipeline(pipeline, repo_id, **kwargs)

"""The DDPM family as first-class Hugging Face citizens."""

from typing import TYPE_CHECKING, Any

from hf_ddpm.errors import import_error
from hf_ddpm.version import __version__

try:
    from hf_ddpm.models import CLASSIFIER_PRESETS, HFVAE, UNET_PRESETS, NoisyClassifier, classifier_preset, unet_preset
    from hf_ddpm.models.checked_network import CheckedNetwork
    from hf_ddpm.opening import open_network, open_pipeline
    from hf_ddpm.pipelines import HFClassifierPipeline, HFDDGANPipeline, HFDDPMPipeline, HFVAEPipeline
    from hf_ddpm.pipelines.opening import CheckedOpening
    from hf_ddpm.schedulers import HFDDPMScheduler
except (ImportError, RuntimeError) as error:  # diffusers turns one into the other
    raise import_error(error) from error

if TYPE_CHECKING:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

__all__ = [
    "CLASSIFIER_PRESETS",
    "HFVAE",
    "UNET_PRESETS",
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


def _push_with_card(pipeline: "DiffusionPipeline", repo_id: str, **kwargs: Any) -> str:
    from hf_ddpm.hub import push_pipeline  # which nobody needs who does not push

    return push_pipeline(pipeline, repo_id, **kwargs)


# What code that came with a checkpoint does without.
CheckedOpening.open_checked, CheckedNetwork.open_checked = open_pipeline, open_network
CheckedOpening.push_with_card = _push_with_card

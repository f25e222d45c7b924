"""The DDPM family as first-class Hugging Face citizens."""

from typing import Any

from hf_ddpm.errors import import_error
from hf_ddpm.version import __version__

try:
    from hf_ddpm.models import HFVAE, UNET_PRESETS, unet_preset
    from hf_ddpm.opening import open_hf_vae, open_pipeline
    from hf_ddpm.pipelines import HFDDPMPipeline, HFVAEPipeline
    from hf_ddpm.pipelines.opening import CheckedOpening
    from hf_ddpm.schedulers import HFDDPMScheduler
except (ImportError, RuntimeError) as error:  # diffusers turns one into the other
    raise import_error(error) from error

__all__ = ["HFVAE", "UNET_PRESETS", "HFDDPMPipeline", "HFDDPMScheduler", "HFVAEPipeline", "__version__", "unet_preset"]


def _push_with_card(pipeline: HFDDPMPipeline | HFVAEPipeline, repo_id: str, **kwargs: Any) -> str:
    from hf_ddpm.hub import push_pipeline  # which nobody needs who does not push

    return push_pipeline(pipeline, repo_id, **kwargs)


# What code that came with a checkpoint does without.
CheckedOpening.open_checked, HFVAE.open_checked = open_pipeline, open_hf_vae
CheckedOpening.push_with_card = _push_with_card

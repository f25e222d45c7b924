"""The DDPM family as first-class Hugging Face citizens."""

from hf_ddpm.models import UNET_PRESETS, unet_preset
from hf_ddpm.pipelines import HFDDPMPipeline
from hf_ddpm.schedulers import HFDDPMScheduler
from hf_ddpm.version import __version__

__all__ = ["UNET_PRESETS", "HFDDPMPipeline", "HFDDPMScheduler", "__version__", "unet_preset"]

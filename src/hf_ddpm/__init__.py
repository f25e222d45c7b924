"""The DDPM family as first-class Hugging Face citizens."""

from hf_ddpm.models import HFVAE, UNET_PRESETS, unet_preset
from hf_ddpm.pipelines import HFDDPMPipeline, HFVAEPipeline
from hf_ddpm.schedulers import HFDDPMScheduler
from hf_ddpm.version import __version__

__all__ = ["HFVAE", "UNET_PRESETS", "HFDDPMPipeline", "HFDDPMScheduler", "HFVAEPipeline", "__version__", "unet_preset"]

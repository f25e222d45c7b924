"""The DDPM family as first-class Hugging Face citizens."""

from importlib import import_module
from typing import TYPE_CHECKING

from hf_ddpm.version import __version__

if TYPE_CHECKING:
    from hf_ddpm.models import HFVAE, UNET_PRESETS, unet_preset
    from hf_ddpm.pipelines import HFDDPMPipeline, HFVAEPipeline
    from hf_ddpm.schedulers import HFDDPMScheduler
else:
    PLACES = {"models": ("HFVAE", "UNET_PRESETS", "unet_preset"), "schedulers": ("HFDDPMScheduler",)}
    PLACES |= {"pipelines": ("HFDDPMPipeline", "HFVAEPipeline")}

    def __getattr__(name):
        """Import a name when it is asked for: torch takes seconds, which `hf-ddpm --help` need not wait."""
        for place, names in PLACES.items():
            if name in names:
                return getattr(import_module(f"hf_ddpm.{place}"), name)
        raise AttributeError(f"module 'hf_ddpm' has no attribute {name!r}")


__all__ = ["HFVAE", "UNET_PRESETS", "HFDDPMPipeline", "HFDDPMScheduler", "HFVAEPipeline", "__version__", "unet_preset"]

"""The names of `hf_ddpm`, all of which this imports."""

from hf_ddpm.models import CLASSIFIER_PRESETS, HFVAE, UNET_PRESETS, NoisyClassifier, classifier_preset, unet_preset
from hf_ddpm.pipelines import HFClassifierPipeline, HFDDGANPipeline, HFDDPMPipeline, HFVAEPipeline
from hf_ddpm.schedulers import HFDDPMScheduler

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
    "classifier_preset",
    "unet_preset",
]

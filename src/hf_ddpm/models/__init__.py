"""Networks: the UNets of the papers as presets of diffusers' `UNet2DModel`, the VAE, and the noisy classifier."""

from hf_ddpm.models.classifier_presets import CLASSIFIER_PRESETS, ClassifierPreset, classifier_preset
from hf_ddpm.models.noisy_classifier import NoisyClassifier
from hf_ddpm.models.unet import UNET_PRESETS, UNetPreset, unet_preset
from hf_ddpm.models.unet_checks import check_image_size
from hf_ddpm.models.unet_init import init_unet
from hf_ddpm.models.vae import HFVAE

__all__ = [
    "CLASSIFIER_PRESETS",
    "HFVAE",
    "UNET_PRESETS",
    "ClassifierPreset",
    "NoisyClassifier",
    "UNetPreset",
    "check_image_size",
    "classifier_preset",
    "init_unet",
    "unet_preset",
]

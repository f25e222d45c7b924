"""Networks: the papers' UNets as presets, a VAE, a noisy classifier and the networks of a GAN."""

from hf_ddpm.models.adm_unet import ADMUNet
from hf_ddpm.models.classifier_presets import CLASSIFIER_PRESETS, classifier_preset
from hf_ddpm.models.ddgan_discriminator import DDGANDiscriminator
from hf_ddpm.models.ddgan_generator import DDGANGenerator
from hf_ddpm.models.ddgan_presets import (
    DISCRIMINATOR_PRESETS,
    GENERATOR_PRESETS,
    discriminator_preset,
    generator_preset,
)
from hf_ddpm.models.noisy_classifier import NoisyClassifier
from hf_ddpm.models.presets import NetworkPreset
from hf_ddpm.models.unet import UNET_PRESETS, UNetPreset, unet_preset
from hf_ddpm.models.unet_checks import check_image_size
from hf_ddpm.models.unet_init import init_unet
from hf_ddpm.models.vae import HFVAE

__all__ = [
    "CLASSIFIER_PRESETS",
    "DISCRIMINATOR_PRESETS",
    "GENERATOR_PRESETS",
    "HFVAE",
    "UNET_PRESETS",
    "ADMUNet",
    "DDGANDiscriminator",
    "DDGANGenerator",
    "NetworkPreset",
    "NoisyClassifier",
    "UNetPreset",
    "check_image_size",
    "classifier_preset",
    "discriminator_preset",
    "generator_preset",
    "init_unet",
    "unet_preset",
]

"""Networks: the UNets of the papers as presets of diffusers' `UNet2DModel`, and the VAE."""

from hf_ddpm.models.unet import UNET_PRESETS, UNetPreset, unet_preset
from hf_ddpm.models.unet_checks import check_image_size
from hf_ddpm.models.unet_init import init_unet
from hf_ddpm.models.vae import HFVAE

__all__ = ["HFVAE", "UNET_PRESETS", "UNetPreset", "check_image_size", "init_unet", "unet_preset"]

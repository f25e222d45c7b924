"""Likelihoods of images: of a diffusion model by its bound and its ODE, of a VAE by importance sampling."""

from hf_ddpm.likelihood.bound import BoundTerms, bound_terms
from hf_ddpm.likelihood.evaluate import LEAST_IMAGES, DiffusionLikelihood, evaluate
from hf_ddpm.likelihood.flow import FlowTerms, flow_log_density, flow_terms
from hf_ddpm.likelihood.images import GridImages, draw_images, grid_images
from hf_ddpm.likelihood.importance import ImportanceTerms, VAELikelihood, evaluate_vae, importance_terms
from hf_ddpm.likelihood.network import Network
from hf_ddpm.likelihood.noise_angle import NoiseAngle

__all__ = [
    "LEAST_IMAGES",
    "BoundTerms",
    "DiffusionLikelihood",
    "FlowTerms",
    "GridImages",
    "ImportanceTerms",
    "Network",
    "NoiseAngle",
    "VAELikelihood",
    "bound_terms",
    "draw_images",
    "evaluate",
    "evaluate_vae",
    "flow_log_density",
    "flow_terms",
    "grid_images",
    "importance_terms",
]

"""How probable a model finds images, in bits a dimension: the variational bound, and the probability-flow ODE."""

from hf_ddpm.likelihood.bound import BoundTerms, bound_terms
from hf_ddpm.likelihood.evaluate import LEAST_IMAGES, Likelihood, evaluate
from hf_ddpm.likelihood.flow import FlowTerms, flow_log_density, flow_terms
from hf_ddpm.likelihood.images import GridImages, draw_images, grid_images
from hf_ddpm.likelihood.network import Network
from hf_ddpm.likelihood.noise_angle import NoiseAngle

__all__ = [
    "LEAST_IMAGES",
    "BoundTerms",
    "FlowTerms",
    "GridImages",
    "Likelihood",
    "Network",
    "NoiseAngle",
    "bound_terms",
    "draw_images",
    "evaluate",
    "flow_log_density",
    "flow_terms",
    "grid_images",
]

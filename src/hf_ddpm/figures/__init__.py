"""Figures of the DDPM, DDIM and ADM papers, drawn from a checkpoint: `hf-ddpm figure NAME`, or these functions.

Each is a pure function of its arguments, such as a pipeline, images and a seed; none changes the pipeline's weights.
"""

from collections.abc import Callable

from hf_ddpm.figures.distances import ddim_consistency, reconstruction, x0_distance
from hf_ddpm.figures.figure import Figure, save_figure
from hf_ddpm.figures.guidance import guidance
from hf_ddpm.figures.interpolations import coarse_to_fine, ddim_interpolation, interpolation
from hf_ddpm.figures.neighbours import nearest_neighbours
from hf_ddpm.figures.rate_distortion import rate_distortion
from hf_ddpm.figures.reverse_gaussian import reverse_gaussian
from hf_ddpm.figures.trajectories import forward, progressive, shared_latents

FIGURES: dict[str, Callable[..., Figure]] = {
    "forward": forward,
    "progressive": progressive,
    "shared-latents": shared_latents,
    "interpolation": interpolation,
    "ddim-interpolation": ddim_interpolation,
    "coarse-to-fine": coarse_to_fine,
    "x0-distance": x0_distance,
    "rate-distortion": rate_distortion,
    "reverse-gaussian": reverse_gaussian,
    "nearest-neighbours": nearest_neighbours,
    "ddim-consistency": ddim_consistency,
    "reconstruction": reconstruction,
    "guidance": guidance,
}

__all__ = [
    "FIGURES",
    "Figure",
    "coarse_to_fine",
    "ddim_consistency",
    "ddim_interpolation",
    "forward",
    "guidance",
    "interpolation",
    "nearest_neighbours",
    "progressive",
    "rate_distortion",
    "reconstruction",
    "reverse_gaussian",
    "save_figure",
    "shared_latents",
    "x0_distance",
]

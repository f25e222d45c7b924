"""What a model is trained to minimise: each file reads like its paper's algorithm box."""

from hf_ddpm.objectives.simple import SimpleObjective

__all__ = ["SimpleObjective"]

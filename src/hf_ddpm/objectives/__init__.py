"""What a model is trained to minimise: each file reads like its paper's algorithm box."""

from hf_ddpm.objectives.elbo import ELBOObjective
from hf_ddpm.objectives.hybrid import HybridObjective
from hf_ddpm.objectives.objective import Objective, make_objective
from hf_ddpm.objectives.simple import SimpleObjective
from hf_ddpm.objectives.vlb import VLBObjective

__all__ = ["ELBOObjective", "HybridObjective", "Objective", "SimpleObjective", "VLBObjective", "make_objective"]

"""Training objectives: each file follows the algorithm box of its paper.

`SimpleObjective.loss` is L_simple of DDPM, `VLBObjective.loss` is the variational bound, `HybridObjective.loss` is the
loss of Improved DDPM, `ELBOObjective.loss` is the loss of a VAE, `ClassificationObjective.loss` is the loss of a noisy
classifier, and `AdversarialObjective` is for a denoising GAN; `Objective` is the interface that `training/train.py`
uses.
"""

from hf_ddpm.objectives.adversarial import DISCRIMINATOR, GENERATOR, AdversarialObjective
from hf_ddpm.objectives.classification import ClassificationObjective
from hf_ddpm.objectives.elbo import ELBOObjective
from hf_ddpm.objectives.from_recipe import make_objective
from hf_ddpm.objectives.hybrid import HybridObjective
from hf_ddpm.objectives.objective import MODEL, Draws, Losses, Objective
from hf_ddpm.objectives.simple import SimpleObjective
from hf_ddpm.objectives.vlb import VLBObjective

__all__ = [
    "DISCRIMINATOR",
    "GENERATOR",
    "MODEL",
    "AdversarialObjective",
    "ClassificationObjective",
    "Draws",
    "ELBOObjective",
    "HybridObjective",
    "Losses",
    "Objective",
    "SimpleObjective",
    "VLBObjective",
    "make_objective",
]

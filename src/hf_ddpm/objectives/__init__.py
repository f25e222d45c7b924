"""What a model is trained to minimise: each file reads like its paper's algorithm box.

`SimpleObjective.loss` is L_simple of DDPM, `VLBObjective.loss` the variational bound, `HybridObjective.loss` Improved
DDPM's, `ELBOObjective.loss` that of a VAE, `ClassificationObjective.loss` that of a noisy classifier,
`AdversarialObjective` a denoising GAN's; `Objective` says what `training/train.py` asks of each.
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

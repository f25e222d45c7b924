"""An objective of one player, asked about a batch without a training loop around it."""

import torch

from hf_ddpm.data import Batch
from hf_ddpm.objectives import MODEL, Draws


def losses_of(objective, model, x_0, labels=None, step=0, bit_depth=8, **rows):
    """The loss of each image, with gradients."""
    batch, draws = Batch(x_0, labels, torch.arange(len(x_0)), bit_depth), Draws(rows, torch.ones(len(x_0)))
    return objective.loss(MODEL, {MODEL: model}, batch, draws, step).each

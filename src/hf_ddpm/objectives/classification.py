"""The objective of a noisy classifier (Dhariwal & Nichol 2021, arXiv 2105.05233, sec. 4): -log p(y | x_t, t)."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from hf_ddpm.objectives.diffusion import DiffusionObjective
from hf_ddpm.objectives.objective import Draws, Losses
from hf_ddpm.objectives.timestep_sampling import TimestepSampler, TimestepSampling
from hf_ddpm.schedulers import HFDDPMScheduler

if TYPE_CHECKING:
    from hf_ddpm.data import Batch

QUARTILES = 4  # of t
MANY = 5  # the number of classes in a top-5 accuracy


class ClassificationObjective(DiffusionObjective):
    """E_{t, x_0, eps} -log p(y | x_t, t), x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps, in nats.

    Args:
        scheduler: The noise process, which must be that of the diffusion model to guide.
        timestep_sampling: How t is drawn, see `make_objective`; ADM draws it uniformly.
        logit_mean: The mean of the logits of `logit_normal`; a higher mean means more noise.
        logit_std: The standard deviation of the logits of `logit_normal`.

    Raises:
        ValueError: If the sampling is unknown, or a number is out of range.
    """

    def __init__(
        self,
        scheduler: HFDDPMScheduler,
        *,
        timestep_sampling: TimestepSampling = "uniform",
        logit_mean: float = 0.0,
        logit_std: float = 1.0,
    ) -> None:
        sampler = TimestepSampler(len(scheduler), timestep_sampling, logit_mean=logit_mean, logit_std=logit_std)
        super().__init__(scheduler, sampler)

    def loss(self, turn: str, models: Mapping[str, nn.Module], batch: "Batch", draws: Draws, step: int) -> Losses:
        """Compute the cross-entropy of each image, (B,), and `top1_q1` .. `top5_q4`: the accuracy per quartile of t.

        Raises:
            ValueError: If the images have no labels.
        """
        x_0, y, t, noise = batch.x_0, batch.labels, draws.rows["t"], draws.rows["noise"]
        if y is None:
            raise ValueError("a classifier learns from labels, but these images have none: set --label_column auto")
        logits = models[turn](self.scheduler.add_noise(x_0, noise, t), t).logits.float()  # (B, K)
        quartile = quartile_of(t, len(self.scheduler))
        said = {
            f"{name}_q{q + 1}": torch.stack([(right & (quartile == q)).sum(), (quartile == q).sum()])
            for name, right in is_right(logits.detach(), y).items()
            for q in range(QUARTILES)
        }
        return Losses(cross_entropy(logits, y, reduction="none"), said)


def is_right(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Return whether the label is the most probable class, `top1`, or one of the first five, `top5`, each (B,) bool.

    There is no `top5` for five classes or fewer: it would always be True.
    """
    found = {"top1": logits.argmax(dim=1) == labels}
    if logits.shape[1] > MANY:
        found["top5"] = (logits.topk(MANY, dim=1).indices == labels[:, None]).any(dim=1)
    return found


def quartile_of(t: Tensor, num_steps: int) -> Tensor:
    """Return the quarter of 0 .. T-1 that each t lies in, 0 .. 3."""
    return t * QUARTILES // num_steps

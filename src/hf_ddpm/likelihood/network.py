"""A network in its own precision, called from formulas in float64."""

from typing import Any

import torch
from torch import Tensor, nn

from hf_ddpm.errors import UserError
from hf_ddpm.likelihood.images import GridImages
from hf_ddpm.schedulers import HFDDPMScheduler


class Network:
    """`module` and the scheduler it was trained with, in and out of float64.

    The formulas run where float64 is: on the network's own CPU or CUDA device, else on the CPU.

    Args:
        module: called as `module(x_t, t, class_labels=labels).sample`, C channels to C or 2C; in eval mode, as
            `from_pretrained` opens it (`evaluate` sees to that).
        scheduler: says what the output means.

    Raises:
        UserError: a scheduler that is not `HFDDPMScheduler`, whose reverse process is not known here.
    """

    def __init__(self, module: nn.Module, scheduler: object) -> None:
        if not isinstance(scheduler, HFDDPMScheduler):
            raise UserError(
                f"the checkpoint's scheduler is {type(scheduler).__name__}: likelihoods are those of HFDDPMScheduler, "
                "DDPMScheduler and DDIMScheduler, which load_pipeline turns into it"
            )
        self.module, self.scheduler = module, scheduler
        weight = next(module.parameters(), torch.zeros(()))
        self.dtype, self.device = weight.dtype, weight.device
        self.formulas = float64_device(self.device)

    def __call__(self, x_t: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        """The output at (x_t, t), float64 on the formulas' device; `t` (B,) whole numbers or not."""
        given: dict[str, Any] = {} if labels is None else {"class_labels": labels.to(self.device)}
        precise = torch.promote_types(self.dtype, torch.float32)  # bfloat16 has no 998.5: its neighbours are 996, 1000
        time = t.to(self.device, precise if t.is_floating_point() else t.dtype)
        output: Tensor = self.module(x_t.to(self.device, self.dtype), time, **given).sample
        return output.to(x_t.device, x_t.dtype)

    def check(self, images: GridImages) -> None:
        """Refuse images that this network was not made for.

        Raises:
            UserError: other channels or another size, labels that are missing, too many, or out of range; an output
                without the variance that the scheduler reads, or with one that it does not.
        """
        config: dict[str, Any] = dict(getattr(self.module, "config", {}))
        _, channels, *size = images.levels.shape
        wanted = config.get("in_channels", channels)
        if channels != wanted:
            raise UserError(f"the images have {channels} channel(s) and the network takes {wanted}: convert them")
        self._check_output(channels, config.get("out_channels"))
        side = config.get("sample_size") or size
        expected = [side, side] if isinstance(side, int) else list(side)
        if size != expected:
            raise UserError(
                f"the images are {size[0]}x{size[1]} and the network was trained on {expected[0]}x{expected[1]}: "
                "resize them as integers, as in training"
            )
        self._check_labels(images.labels, config.get("num_class_embeds"))

    def _check_output(self, channels: int, given: int | None) -> None:
        needed = channels * (2 if self.scheduler.learns_variance else 1)
        if given not in (None, needed):
            variance_type = self.scheduler.config["variance_type"]
            raise UserError(
                f"the network gives {given} channel(s) and variance_type={variance_type!r} reads {needed}: take the "
                "scheduler that it was trained with, or correct variance_type in scheduler/scheduler_config.json"
            )

    def _check_labels(self, labels: Tensor | None, num_classes: int | None) -> None:
        if num_classes is None:
            if labels is not None:
                raise UserError("labels were given and the network was trained without classes: leave them out")
            return
        if labels is None:
            raise UserError(f"the network was trained with {num_classes} classes: give the images' labels")
        if not bool(((labels >= 0) & (labels < num_classes)).all()):
            low, high = int(labels.min()), int(labels.max())
            raise UserError(f"labels {low}..{high} must lie within 0..{num_classes - 1}, the network's classes")


def float64_device(device: torch.device) -> torch.device:
    """Where float64 is: a network's own CPU or CUDA device, else the CPU."""
    return device if device.type == "cuda" else torch.device("cpu")

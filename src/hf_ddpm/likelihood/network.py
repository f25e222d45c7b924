"""A network in its own precision, called from formulas in float64."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hf_ddpm.errors import UserError, as_user_error
from hf_ddpm.likelihood.images import GridImages
from hf_ddpm.pipelines.network_signature import NetworkSignature
from hf_ddpm.pipelines.walk import Predict
from hf_ddpm.schedulers import HFDDPMScheduler


class Network:
    """`module` and the scheduler it was trained with, in and out of float64.

    The formulas run where float64 is: on the network's own CPU or CUDA device, else on the CPU.

    Args:
        module: called as `module(x_t, t, class_labels=labels).sample`, C channels to C or 2C; in eval mode, as
            `from_pretrained` opens it (`evaluate` sees to that).
        scheduler: says what the output means.
        null_class: of the pipeline's signature, the class that no image has.

    Raises:
        UserError: a scheduler that is not `HFDDPMScheduler`, whose reverse process is not known here.
    """

    def __init__(self, module: nn.Module, scheduler: object, null_class: int | None = None) -> None:
        if not isinstance(scheduler, HFDDPMScheduler):
            raise UserError(
                f"the checkpoint's scheduler is {type(scheduler).__name__}: likelihoods are those of HFDDPMScheduler, "
                "DDPMScheduler and DDIMScheduler, which load_pipeline turns into it"
            )
        self.module, self.scheduler, self.null_class = module, scheduler, null_class
        self.config: Mapping[str, Any] = getattr(module, "config", {})
        weight = next(module.parameters(), torch.zeros(()))
        self.dtype, self.device = weight.dtype, weight.device
        self.formulas = float64_device(self.device)

    def __call__(self, x_t: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        """The output at (x_t, t), float64 on the formulas' device; `t` (B,) whole numbers or not."""
        predict = Predict(self.module, None if labels is None else labels.to(self.device))
        precise = torch.promote_types(self.dtype, torch.float32)  # bfloat16 has no 998.5: its neighbours are 996, 1000
        time = t.to(self.device, precise if t.is_floating_point() else t.dtype)
        return predict(x_t.to(self.device, self.dtype), time).to(x_t.device, x_t.dtype)

    def check(self, images: GridImages) -> None:
        """Refuse images that this network was not made for; one without a config takes any.

        Raises:
            UserError: other channels or another size, labels that are missing, too many, or out of range; an output
                without the variance that the scheduler reads, or with one that it does not.
        """
        if not self.config:
            return
        signature = NetworkSignature.of(self.config, self.scheduler.config, self.null_class)
        _, channels, *size = images.levels.shape
        if channels != signature.channels:
            raise UserError(
                f"the images have {channels} channel(s) and the network takes {signature.channels}: convert them"
            )
        if signature.out_channels != signature.read_channels:
            raise UserError(
                f"the network gives {signature.out_channels} channel(s) and variance_type={signature.variance_type!r} "
                f"reads {signature.read_channels}: take the scheduler that it was trained with, or correct "
                "variance_type in scheduler/scheduler_config.json"
            )
        if signature.size not in (None, tuple(size)):
            raise UserError(
                f"the images are {_by(size)} and the network was trained on {_by(signature.size)}: "
                "resize them as integers, as in training"
            )
        with as_user_error():
            signature.labels(images.labels, len(images.levels), "the images' labels")


def _by(size: Sequence[int]) -> str:
    return "x".join(map(str, size))


def float64_device(device: torch.device) -> torch.device:
    """Where float64 is: a network's own CPU or CUDA device, else the CPU."""
    return device if device.type == "cuda" else torch.device("cpu")

"""A network that runs in its own precision and is called by formulas in float64."""

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
    """A network and the scheduler that it was trained with, with inputs and outputs in float64.

    The formulas run on a device that supports float64: the network's own CPU or CUDA device, or else the CPU.

    Args:
        module: The network, called as `module(x_t, t, class_labels=labels).sample`, from C channels to C or 2C; in
            evaluation mode, as `from_pretrained` opens it (`evaluate` ensures this).
        scheduler: The scheduler, which defines the meaning of the output.
        null_class: The null class of the pipeline's signature, which no image has.

    Raises:
        UserError: If the scheduler is not an `HFDDPMScheduler`: the reverse process of others is not supported here.
    """

    def __init__(self, module: nn.Module, scheduler: object, null_class: int | None = None) -> None:
        if not isinstance(scheduler, HFDDPMScheduler):
            raise UserError(
                f"the checkpoint's scheduler is {type(scheduler).__name__}, but a likelihood needs an HFDDPMScheduler; "
                "save the checkpoint with the HFDDPMScheduler that it was trained with"
            )
        self.module, self.scheduler, self.null_class = module, scheduler, null_class
        self.config: Mapping[str, Any] = getattr(module, "config", {})
        weight = next(module.parameters(), torch.zeros(()))
        self.dtype, self.device = weight.dtype, weight.device
        self.formulas = float64_device(self.device)

    def __call__(self, x_t: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        """Return the output at (x_t, t), float64 on the formulas' device; `t` (B,) may lie between integers."""
        predict = Predict(self.module, None if labels is None else labels.to(self.device))
        precise = torch.promote_types(self.dtype, torch.float32)  # bfloat16 has no 998.5: its neighbours are 996, 1000
        time = t.to(self.device, precise if t.is_floating_point() else t.dtype)
        return predict(x_t.to(self.device, self.dtype), time).to(x_t.device, x_t.dtype)

    def check(self, images: GridImages) -> None:
        """Check that images fit this network; a network without a config accepts any images.

        Raises:
            UserError: If the channels or the size differ, if labels are missing, superfluous or out of range, or if the
                output lacks the variance that the scheduler reads, or has one that it does not read.
        """
        if not self.config:
            return
        signature = NetworkSignature.of(self.config, self.scheduler.config, self.null_class)
        _, channels, *size = images.levels.shape
        if channels != signature.channels:
            raise UserError(
                f"the images have {channels} channel(s), but the network needs {signature.channels}: convert them"
            )
        if signature.out_channels != signature.read_channels:
            raise UserError(
                f"the network outputs {signature.out_channels} channel(s), but variance_type="
                f"{signature.variance_type!r} reads {signature.read_channels}: use the scheduler that it was trained "
                "with, or correct variance_type in scheduler/scheduler_config.json"
            )
        if signature.size not in (None, tuple(size)):
            raise UserError(
                f"the images are {_by(size)}, but the network was trained on {_by(signature.size)}: "
                "resize their integer pixels, as in training"
            )
        with as_user_error():
            signature.labels(images.labels, len(images.levels), "the images' labels")


def _by(size: Sequence[int]) -> str:
    return "x".join(map(str, size))


def float64_device(device: torch.device) -> torch.device:
    """Return a device that supports float64: the network's own CPU or CUDA device, or else the CPU."""
    return device if device.type == "cuda" else torch.device("cpu")

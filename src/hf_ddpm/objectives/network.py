"""The call of the network that all objectives share."""

from torch import Tensor, nn

from hf_ddpm.schedulers import HFDDPMScheduler


def network_output(
    model: nn.Module, scheduler: HFDDPMScheduler, x_t: Tensor, t: Tensor, labels: Tensor | None
) -> Tensor:
    """Return model(x_t, t): the prediction, (B, C, H, W), or also the variance, (B, 2C, H, W), if it is learned.

    Raises:
        ValueError: If the output does not have the shape that the scheduler's `variance_type` requires.
    """
    output = model(x_t, t, **({} if labels is None else {"class_labels": labels})).sample
    batch_size, channels, *size = x_t.shape
    wanted = (batch_size, scheduler.output_channels(channels), *size)
    if output.shape != wanted:
        raise ValueError(
            f"the model returns shape {tuple(output.shape)}, but variance_type="
            f"{scheduler.config['variance_type']!r} requires {wanted}: build it with out_channels={wanted[1]}"
        )
    return output.to(x_t.dtype)

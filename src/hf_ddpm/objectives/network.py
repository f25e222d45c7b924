"""The one question that every objective asks its network."""

from torch import Tensor, nn

from hf_ddpm.schedulers import HFDDPMScheduler


def network_output(
    model: nn.Module, scheduler: HFDDPMScheduler, x_t: Tensor, t: Tensor, labels: Tensor | None
) -> Tensor:
    """model(x_t, t): the prediction (B, C, H, W), with the variance (B, 2C, H, W) where the scheduler learns one.

    Raises:
        ValueError: another shape than the scheduler's `variance_type` asks for.
    """
    output = model(x_t, t, **({} if labels is None else {"class_labels": labels})).sample
    batch_size, channels, *size = x_t.shape
    wanted = (batch_size, scheduler.output_channels(channels), *size)
    if output.shape != wanted:
        raise ValueError(
            f"the model returns {tuple(output.shape)} where variance_type={scheduler.config['variance_type']!r} "
            f"needs {wanted}: build it with out_channels={wanted[1]}"
        )
    return output.to(x_t.dtype)

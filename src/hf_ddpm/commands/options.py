"""What several commands take."""

import argparse
from typing import TYPE_CHECKING

from hf_ddpm.errors import UserError

if TYPE_CHECKING:
    from hf_ddpm.pipelines import HFDDPMPipeline


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """The checkpoint, first on the command line."""
    parser.add_argument("checkpoint", help="a folder that training saved, or a Hub name")


def add_device(parser: argparse.ArgumentParser) -> None:
    """`--device`."""
    parser.add_argument("--device", help="cpu, cuda, mps (default: the best there is)")


def require_positive(options: argparse.Namespace, *names: str) -> None:
    """Refuse options below 1."""
    for name in names:
        if getattr(options, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(options, name)} must be at least 1")


def on_device(pipeline: "HFDDPMPipeline", name: str | None) -> "HFDDPMPipeline":
    """The pipeline on the device `name`, or on the best there is.

    Raises:
        UserError: torch does not know the device, or does not have it.
    """
    from hf_ddpm.sampling import best_device

    device = name or best_device()
    try:
        return pipeline.to(device)
    except (RuntimeError, AssertionError) as error:  # what torch raises for a device that it does not know or have
        reason = str(error).splitlines()[0]
        raise UserError(f"--device {device}: {reason}; the best there is: {best_device()}") from error

"""`hf-ddpm sample` for a denoising GAN."""

import argparse
from typing import TYPE_CHECKING, Any

from hf_ddpm.commands.kind_options import KindCommand, option
from hf_ddpm.commands.options import number_in_unit_interval, require_walk
from hf_ddpm.errors import UserError

if TYPE_CHECKING:
    from hf_ddpm.pipelines import HFDDGANPipeline


def _keywords(options: argparse.Namespace, pipeline: "HFDDGANPipeline") -> dict[str, Any]:
    """Return the keyword arguments of `sample_gan`."""
    steps = len(pipeline.scheduler)
    if options.steps not in (None, steps):
        raise UserError(f"--steps {options.steps} must be {steps}, the number of steps in training, or be left out")
    return {"class_label": require_walk(options, pipeline), "truncation": options.truncation}


SAMPLE = KindCommand(
    _keywords,
    (
        option("--steps", type=int, help="number of sampling steps"),
        option("--class", dest="class_label", help="class of all images, by name or number"),
        option(
            "--truncation",
            default=1.0,
            type=number_in_unit_interval,
            help="1 (the default) is off; smaller values move w towards its mean, which makes images less diverse",
        ),
    ),
    refusal="{flag} {value} is only for denoising GANs, and {checkpoint!r} contains a {kind}: leave it out",
)

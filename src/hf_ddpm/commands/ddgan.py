"""What `hf-ddpm sample` does with a denoising GAN."""

import argparse
from typing import TYPE_CHECKING, Any

from hf_ddpm.commands.kind_options import KindCommand, option
from hf_ddpm.commands.options import number_in_unit_interval, require_walk
from hf_ddpm.errors import UserError

if TYPE_CHECKING:
    from hf_ddpm.pipelines import HFDDGANPipeline


def _keywords(options: argparse.Namespace, pipeline: "HFDDGANPipeline") -> dict[str, Any]:
    """Those of `sample_gan`."""
    steps = len(pipeline.scheduler)
    if options.steps not in (None, steps):
        raise UserError(f"--steps {options.steps} must be {steps}, the steps that it was trained with, or be left out")
    return {"class_label": require_walk(options, pipeline), "truncation": options.truncation}


SAMPLE = KindCommand(
    _keywords,
    (
        option("--steps", type=int, help="timesteps of the walk"),
        option("--class", dest="class_label", help="one class for all images: its name or number"),
        option(
            "--truncation",
            default=1.0,
            type=number_in_unit_interval,
            help="1 (the default) truncates nothing; less draws w towards its mean, for images that differ less",
        ),
    ),
    refusal="{flag} {value} belongs to a denoising GAN, whose latents are truncated: leave it out",
)

"""`hf-ddpm evaluate` for a noisy classifier: measure its accuracy."""

import argparse
from typing import TYPE_CHECKING, Any

from hf_ddpm.commands.kind_options import commands_of_kinds
from hf_ddpm.errors import UserError

if TYPE_CHECKING:
    from accelerate import Accelerator

# Options of `evaluate` that concern samples and how they are measured, with the value of an option that is not given.
_OF_SAMPLES: dict[str, Any] = dict.fromkeys(
    ("reference", "reference_by", "training_data", "extractor", "preprocessing", "samples", "labels")
)
_OF_SAMPLES |= {"metrics": "fd", "draws": 1, "allow_few": False}


def evaluate(options: argparse.Namespace, accelerator: "Accelerator") -> dict[str, Any]:
    """Return the record of the classifier's accuracy on noisy images of `--data`, by quartile of t.

    Raises:
        UserError: If an option that concerns samples is given, or the data do not fit the classifier.
    """
    from hf_ddpm.checkpoint import load_checkpoint
    from hf_ddpm.commands.options import cropping, on_device, open_data
    from hf_ddpm.evaluation.noisy_accuracy import accuracy_record
    from hf_ddpm.kinds import kind_of

    _refuse_samples(options)
    device = str(accelerator.device) if accelerator.num_processes > 1 else options.device
    variant = {"variant": "raw"} if options.raw else {}
    pipeline: Any = on_device(load_checkpoint(options.checkpoint, **variant), device)
    _refuse_latents(pipeline.classifier.config["latents"], options.checkpoint)
    more = {"label_column": options.label_column or "auto", "cache": "none", **cropping(options)}
    with accelerator.main_process_first():  # which may have to download the data
        data = open_data(options.data, options.split, pipeline, options.checkpoint, **more)
    about = {"checkpoint": options.checkpoint, "kind": kind_of(pipeline).word}
    settings = {"num_images": options.num_images, "seed": options.seed, "batch_size": options.batch_size}
    return accuracy_record(pipeline.classifier, data, about, accelerator=accelerator, **settings)


def _refuse_latents(latents: dict[str, Any] | None, checkpoint: str) -> None:
    """Reject a classifier of latents: the VAE that encodes images is not part of its checkpoint."""
    if latents is not None:
        raise UserError(
            f"{checkpoint!r} contains a classifier of latents, but not the VAE ({latents['class']}) that encodes images"
            ": use the accuracy that training wrote to evaluation.json"
        )


def _refuse_samples(options: argparse.Namespace) -> None:
    """Reject options that concern samples, because a classifier has no samples."""
    of_kinds = [one for command in commands_of_kinds("sample").values() for one in command.options]
    flags = {name: f"--{name.replace('_', '-')}" for name in _OF_SAMPLES} | {one.name: one.flag for one in of_kinds}
    for name, flag in flags.items():
        if getattr(options, name) != _OF_SAMPLES.get(name):
            raise UserError(
                f"{flag} is not supported for {options.checkpoint!r}, which contains a noisy classifier: its accuracy "
                "is measured on --data; leave the option out"
            )
    if options.data is None:
        raise UserError(
            "--data is needed to measure the accuracy of a noisy classifier: pass --data with labelled images"
        )

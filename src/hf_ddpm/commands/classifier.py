"""What `hf-ddpm evaluate` does with a noisy classifier: it counts how often it is right."""

import argparse
from typing import TYPE_CHECKING, Any

from hf_ddpm.commands.kind_options import commands_of_kinds
from hf_ddpm.errors import UserError

if TYPE_CHECKING:
    from accelerate import Accelerator

# Options of `evaluate` about samples and what looks at them, with the value that says that none was given.
_OF_SAMPLES: dict[str, Any] = dict.fromkeys(
    ("reference", "reference_by", "training_data", "extractor", "preprocessing", "samples", "labels")
)
_OF_SAMPLES |= {"metrics": "fd", "draws": 1, "allow_few": False}


def evaluate(options: argparse.Namespace, accelerator: "Accelerator") -> dict[str, Any]:
    """The record of the classifier's accuracy on noisy images of `--data`, by quartile of t.

    Raises:
        UserError: an option of samples, or data that do not fit.
    """
    from hf_ddpm.checkpoint import load_checkpoint
    from hf_ddpm.commands.options import on_device, open_data
    from hf_ddpm.evaluation.noisy_accuracy import accuracy_record
    from hf_ddpm.kinds import kind_of

    _refuse_samples(options)
    device = str(accelerator.device) if accelerator.num_processes > 1 else options.device
    variant = {"variant": "raw"} if options.raw else {}
    pipeline: Any = on_device(load_checkpoint(options.checkpoint, **variant), device)
    _refuse_latents(pipeline.classifier.config["latents"], options.checkpoint)
    more: dict[str, Any] = {"label_column": options.label_column or "auto", "cache": "none"}
    more |= {} if options.resize is None else {"resize": options.resize}
    with accelerator.main_process_first():  # which may have to download
        data = open_data(options.data, options.split, pipeline, options.checkpoint, **more)
    about = {"checkpoint": options.checkpoint, "kind": kind_of(pipeline).word}
    settings = {"num_images": options.num_images, "seed": options.seed, "batch_size": options.batch_size}
    return accuracy_record(pipeline.classifier, data, about, accelerator=accelerator, **settings)


def _refuse_latents(latents: dict[str, Any] | None, checkpoint: str) -> None:
    """Refuse a classifier of latents: the VAE that encodes images is not part of its checkpoint."""
    if latents is not None:
        raise UserError(
            f"{checkpoint!r} holds a classifier of the latents of a VAE ({latents['class']}), without which images are "
            "not encoded: its accuracy is measured by its training, in evaluation.json"
        )


def _refuse_samples(options: argparse.Namespace) -> None:
    """Refuse options of samples, which a classifier has none of."""
    of_kinds = [one for command in commands_of_kinds("sample").values() for one in command.options]
    flags = {name: f"--{name.replace('_', '-')}" for name in _OF_SAMPLES} | {one.name: one.flag for one in of_kinds}
    for name, flag in flags.items():
        if getattr(options, name) != _OF_SAMPLES.get(name):
            raise UserError(
                f"{flag}: {options.checkpoint!r} holds a noisy classifier, whose accuracy is "
                "measured on --data: leave the option out"
            )
    if options.data is None:
        raise UserError("give --data with labelled images, of which a noisy classifier's accuracy is measured")

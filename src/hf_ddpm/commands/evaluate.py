"""`hf-ddpm evaluate`: measure the quality of a checkpoint's samples, or of existing images."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hf_ddpm.commands.kind_options import add_kind_options, check_kind_options
from hf_ddpm.commands.options import (
    add_cropping,
    add_device,
    require_all_processes,
    require_positive,
    require_seed,
    require_writable,
)
from hf_ddpm.errors import UserError
from hf_ddpm.kinds import resolve

if TYPE_CHECKING:
    from accelerate import Accelerator
    from PIL.Image import Image

LABELS = ("in-turn", "balanced", "data")
FORMATS = ("png", "npz", "parquet")
RESIZERS = ("guided-diffusion", "pytorch-fid")  # programs with published results for the Inception network


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "checkpoint",
        nargs="?",
        help="a checkpoint folder, a Hub name, or images: a folder, parquet files, or an .npz file of guided-diffusion",
    )
    parser.add_argument("--compare", nargs=2, metavar="JSON", help="show two records and their differences")
    add_measure_options(parser)
    parser.add_argument(
        "--out",
        default="evaluation.json",
        help="file of the record; a table (.md) and a page (.png) are written beside it (default: evaluation.json)",
    )


def add_measure_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that `evaluate` and `sweep` share: everything that a number depends on."""
    real = parser.add_argument_group("real images")
    real.add_argument("--data", help="a folder, files or a Hub name, as for data.source of a recipe")
    real.add_argument("--split", default="test", help="split of the data (default: test)")
    real.add_argument("--label-column", help="label column of the data (default: detected if labels are needed)")
    add_cropping(real, "; none if images are evaluated")
    real.add_argument(
        "--reference",
        metavar="FILE",
        help="instead of --data: mnist-test, a safetensors file with statistics, or a published .npz file",
    )
    real.add_argument("--reference-by", choices=RESIZERS, help="program that wrote the .npz file")
    real.add_argument("--reference-images", type=int, help="number of images that the .npz file was computed from")
    real.add_argument(
        "--num-real", type=int, default=10_000, help="number of images for kid, prdc and classes (default: 10,000)"
    )
    real.add_argument("--training-data", help="for memorisation, and for the nearest images on the page")
    real.add_argument("--training-split", default="train", help="split of the training data (default: train)")
    measured = parser.add_argument_group("what is measured")
    measured.add_argument(
        "--metrics",
        default="fd",
        help="comma-separated: fd, fid, sfid, kid, is, prdc, memorisation, classes, modes (default: fd)",
    )
    measured.add_argument(
        "--extractor",
        help="digits (the default for digits), stacked-digits, efficientnet-lite0, a .pth file of Inception, or a "
        "vision model of transformers",
    )
    measured.add_argument(
        "--preprocessing",
        choices=RESIZERS,
        help="for Inception (default: guided-diffusion, which resizes like TensorFlow)",
    )
    measured.add_argument(
        "-n", "--num-images", type=int, help="number of images (default: 1,000 digits, 10,000 other images)"
    )
    measured.add_argument(
        "--draws", type=int, default=1, help="number of disjoint samples, for a standard error (default: 1)"
    )
    measured.add_argument(
        "--allow-few", action="store_true", help="allow distances from fewer images than features, and mark them"
    )
    measured.add_argument("--seed", type=int, default=0, help="image i depends on the seed and i alone (default: 0)")
    measured.add_argument("--batch-size", type=int, default=64, help="number of images per batch (default: 64)")
    measured.add_argument("--labels", choices=LABELS, help="order of the classes, if there are any (default: in-turn)")
    measured.add_argument("--raw", action="store_true", help="use the weights that were not averaged")
    measured.add_argument(
        "--samples", metavar="DIR", help="folder that keeps the images; an interrupted command resumes from it"
    )
    measured.add_argument("--samples-format", choices=FORMATS, help="one .png per image (default), .npz or .parquet")
    add_device(parser)
    add_kind_options(parser, "sample")


def run(options: argparse.Namespace) -> None:
    """Print a table; write a JSON file, the table and a page."""
    if options.compare is not None:
        from hf_ddpm.evaluation.report import compared

        print(compared([Path(file) for file in options.compare]))
        return
    check(options)
    if Path(options.out).suffix.lower() != ".json":
        raise UserError(f"--out {options.out} must be a .json file")
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=options.device == "cpu")
    require_all_processes(accelerator)
    out = Path(options.out)
    if accelerator.is_main_process:
        require_writable(out, out.with_suffix(".md"), out.with_suffix(".png"))
    measured = measure(options, accelerator)
    if accelerator.is_main_process:
        measured.write(out)
    accelerator.end_training()


class Measured(NamedTuple):
    """The result: the record, and the page that shows the samples, if there are any."""

    record: dict[str, Any]
    page: "Image | None"

    def write(self, out: Path) -> None:
        """Write the record, the table and the page, and print the table."""
        from hf_ddpm.checkpoint import new_file, writing
        from hf_ddpm.evaluation.report import markdown

        table, page = out.with_suffix(".md"), out.with_suffix(".png")
        with writing(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            table.write_text(markdown(self.record) + "\n")
            if self.page is not None:
                self.page.save(page)
            with new_file(out) as new:  # last and atomically: a sweep skips a cell that has a record
                new.write_text(json.dumps(self.record, indent=2) + "\n")
        files = [out, table, *([] if self.page is None else [page])]
        print(f"{markdown(self.record)}\nwritten: {', '.join(map(str, files))}")


def measure(options: argparse.Namespace, accelerator: "Accelerator") -> Measured:
    """Measure everything that the options ask for, on all processes.

    Raises:
        UserError: If the checkpoint, the data or the options do not allow it.
    """
    from accelerate.utils import gather_object

    from hf_ddpm.checkpoint import find_kind
    from hf_ddpm.commands.subjects import names_images, open_subject
    from hf_ddpm.evaluation.evaluate import evaluate
    from hf_ddpm.evaluation.measure import Number
    from hf_ddpm.evaluation.page import draw_page
    from hf_ddpm.evaluation.report import described, record, to_json
    from hf_ddpm.evaluation.shards import join_npz

    own = None if names_images(options.checkpoint) else find_kind(options.checkpoint).evaluate
    if own is not None:
        return Measured(resolve(own)(options, accelerator), None)
    subject = open_subject(options, accelerator)
    settings: dict[str, Any] = {"allow_few": options.allow_few, "accelerator": accelerator}
    real, extractor = subject.real, subject.extractor
    found = evaluate(
        subject.source, real, extractor, subject.metrics, num_images=subject.num_images, draws=options.draws, **settings
    )
    how = {"processes": accelerator.num_processes, "batch_size": options.batch_size, "device": subject.device}
    whole = record(found, subject.source, real, extractor, about=subject.about | how)
    if subject.calls is not None:
        whole["network_calls"] = round(sum(gather_object(subject.calls)) / (found.num_images * found.draws), 2)
    if (again := subject.reconstructed) is not None:
        metrics = tuple(metric for metric in subject.metrics if metric not in ("memorisation", "classes"))
        rebuilt = evaluate(again, real, extractor, metrics, num_images=len(again.rows), **settings)
        error = Number("mean squared error, reconstructions", "mse", again.mean_squared_error(accelerator))
        whole["numbers"] += to_json([*(n.of("reconstructions") for n in rebuilt.numbers), error])
    if options.samples_format == "npz" and accelerator.is_main_process:
        join_npz(Path(options.samples), found.num_images * found.draws)
    return Measured(whole, draw_page(found.first, extractor, subject.beside, described(whole)))


def check(options: argparse.Namespace) -> None:
    """Reject invalid options before anything is opened."""
    if not options.checkpoint:
        raise UserError(
            "there is nothing to evaluate: pass a checkpoint, a folder of images, or two records with --compare"
        )
    require_positive(options, "batch_size", "draws", "num_real")
    if options.num_images is not None:
        require_positive(options, "num_images")
    require_seed(options)
    check_kind_options(options, "sample")
    if (options.data is None) == (options.reference is None):
        raise UserError(
            "exactly one of --data and --reference is needed: pass --data with real images, or --reference with their "
            "statistics"
        )
    if options.samples_format is not None and options.samples is None:
        raise UserError(f"--samples-format {options.samples_format} needs --samples: pass a folder for the images")

"""`hf-ddpm figure`: draw a figure of the DDPM and DDIM papers, or of guidance, from a checkpoint."""

import argparse
import inspect
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hf_ddpm.commands.guidance import finite_number, use_classifier
from hf_ddpm.commands.options import (
    add_cropping,
    add_device,
    cropping,
    number_in_unit_interval,
    on_device,
    open_data,
    open_labelled_data,
    require_pixels,
    require_positive,
    require_seed,
    require_walk,
    require_writable,
)
from hf_ddpm.errors import UserError, as_user_error, did_you_mean

if TYPE_CHECKING:
    from torch import Tensor

    from hf_ddpm.data import Batch, ImageData
    from hf_ddpm.pipelines import HFDDPMPipeline


class FigureKind(NamedTuple):
    """The help line of a figure.

    images: The default number of images of --data. measures: Whether its numbers are written beside it, as JSON.
    """

    summary: str
    images: int = 0
    measures: bool = False


FIGURE_KINDS = {
    "forward": FigureKind("the forward process q(x_t | x_0) of real images (PNG, GIF)", 8),
    "progressive": FigureKind("x_0 predictions as t falls, DDPM Fig. 6 (PNG, GIF)"),
    "shared-latents": FigureKind("samples from the same x_t, DDPM Fig. 7", measures=True),
    "interpolation": FigureKind("real images mixed at half the noise, DDPM Fig. 8", 8),
    "coarse-to-fine": FigureKind("two real images mixed at nine levels, DDPM Fig. 9", 2),
    "ddim-interpolation": FigureKind("slerp between two x_T, DDIM Fig. 6 (PNG, GIF)"),
    "x0-distance": FigureKind(
        "how far x_0 predictions are from the sample, and from real digits, DDPM Fig. 10", measures=True
    ),
    "rate-distortion": FigureKind("rate and distortion over reverse time, DDPM Fig. 5", 256, measures=True),
    "reverse-gaussian": FigureKind(
        "why small reverse steps are Gaussian and large ones are not; needs no checkpoint", measures=True
    ),
    "nearest-neighbours": FigureKind("samples beside the nearest images of --data, DDPM appendix", measures=True),
    "ddim-consistency": FigureKind("samples of one x_T with 5 to T steps, DDIM Fig. 5", measures=True),
    "reconstruction": FigureKind("images encoded and decoded in 10 to 1000 steps, DDIM Table 2", 16, measures=True),
    "guidance": FigureKind("the same x_T with increasing guidance scales, ADM Fig. 3"),
}

# The names of each option in the functions of hf_ddpm.figures: their signatures decide which options a figure takes.
PARAMETERS = {
    "checkpoint": ("pipeline",),
    "data": ("images", "training_images"),
    "split": ("images", "training_images"),
    "resize": ("images", "training_images"),
    "crop_box": ("images", "training_images"),
    "likelihood": ("likelihood",),
    "num_images": ("num_images", "images"),
    "steps": ("steps",),
    "spacing": ("spacing",),
    "eta": ("eta",),
    "class_label": ("class_label", "class_labels"),
    "scales": ("scales",),
    "classifier": ("scales",),  # which the scales belong to
    "seed": ("seed", "images"),  # it also selects the images of --data
    "device": ("pipeline",),
}
NEEDED = {
    "checkpoint": "a checkpoint: pass a folder saved by training, or a Hub name",
    "data": "real images: pass --data with a folder, files, digits or a Hub name",
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "names:\n" + "\n".join(f"  {name:<20}{kind.summary}" for name, kind in FIGURE_KINDS.items())
    parser.add_argument("name", help="name of the figure, see below")
    parser.add_argument("checkpoint", nargs="?", help="a folder saved by training, or a Hub name")
    parser.add_argument("--data", help="real images: a folder, files, digits or a Hub name, as for data.source")
    parser.add_argument("--split", help="split of the data (default: train, also for plain files)")
    parser.add_argument("--likelihood", help="for rate-distortion: the JSON of hf-ddpm likelihood, instead of --data")
    parser.add_argument("-n", "--num-images", type=int, help="number of images or samples")
    parser.add_argument("--seed", type=int, help="seed of the images and the noise (default: 0)")
    parser.add_argument(
        "--steps", type=int, help="network calls per sample (default: all steps of training; ddim-interpolation: 50)"
    )
    parser.add_argument("--spacing", help="timestep spacing: leading, trailing, linspace or quadratic")
    parser.add_argument(
        "--eta",
        type=number_in_unit_interval,
        help="0 is DDIM and 1 is DDPM (default: the checkpoint's, or else Algorithm 2)",
    )
    parser.add_argument(
        "--class",
        dest="class_label",
        help="class of all images, by name or number (default: all classes in turn for samples, the labels of real "
        "images, and the label of the nearer image for a mixture)",
    )
    parser.add_argument(
        "--scales",
        type=_numbers,
        help="guidance scales (default: 0,1,2,4,8 with a classifier, 1,1.25,1.5,2,4 for a network trained with label "
        "dropout)",
    )
    parser.add_argument("--classifier", metavar="FOLDER", help="for guidance: a classifier, as in hf-ddpm sample")
    add_cropping(parser)
    add_device(parser)
    parser.add_argument(
        "--out",
        help="a .png file, or a .gif file for an animated figure (default: NAME.png); measured numbers are written to "
        "a .json file beside it, and existing files are overwritten",
    )


def run(options: argparse.Namespace) -> None:
    """Write the figure, and a JSON file of its numbers if it measures any; print one line."""
    if options.name not in FIGURE_KINDS:
        hint = did_you_mean(options.name, FIGURE_KINDS)
        raise UserError(f"there is no figure {options.name!r}; it must be one of {', '.join(FIGURE_KINDS)}{hint}")

    from hf_ddpm.figures import FIGURES, save_figure

    out = Path(options.out or f"{options.name}.png")
    parameters = inspect.signature(FIGURES[options.name]).parameters
    _check(options, parameters, out)
    require_writable(*_written(options, out))
    keywords: dict[str, Any] = {"motion": out.suffix.lower() == ".gif"}
    same = ("seed", "num_images", "steps", "spacing", "eta", "scales")
    keywords |= {name: getattr(options, name) for name in same}
    if options.checkpoint is not None:
        from hf_ddpm.checkpoint import load_pipeline

        pipeline = load_pipeline(options.checkpoint)
        require_pixels(pipeline, f"figure {options.name}")
        keywords["pipeline"] = on_device(pipeline, options.device)
        if options.classifier is not None:
            use_classifier(pipeline, options.classifier)
        keywords |= dict.fromkeys(PARAMETERS["class_label"], require_walk(options, keywords["pipeline"]))
        keywords |= _files(options, parameters, keywords["pipeline"])
    origin = _origin(options, keywords.get("pipeline"))
    with as_user_error():
        figure = FIGURES[options.name](**{k: v for k, v in keywords.items() if k in parameters and v is not None})
    told = [", ".join(map(str, save_figure(figure, out, origin)))]
    told += [f"seed {origin['seed']}"] if "seed" in origin else []
    told += [f"weights {origin['weights_sha256'][:12]}"] if "weights_sha256" in origin else []
    print("; ".join([*told, figure.sentence] if figure.sentence else told))


def _check(options: argparse.Namespace, parameters: Mapping[str, inspect.Parameter], out: Path) -> None:
    """Reject options that are invalid for every checkpoint, and set the default seed, 0, of a figure that needs one."""
    name, suffix = options.name, out.suffix.lower()
    for option, aliases in PARAMETERS.items():
        there = [parameters[alias] for alias in aliases if alias in parameters]
        given = getattr(options, option)
        if given is not None and not there:
            raise UserError(f"{name} takes no {_flag(option)}: leave {_typed(given)} out")
        if given is None and option in NEEDED and any(parameter.default is parameter.empty for parameter in there):
            raise UserError(f"{name} needs {NEEDED[option]}")
    if any(alias in parameters for alias in PARAMETERS["seed"]):
        options.seed = 0 if options.seed is None else options.seed
        require_seed(options)
    if options.num_images is not None:
        require_positive(options, "num_images")
    if suffix == ".gif" and "motion" not in parameters:
        raise UserError(f"--out {out} must be a .png file: {name} is not animated")
    if suffix not in (".png", ".gif"):
        raise UserError(f"--out {out} must be a .png" + (" or a .gif" if "motion" in parameters else "") + " file")
    for option in ("data", "likelihood"):
        given = getattr(options, option)
        for file in _written(options, out) if given is not None else ():
            if file.resolve() == Path(given).expanduser().resolve():
                raise UserError(f"--out {out} would overwrite {file}, which --{option} reads: choose another file")


def _written(options: argparse.Namespace, out: Path) -> list[Path]:
    """Return the files that the figure writes."""
    return [out, out.with_suffix(".json")] if FIGURE_KINDS[options.name].measures else [out]


def _files(
    options: argparse.Namespace, parameters: Mapping[str, inspect.Parameter], pipeline: "HFDDPMPipeline"
) -> dict[str, Any]:
    """Read what the options name: the real images with their bit depth and labels, or the likelihood."""
    found: dict[str, Any] = {}
    if options.likelihood is not None:
        from hf_ddpm.checkpoint import read_object

        remedy = "pass --likelihood with the JSON of hf-ddpm likelihood"
        found["likelihood"] = read_object(Path(options.likelihood).expanduser(), remedy)
    if options.data is not None:
        data = _open(options, pipeline, labelled="class_labels" in parameters and options.class_label is None)
        if "images" in parameters:
            batch = _first_images(data, options.num_images or FIGURE_KINDS[options.name].images, options.seed)
            found["images"] = batch.x_0 / 2 + 0.5  # in [0, 1], like all images of users
            found["bit_depth"] = data.bit_depth  # known once the images are read
            found |= {} if batch.labels is None else {"class_labels": batch.labels}
        else:
            found["training_images"] = _all_images(data)
    return found


def _open(options: argparse.Namespace, pipeline: "HFDDPMPipeline", labelled: bool) -> "ImageData":
    """Open the data with the network's size and, if `labelled`, with the labels that a network with classes needs."""
    where = (options.data, options.split or "train", pipeline, options.checkpoint)
    if not (pipeline.signature.takes_labels and labelled):
        return open_data(*where, **cropping(options))
    remedy = "pass --class to use one class for all images"
    return open_labelled_data(*where, remedy=remedy, **cropping(options))


def _first_images(data: "ImageData", count: int, seed: int) -> "Batch":
    """Return the first `count` images in the order that `seed` gives."""
    if count > _number_of(data):
        raise UserError(
            f"the number of images is {count}, and {data.source!r} has only {_number_of(data):,}: reduce --num-images"
        )
    batches = data.batches(batch_size=count, seed=seed)
    batch = next(batches)
    batches.close()
    return batch


def _all_images(data: "ImageData") -> "Tensor":
    """Return every image in the order of the dataset, uint8 (N, C, H, W)."""
    import torch

    from hf_ddpm.data import to_uint8

    count, size = _number_of(data), min(_number_of(data), 256)
    images: dict[int, Tensor] = {}
    batches = data.batches(batch_size=size, seed=0)
    for batch in batches:
        images.update(zip(batch.indices.tolist(), to_uint8(batch.x_0), strict=True))
        if len(images) == count - data.skipped:
            break
    batches.close()
    return torch.stack([images[row] for row in sorted(images)])


def _number_of(data: "ImageData") -> int:
    if data.num_images is None:
        raise UserError(f"{data.source!r} is a stream, and figures need a dataset with a known length")
    return data.num_images


def _origin(options: argparse.Namespace, pipeline: "HFDDPMPipeline | None") -> dict[str, str]:
    """Return the metadata of the written file: the command without --out and --device, the seed and the weights."""
    from hf_ddpm.weights import weights_sha256

    words = ["hf-ddpm", "figure", options.name, *([] if pipeline is None else [options.checkpoint])]
    for option in PARAMETERS:
        value = getattr(options, option)
        if option not in ("checkpoint", "device") and value is not None:
            words += [_flag(option), _typed(value)]
    origin = {"command": shlex.join(words)} | ({} if options.seed is None else {"seed": str(options.seed)})
    return origin if pipeline is None else {**origin, "weights_sha256": weights_sha256(pipeline.unet)}


def _numbers(word: str) -> tuple[float, ...]:
    """Parse a comma-separated list of finite numbers, for argparse."""
    try:
        return tuple(map(finite_number, word.split(",")))
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"{word!r} must be a comma-separated list of numbers, such as 0,1,2") from None


def _typed(value: Any) -> str:
    """Return the value of an option as it is typed."""
    return ",".join(f"{number:g}" for number in value) if isinstance(value, tuple) else str(value)


def _flag(option: str) -> str:
    """Return the name of an option as it is typed."""
    if option == "checkpoint":
        return option
    return {"class_label": "--class"}.get(option, f"--{option.replace('_', '-')}")

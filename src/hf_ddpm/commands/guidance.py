"""The options of guidance, shared by all commands that sample from a diffusion model."""

import argparse
import math
from typing import TYPE_CHECKING, Any

from hf_ddpm.commands.kind_options import option
from hf_ddpm.commands.options import number_in_unit_interval
from hf_ddpm.errors import UserError, as_user_error, quoted

if TYPE_CHECKING:
    from hf_ddpm.pipelines import HFDDPMPipeline


def finite_number(word: str) -> float:
    """Parse a finite number, for argparse."""
    try:
        number = float(word)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"{word!r} must be a finite number, such as 1.5")
    return number


def _positive(word: str) -> float:
    """Parse a finite number above 0, for argparse."""
    number = finite_number(word)
    if number <= 0:
        raise argparse.ArgumentTypeError(f"{word!r} must be above 0")
    return number


def _interval(word: str) -> tuple[int, int]:
    """Parse two timesteps, the lower one first, for argparse."""
    ends = word.split(",")
    if len(ends) != 2 or not all(end.strip().isdecimal() for end in ends) or int(ends[0]) > int(ends[1]):
        raise argparse.ArgumentTypeError(f"{word!r} must be two timesteps, the lower one first, such as 0,500")
    return int(ends[0]), int(ends[1])


GUIDANCE_OPTIONS = (
    option(
        "--guidance",
        dest="guidance_scale",
        type=finite_number,
        metavar="SCALE",
        help="classifier-free guidance: 1 is off, larger values such as 1.25 or 2 give images closer to the class "
        "(needs a network trained with label dropout)",
    ),
    option(
        "--guidance-rescale",
        type=number_in_unit_interval,
        metavar="PHI",
        help="0 is off, 1 keeps the standard deviation of the prediction without guidance",
    ),
    option("--guidance-interval", type=_interval, metavar="LOW,HIGH", help="range of the timesteps that are guided"),
    option(
        "--guidance-schedule",
        choices=("constant", "linear", "cosine"),
        help="change of the scale over the timesteps (default: constant)",
    ),
    option("--classifier", metavar="FOLDER", help="a noisy classifier, or an image classifier of transformers"),
    option(
        "--classifier-scale",
        type=finite_number,
        metavar="SCALE",
        help="factor of the gradient; 0 is off (default: 1 with a classifier)",
    ),
    option("--classifier-gradient", choices=("x_t", "mean"), help="where the gradient is computed (default: x_t)"),
    option("--classifier-max-norm", type=_positive, metavar="NORM", help="largest norm of an image's gradient"),
)
_ONLY_CLASSIFIER = ("classifier_gradient", "classifier_max_norm")
_ONLY_CLASSIFIER_FREE = ("guidance_rescale",)
_ONLY_GUIDED = ("guidance_interval", "guidance_schedule")


def guide(options: argparse.Namespace, pipeline: "HFDDPMPipeline") -> dict[str, Any]:
    """Give a pipeline the requested classifier, and return the guidance arguments of a call.

    Returns:
        dict: The arguments that were given; with a classifier, its scale is always one of them.

    Raises:
        UserError: If the classifier cannot be opened or does not fit, or if options of a classifier or of guidance are
            given without one.
    """
    from hf_ddpm.pipelines.guidance import GUIDANCE

    if options.classifier is not None:
        use_classifier(pipeline, options.classifier)
    given = {name: getattr(options, name) for name in GUIDANCE if getattr(options, name) is not None}
    if (scale := given.get("guidance_scale")) is not None:
        with as_user_error():
            pipeline.signature.check_guidance(scale, f"--guidance {scale:g}")
    free = ["pass --guidance with a scale other than 1"] if pipeline.signature.supports_guidance else []
    if scale is None:  # an explicit scale of 1 is the baseline of a comparison
        remedy = f": {free[0]}" if free else ", which this network does not support: leave it out"
        _refuse(given, _ONLY_CLASSIFIER_FREE, f"classifier-free guidance{remedy}")
    if pipeline.classifier is not None:
        return {"classifier_scale": 1.0, **given}
    _refuse(given, ("classifier_scale", *_ONLY_CLASSIFIER), "a classifier: pass one with --classifier")
    if scale is None:
        _refuse(given, _ONLY_GUIDED, f"guidance: {', or '.join([*free, 'pass --classifier'])}")
    return given


def _refuse(given: dict[str, Any], names: tuple[str, ...], needed: str) -> None:
    """Reject options that have no effect without another one."""
    for name in names:
        if given.get(name):
            value = ",".join(map(str, given[name])) if isinstance(given[name], tuple) else given[name]
            raise UserError(f"--{name.replace('_', '-')} {value} needs {needed}")


def use_classifier(pipeline: "HFDDPMPipeline", source: str) -> None:
    """Give a pipeline a classifier from a folder or from the Hub.

    Raises:
        UserError: If there is no classifier, or it does not fit the pipeline.
    """
    from hf_ddpm.pipelines.classifiers import check_classifier

    classifier, processor = open_classifier(source)
    with as_user_error(f"--classifier {source}"):
        check_classifier(classifier, processor, pipeline)
    classifier.to(pipeline.device).eval()
    pipeline.register_modules(classifier=classifier, image_processor=processor)


def open_classifier(source: str) -> tuple[Any, Any]:
    """Load a classifier, and the image processor of a classifier of clean images.

    Args:
        source: A folder or a name on the Hub: a checkpoint of a noisy classifier or of a model that contains one, or an
            image classification model of `transformers`.

    Raises:
        UserError: If there is no classifier.
    """
    from hf_ddpm.checkpoint import find_folder, load_checkpoint
    from hf_ddpm.gate.checked_files import CheckedFiles
    from hf_ddpm.kinds import kind_of
    from hf_ddpm.models import NoisyClassifier

    with as_user_error("--classifier"):
        place = find_folder(source) or source
    try:
        config = CheckedFiles(place, "config.json").json("config.json")
    except FileNotFoundError:  # a pipeline instead of a single model
        pipeline: Any = load_checkpoint(source)
        classifier = pipeline.components.get("classifier")
        if classifier is None:
            raise UserError(
                f"--classifier {source} contains a {kind_of(pipeline).word} without a classifier: train a classifier "
                "with the recipe mnist-classifier or cifar10-classifier"
            ) from None
        return classifier, None
    except (OSError, ValueError) as error:
        raise UserError(f"--classifier {quoted(error)}") from error
    if config.get("_class_name") == NoisyClassifier.__name__:
        with as_user_error("--classifier"):
            return NoisyClassifier.from_pretrained(place), None
    return _of_transformers(str(place))


def _of_transformers(source: str) -> tuple[Any, Any]:
    """Load an image classifier of `transformers` and its image processor."""
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    try:
        processor: Any = AutoImageProcessor.from_pretrained(source, backend="pil")
        network, found = AutoModelForImageClassification.from_pretrained(
            source, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(
            f"--classifier {source} cannot be opened as an image classifier ({quoted(error)}): pass a noisy "
            "classifier, or an image classification model of transformers"
        ) from error
    if found["missing_keys"]:
        missing = ", ".join(sorted(found["missing_keys"])[:2])
        raise UserError(
            f"--classifier {source} has missing weights ({missing}, ...), which would be random: use a complete model"
        )
    return network, processor

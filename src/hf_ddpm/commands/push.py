"""`hf-ddpm push`: upload a checkpoint to the Hub in one commit, with a model card of what was measured."""

import argparse
import re
from typing import TYPE_CHECKING

from hf_ddpm.errors import UserError

if TYPE_CHECKING:
    from hf_ddpm.pipelines import HFDDPMPipeline


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("checkpoint", help="a folder saved by training")
    parser.add_argument("repo", help="user/name on the Hub; it is created if it does not exist")
    parser.add_argument("--private", action="store_true", help="make the new repository private")
    parser.add_argument("--create-pr", action="store_true", help="open a pull request instead of a commit")
    parser.add_argument("--revision", default="main", help="branch, created if it does not exist (default: main)")
    parser.add_argument("--tag", help="tag of the commit, such as step-1000")
    parser.add_argument("--message", help="commit message (default: the run's name and step)")
    parser.add_argument(
        "--metrics",
        action="append",
        default=[],
        metavar="JSON",
        help="a file that `hf-ddpm evaluate` or `hf-ddpm likelihood` wrote for these weights; may be repeated",
    )
    parser.add_argument("--classifier", metavar="FOLDER", help="a noisy classifier, pushed as part of the model")


def run(options: argparse.Namespace) -> None:
    """Push and print the address. The token comes from HF_TOKEN or `hf auth login`, never from the command line."""
    if options.create_pr and (options.tag is not None or options.revision != "main"):
        raise UserError("--create-pr cannot be combined with --revision or --tag: leave them out")
    for name in ("tag", "revision"):
        value = getattr(options, name)
        if value is not None and not re.fullmatch(r"\w+([./-]\w+)*", value):
            raise UserError(
                f"--{name} {value} must consist of letters, digits and '_', with single '.', '-' and '/' between them"
            )

    from hf_ddpm.hub import push_checkpoint, push_pipeline

    about = {name: getattr(options, name) for name in ("private", "create_pr", "revision", "tag", "message", "metrics")}
    if options.classifier is None:
        url = push_checkpoint(options.checkpoint, options.repo, **about)
    else:
        url = push_pipeline(_guided(options), options.repo, **about)
    print(f"pushed: {url}")


def _guided(options: argparse.Namespace) -> "HFDDPMPipeline":
    """Load the checkpoint, with the classifier as one of its components."""
    from hf_ddpm.checkpoint import load_pipeline
    from hf_ddpm.commands.guidance import use_classifier

    pipeline = load_pipeline(options.checkpoint)
    use_classifier(pipeline, options.classifier)
    return pipeline

"""`hf-ddpm push`: upload a checkpoint to the Hub in one commit, with a card of what was measured."""

import argparse
import re
from typing import TYPE_CHECKING

from hf_ddpm.errors import UserError

if TYPE_CHECKING:
    from hf_ddpm.pipelines import HFDDPMPipeline


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("checkpoint", help="folder of a checkpoint, as training leaves one")
    parser.add_argument("repo", help="user/name on the Hub; it is made if it is not there")
    parser.add_argument("--private", action="store_true", help="only its owner sees the new repository")
    parser.add_argument("--create-pr", action="store_true", help="open a pull request instead of a commit")
    parser.add_argument("--revision", default="main", help="branch, made if it is not there (default: main)")
    parser.add_argument("--tag", help="a name for the commit, such as step-1000")
    parser.add_argument("--message", help="of the commit (default: the run's name and step)")
    parser.add_argument(
        "--metrics",
        action="append",
        default=[],
        metavar="JSON",
        help="what `hf-ddpm evaluate` or `likelihood` wrote of these weights; may be given again",
    )
    parser.add_argument("--classifier", metavar="FOLDER", help="a noisy classifier, which goes along and guides")


def run(options: argparse.Namespace) -> None:
    """Push and print where it is. The token comes from HF_TOKEN or `hf auth login`, never from the command line."""
    if options.create_pr and (options.tag is not None or options.revision != "main"):
        raise UserError("--create-pr goes to main and has no tag: leave --revision and --tag out")
    for name in ("tag", "revision"):
        value = getattr(options, name)
        if value is not None and not re.fullmatch(r"\w+([./-]\w+)*", value):
            raise UserError(
                f"--{name} {value} must be letters, digits and '_', with single '.', '-' and '/' between them"
            )

    from hf_ddpm.hub import push_checkpoint, push_pipeline

    about = {name: getattr(options, name) for name in ("private", "create_pr", "revision", "tag", "message", "metrics")}
    if options.classifier is None:
        url = push_checkpoint(options.checkpoint, options.repo, **about)
    else:
        url = push_pipeline(_guided(options), options.repo, **about)
    print(f"pushed: {url}")


def _guided(options: argparse.Namespace) -> "HFDDPMPipeline":
    """The checkpoint with the classifier as a part of it."""
    from hf_ddpm.checkpoint import load_pipeline
    from hf_ddpm.commands.guidance import use_classifier

    pipeline = load_pipeline(options.checkpoint)
    use_classifier(pipeline, options.classifier)
    return pipeline

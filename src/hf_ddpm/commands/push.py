"""`hf-ddpm push`: upload a checkpoint to the Hub in one commit, with a card of what was measured."""

import argparse
import re

from hf_ddpm.errors import UserError


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

    from hf_ddpm.hub import push_checkpoint

    url = push_checkpoint(
        options.checkpoint,
        options.repo,
        private=options.private,
        create_pr=options.create_pr,
        revision=options.revision,
        tag=options.tag,
        message=options.message,
        metrics=options.metrics,
    )
    print(f"pushed: {url}")

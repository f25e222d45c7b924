"""`hf-ddpm space`: write a Gradio app for a pushed checkpoint, or upload it as a Space."""

import argparse
import shlex
from pathlib import Path

from hf_ddpm.errors import UserError
from hf_ddpm.kinds import required


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("repo", help="user/name of a checkpoint on the Hub")
    parser.add_argument("--out", help="a new folder for the app (default: space, or none with --push)")
    parser.add_argument(
        "--push",
        nargs="?",
        const="",
        metavar="SPACE",
        help="upload the app as this Space, user/name (default: the name of the checkpoint)",
    )
    parser.add_argument(
        "--private", action="store_true", help="make the new Space private, as it always is for a private checkpoint"
    )


def run(options: argparse.Namespace) -> None:
    """Write the app to a folder, push it, or both, and print where it is."""
    _check(options)

    from hf_ddpm.checkpoint import find_kind
    from hf_ddpm.hub import check_name
    from hf_ddpm.space.files import find_checkpoint, push_space, space_files, write_space

    space = None if options.push is None else options.push or options.repo
    for name in (options.repo, space):
        if name is not None:
            check_name(name)
    info = find_checkpoint(options.repo)
    required(find_kind(options.repo), "draw", options.repo)  # because the page shows images
    files = space_files(info)
    if options.out is not None or space is None:
        out = Path(options.out or "space").expanduser()
        write_space(files, out)
        needed = ", ".join(files["requirements.txt"].decode().split())
        print(f"written: {out} (python {shlex.quote(str(out / 'app.py'))} shows the page; it needs {needed})")
    if space is not None:
        private = options.private or bool(info.private)
        print(f"pushed: {push_space(files, space, private=private)}" + (" (private)" if private else ""))


def _check(options: argparse.Namespace) -> None:
    if options.repo and Path(options.repo).expanduser().is_dir():
        raise UserError(
            f"{options.repo} is a folder, and a Space opens a checkpoint from the Hub: push it first with hf-ddpm push "
            "(hf-ddpm demo shows the page of a folder on this machine)"
        )
    if "/" not in options.repo:
        raise UserError(f"{options.repo!r} must be user/name of a checkpoint on the Hub")
    if options.out == "":
        raise UserError("--out '' must be the name of a new folder")
    if options.private and options.push is None:
        raise UserError("--private needs --push, which creates the Space: pass --push, or leave --private out")

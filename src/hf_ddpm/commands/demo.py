"""`hf-ddpm demo`: show a checkpoint in the browser: samples, denoising, interpolation."""

import argparse
import importlib.util
import socket
from pathlib import Path
from typing import Any

from hf_ddpm.commands.guidance import use_classifier
from hf_ddpm.commands.options import add_checkpoint, add_device, on_device
from hf_ddpm.errors import UserError, as_user_error
from hf_ddpm.kinds import kind_of


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_checkpoint(parser)
    parser.add_argument("--port", type=int, help="port of the page (default: the first free port from 7860 on)")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address of the page; 0.0.0.0 allows other machines to connect (default: 127.0.0.1)",
    )
    parser.add_argument("--share", action="store_true", help="create a public link for a week on Gradio's servers")
    parser.add_argument("--classifier", metavar="FOLDER", help="classifier that guides the model, as in hf-ddpm sample")
    add_device(parser)


def run(options: argparse.Namespace) -> None:
    """Serve the page until Ctrl-C."""
    if importlib.util.find_spec("gradio") is None:
        raise UserError('hf-ddpm demo needs gradio: install it with pip install "hf_ddpm[space]"')
    _check_address(options)

    from hf_ddpm.checkpoint import load_checkpoint

    pipeline: Any = on_device(load_checkpoint(options.checkpoint), options.device)
    if options.classifier is not None:
        kind = kind_of(pipeline)
        if not kind.walks:
            raise UserError(
                f"--classifier is only for diffusion models, and {options.checkpoint!r} contains a {kind.word}: leave "
                "the option out"
            )
        use_classifier(pipeline, options.classifier)

    from hf_ddpm.space.app import LOOK, build

    with as_user_error():
        page = build(pipeline, "/".join(Path(options.checkpoint).parts[-2:]))  # --share makes it public
    page.launch(server_name=options.host, server_port=options.port, share=options.share, **LOOK)


def _check_address(options: argparse.Namespace) -> None:
    """Reject an address that cannot serve the page, before the checkpoint is opened."""
    if options.port is not None and not 1 <= options.port <= 65535:
        raise UserError(f"--port {options.port} must be from 1 to 65535")
    try:
        socket.create_server((options.host, options.port or 0)).close()
    except OSError as error:  # the port is in use, or the host is not this machine
        where = options.host if options.port is None else f"{options.host} --port {options.port}"
        raise UserError(f"the page cannot be served at --host {where} ({error.strerror}): choose another") from error

"""The console script `hf-ddpm`."""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from hf_ddpm.commands import convert, demo, edit, evaluate, figure, likelihood, push, sample, space, sweep
from hf_ddpm.commands.options import at_home, spelled
from hf_ddpm.errors import UserError, exit_with_a_sentence
from hf_ddpm.version import __version__


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")


def main(argv: Sequence[str] | None = None) -> None:
    """Run `hf-ddpm COMMAND ...`; a `UserError` is printed as one sentence on stderr, with exit code 1."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        with exit_with_a_sentence():
            if words[:1] == ["train"]:  # its options are the recipe's keys
                from hf_ddpm.training.stopping import StopRequests

                with StopRequests() as requests:  # also while the rest is imported
                    from hf_ddpm.training.train import main as train_main

                    train_main(words[1:], requests)
                return
            options, unknown = _parser().parse_known_args([at_home(spelled(word, "-")) for word in words])
            if unknown:
                raise UserError(f"unrecognized arguments: {' '.join(unknown)}; see hf-ddpm {words[0]} --help")
            options.run(options)
            sys.stdout.flush()
    except BrokenPipeError:  # the reader of the output has ended; the interpreter's last flush must not fail again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="hf-ddpm", description="The DDPM family in the Hugging Face format.")
    parser.add_argument("--version", action="version", version=f"hf_ddpm {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND", parser_class=_Parser)
    commands.add_parser("train", help="train a model from a recipe", add_help=False)
    for command in (sample, edit, evaluate, sweep, likelihood, figure, convert, push, space, demo):
        name = command.__name__.rpartition(".")[2]
        summary = (command.__doc__ or "").split(": ", 1)[1].rstrip(".\n")
        command_parser = commands.add_parser(name, help=summary, description=summary[:1].upper() + summary[1:] + ".")
        command.add_options(command_parser)
        command_parser.set_defaults(run=command.run)
    return parser


if __name__ == "__main__":
    main()

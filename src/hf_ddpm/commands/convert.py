"""`hf-ddpm convert`: convert a checkpoint of improved-diffusion or guided-diffusion to the Hub format."""

import argparse
from pathlib import Path

from hf_ddpm.conversion.openai_flags import ORIGINS, PUBLISHED, flag_names
from hf_ddpm.errors import UserError


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    names = {origin: ", ".join(published) for origin, published in PUBLISHED.items()}
    parser.epilog = "published configurations:\n" + "\n".join(f"  {key}: {value}" for key, value in names.items())
    parser.add_argument("file", help="the .pt or .safetensors file of a model")
    parser.add_argument("--from", dest="origin", choices=ORIGINS, required=True, help="the project that wrote the file")
    parser.add_argument("--to", help="a new folder for the checkpoint")
    parser.add_argument("--config", help="name of a published configuration, see below (default: that of the scripts)")
    parser.add_argument("--dry-run", action="store_true", help="write nothing, and list every tensor that does not map")
    flags = parser.add_argument_group(
        "flags of the original scripts", "the MODEL_FLAGS and DIFFUSION_FLAGS of the original README may be pasted"
    )
    for name in flag_names():
        flags.add_argument(f"--{name.replace('_', '-')}", dest=name, metavar="VALUE", help=argparse.SUPPRESS)


def run(options: argparse.Namespace) -> None:
    """Convert the file and print where the checkpoint is, or list what a conversion would do."""
    if options.to is None and not options.dry_run:
        raise UserError("--to is missing: pass a new folder for the checkpoint, or --dry-run to write nothing")
    words = {name: getattr(options, name) for name in flag_names() if getattr(options, name) is not None}

    from hf_ddpm.conversion.convert import convert, plan_conversion, read_tensors

    file = Path(options.file).expanduser()
    if options.dry_run:
        tensors = read_tensors(file)
        plan, _ = plan_conversion(tensors, options.origin, options.config, words)
        network = type(plan.network).__name__
        print(f"{len(tensors):,} tensors of {file.name} become {len(plan.tensors):,} of a {network}")
        print("\n".join(plan.obstacles) or "every tensor maps")
        return
    facts = convert(file, Path(options.to).expanduser(), origin=options.origin, config=options.config, words=words)
    print(f"written: {options.to} ({facts['converted']['network']}, {facts['weights']:,} weights)")

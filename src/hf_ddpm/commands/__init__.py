"""The commands of `hf-ddpm`: each file has `add_options(parser)` and `run(options)`, and imports torch only to run."""

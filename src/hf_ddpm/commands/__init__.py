"""Commands of `hf-ddpm`: each has `add_options(parser)` and `run(options)`, and imports torch only when it runs."""

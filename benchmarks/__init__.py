"""Comparisons of hf_ddpm with other libraries: `python -m benchmarks.run`, from the root of the checkout."""

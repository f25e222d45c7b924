"""hf_ddpm beside what people use today: `python -m benchmarks.run`, from the root of the checkout."""

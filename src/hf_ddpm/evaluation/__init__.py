"""Evaluation of checkpoints and images: images are accessed by index, seen once, measured, and recorded."""

"""Checkpoints and images as numbers: images by their indices, looked at once, measured, and recorded."""

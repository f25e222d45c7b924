"""Checkpoints of other projects in the Hub format."""

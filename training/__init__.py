"""What `accelerate launch` runs: recipes in, weights out."""

"""Training as `accelerate launch` runs it: from a recipe to the weights."""

"""Where measuring and training run."""

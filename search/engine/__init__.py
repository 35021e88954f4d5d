"""Where measuring and training run: on this machine (local.py) or on a Ray cluster (ray.py)."""

"""Samplers of our own; Optuna's are chosen in conf/sampler."""

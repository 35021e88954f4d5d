"""Search LITv2 architectures for accuracy and for latency measured on the target (see objective.py first)."""

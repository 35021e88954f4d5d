"""Measured latency: the timing protocol, the targets that follow it, and one module for each runtime."""

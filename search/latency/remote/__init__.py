"""Latency on a device that is reached over ssh."""

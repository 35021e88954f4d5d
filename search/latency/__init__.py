"""Measured latency: the protocol every target follows, and one module for each target."""

"""The search space: its dimensions, and a trial's parameters to an architecture and back."""

from search.space.space import Space

__all__ = ["Space"]

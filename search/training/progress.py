"""The callback through which long-running work reports how far it is. Imports nothing, so that every package can use it."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[float], None]
"""Takes the fraction of the work that is done, in [0, 1]."""

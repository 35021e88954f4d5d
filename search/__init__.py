"""Search LITv2 architectures for accuracy and measured latency. Here: the two errors that end a command on purpose."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

BUGS = (AssertionError, AttributeError, ImportError, LookupError, NameError, SyntaxError, TypeError)
"""Mistakes in the code rather than in what it was given or ran on. They end a command with their traceback."""


class UserError(Exception):
    """A mistake that the user can fix: printed as one line that names the value and the remedy, exit code 2."""


class SearchStopped(Exception):
    """The command cannot usefully continue, though its arguments are valid: printed as one line, exit code 1."""


def one_line(error: BaseException) -> str:
    """The message of an error without line breaks, prefixed by its type unless the message was written for users."""
    text = " ".join(str(error).split())
    return text if isinstance(error, (UserError, SearchStopped)) else f"{type(error).__name__}: {text}".removesuffix(": ")


def causes(error: BaseException, with_contexts: bool = True) -> Iterator[BaseException]:
    """An error and those that led to it, each once: such a chain may be a circle.

    Args:
        with_contexts: also follow to errors during whose handling another one was raised.
    """
    seen: set[int] = set()
    below: BaseException | None = error
    while below is not None and id(below) not in seen:
        seen.add(id(below))
        yield below
        below = below.__cause__ or (below.__context__ if with_contexts else None)


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The first values that differ, by name; empty if none does."""
    changed = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    shown = "; ".join(f"{key} was {before.get(key)!r} and is now {now.get(key)!r}" for key in changed[:3])
    return shown + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")

"""The two ways in which a command ends early on purpose."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class UserError(Exception):
    """A mistake that the user can mend: printed as one line that names the value and the remedy, exit code 2."""


class SearchStopped(Exception):
    """The search cannot usefully go on, though nobody made a mistake at the command line: one line, exit code 1."""


def one_line(error: BaseException) -> str:
    """What an error says, without line breaks, led by its type where the text alone would puzzle."""
    text = " ".join(str(error).split())
    return text if isinstance(error, UserError | SearchStopped) else f"{type(error).__name__}: {text}".removesuffix(": ")


def driver_error(error: BaseException) -> BaseException:
    """What a database's driver said, below what SQLAlchemy (whose errors have it as orig) and Optuna make of it."""
    below: BaseException | None = error
    while below is not None:
        found = getattr(below, "orig", None)
        if isinstance(found, BaseException):
            return found
        below = below.__cause__ or below.__context__
    return error


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The first values that differ, by name; nothing if none does."""
    changed = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    shown = "; ".join(f"{key} was {before.get(key)!r} and is now {now.get(key)!r}" for key in changed[:3])
    return shown + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")

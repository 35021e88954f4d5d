"""Overrides of the command line whose values are names or paths: taken as typed.

Hydra reads every value as an expression: 2024_05_01 becomes the number 20240501, 1.10 is 1.1, and a path with a comma, a
bracket or a second equals sign is refused. So values of the keys below are put into quotes before Hydra reads them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.types import Quote, QuotedString

NAMES = (
    "study.name", "data.name", "data.cache",
    "data.source.train", "data.source.test", "data.source.image", "data.source.label",
    "storage.url", "engine.address", "host", "pick", "model", "teacher.model",
    "latency.host", "latency.python",
    "latency.devices.*.host", "latency.devices.*.python",
)  # fmt: skip
PATHS = (
    "data.source.path", "data.cache_folder", "accuracy.cache", "accuracy.init", "arch", "init", "deployed", "output",
    "data_path", "teacher.weights", "latency.identity_file", "latency.known_hosts",
    "latency.devices.*.identity_file", "latency.devices.*.known_hosts",
)  # fmt: skip
"""As NAMES, of files and folders on this machine: a leading ~ is the home folder."""
LISTS = ("arch", "model")
"""Keys that also take a list, as [a,b]."""
SWEEP_FUNCTIONS = re.compile(r"(choice|range|interval|glob|sort|shuffle)\(.*\)")


def as_typed(overrides: Sequence[str]) -> list[str]:
    """Put names and paths into the quotes of Hydra's grammar.

    What is in quotes already stays, and so does null. In a sweep (-m) commas separate values, each of them taken as typed.
    """
    is_sweep = not {"-m", "--multirun"}.isdisjoint(overrides)
    return [_as_typed(override, is_sweep) for override in overrides]


def _as_typed(override: str, is_sweep: bool) -> str:
    key, _, value = override.partition("=")
    name = re.sub(r"\.devices\.[^.]+\.", ".devices.*.", key.lstrip("+"))
    if name not in (*NAMES, *PATHS) or value in ("", "null"):
        return override
    is_path, is_list = name in PATHS, name in LISTS and value.startswith("[") and value.endswith("]")
    if is_sweep:
        is_expression = is_list or SWEEP_FUNCTIONS.fullmatch(value)
        return override if is_expression else f"{key}={_quoted_each(value, is_path)}"
    return f"{key}=[{_quoted_each(value[1:-1], is_path)}]" if is_list else f"{key}={_quoted(value, is_path)}"


def _quoted_each(values: str, is_path: bool) -> str:
    return ",".join(_quoted(value.strip(), is_path) for value in values.split(","))


def _quoted(value: str, is_path: bool) -> str:
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        return value
    return QuotedString(_expanded(value) if is_path else value, Quote.single).with_quotes()


def _expanded(path: str) -> str:
    """A path with the home folder in place of a leading ~."""
    try:
        return str(Path(path).expanduser()) if path.startswith("~") else path
    except RuntimeError:  # nobody's home
        return path

"""Architectures as YAML files: written by exports, read by everything that trains, measures or deploys them.

A file is plain data under a format number; reading one never runs anything named in it. Files of format 1, which version 0.1
wrote, still load.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from models.architecture import Architecture
from search import UserError
from search.files import write_text
from search.study.targets import FIRST, Role

FORMAT = 2  # raise the number with every change of what is stored
FORMAT_1 = 1  # latency and device of one target, those of others below `further`
MAX_BYTES = 1_000_000

Facts = dict[str, Any]
"""Plain data in a file beside the architecture, such as `accuracy` and `targets`."""


class PlainDumper(yaml.SafeDumper):
    """Writes repeated values in full instead of as YAML aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


class PlainLoader(yaml.SafeLoader):
    """Refuses YAML aliases: a few lines of them can expand to more than fits into memory."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(f"an alias, *{self.peek_event().anchor}")  # type: ignore[no-untyped-call]
        return super().compose_node(parent, index)


class NetworkInput(NamedTuple):
    """Input and classes of the network that was searched for."""

    in_chans: int
    img_size: int
    num_classes: int


IMAGENET = NetworkInput(3, 224, 1000)


def write(path: Path, comment: str, architecture: Architecture, facts: Mapping[str, Any]) -> None:
    """Write an architecture; the other arguments are those of `text`."""
    write_text(path, text(comment, architecture, facts))


def text(comment: str, architecture: Architecture, facts: Mapping[str, Any]) -> str:
    """An architecture as YAML.

    Args:
        comment: lines at the top of the file.
        facts: plain data about the architecture, such as its accuracy.
    """
    body = {"format": FORMAT, "architecture": architecture.to_dict(), **facts}
    head = "".join(f"# {line}\n" for line in comment.splitlines())
    return head + yaml.dump(body, Dumper=PlainDumper, sort_keys=False, allow_unicode=True)


def read(path: Path) -> tuple[Architecture, Facts]:
    """Read an architecture and the facts about it; those of format 1 are returned as format 2 stores them.

    Raises:
        UserError: if the file is missing, not YAML of plain data or of another format, or its architecture cannot be built.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"arch={path} is larger than {MAX_BYTES} bytes, so it is not an exported architecture")
        body = yaml.load(path.read_text(encoding="utf-8"), PlainLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"arch={path} cannot be read ({getattr(error, 'strerror', None) or error})") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"arch={path} is not YAML of plain data ({' '.join(str(error).split())})") from error
    if not isinstance(body, dict) or body.get("format") not in (FORMAT_1, FORMAT) or "architecture" not in body:
        raise UserError(f"arch={path} is not an exported architecture: it needs `format: {FORMAT}` and `architecture`")
    try:
        architecture = Architecture.from_dict(body["architecture"])
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"arch={path}: {error}") from error
    facts = {key: value for key, value in body.items() if key not in ("format", "architecture")}
    return architecture, _from_format_1(facts) if body["format"] == FORMAT_1 else facts


def network_input(architecture: Architecture, facts: Mapping[str, Any]) -> NetworkInput:
    """The input that a network was searched for, which all its targets share; ImageNet's if the file does not have it."""
    try:
        device = next(iter(facts["targets"].values()))["device"]
        in_chans, img_size, _ = (int(part) for part in device["input_size"].split("x"))
        known = NetworkInput(in_chans, img_size, int(device["num_classes"]))
    except (AttributeError, KeyError, StopIteration, TypeError, ValueError):
        known = IMAGENET
    return known._replace(img_size=architecture.side(known.img_size))


def _from_format_1(facts: Facts) -> Facts:
    """Move latencies and devices to `targets`. The role of further targets was not stored."""
    first = {key: facts[key] for key in ("latency", "device") if key in facts}
    further = facts.get("further")
    targets: Facts = {FIRST: {"role": str(Role.OBJECTIVE), **first}} if first else {}
    rest = {key: value for key, value in facts.items() if key not in ("latency", "device", "further")}
    return {**rest, "targets": {**targets, **(further if isinstance(further, dict) else {})}}

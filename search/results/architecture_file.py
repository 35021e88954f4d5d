"""An architecture as a YAML file: written by an export, read back by everything that trains or deploys it.

Plain data under a version number. Reading one never runs anything named in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from models.architecture import Architecture
from search import UserError

FORMAT = 1
MAX_BYTES = 1_000_000


class PlainDumper(yaml.SafeDumper):
    """Writes everything where it belongs, never as a reference to where it was before."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


class PlainLoader(yaml.SafeLoader):
    """Refuses references: a few lines of them stand for more than memory holds."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(f"a reference, *{self.peek_event().anchor}")  # type: ignore[no-untyped-call]
        return super().compose_node(parent, index)


def write(path: Path, comment: str, architecture: Architecture, facts: Mapping[str, Any]) -> None:
    """facts: anything of plain data that belongs beside the architecture, such as its accuracy."""
    body = {"format": FORMAT, "architecture": architecture.to_dict(), **facts}
    head = "".join(f"# {line}\n" for line in comment.splitlines())
    path.write_text(head + yaml.dump(body, Dumper=PlainDumper, sort_keys=False, allow_unicode=True), encoding="utf-8")


def read(path: Path) -> tuple[Architecture, dict[str, Any]]:
    """The architecture, and everything else the file holds.

    Raises: UserError if the file is missing, no YAML of plain data, of another format, or its architecture cannot be built.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"arch={path} is larger than {MAX_BYTES} bytes; that is no exported architecture")
        body = yaml.load(path.read_text(encoding="utf-8"), PlainLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"arch={path} cannot be read ({getattr(error, 'strerror', None) or error})") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"arch={path} is no YAML of plain data ({' '.join(str(error).split())})") from error
    if not isinstance(body, dict) or body.get("format") != FORMAT or "architecture" not in body:
        raise UserError(f"arch={path} is no exported architecture: it needs `format: {FORMAT}` and `architecture`")
    try:
        architecture = Architecture.from_dict(body["architecture"])
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"arch={path}: {error}") from error
    return architecture, {key: value for key, value in body.items() if key not in ("format", "architecture")}

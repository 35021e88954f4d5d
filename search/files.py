"""Files that are written whole or not at all: whoever reads one finds the old content or the new, even after a kill.

Everything that is written at once goes through `replacing`. What grows line by line is appended to instead, by whom can do
without a last line that was cut short.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from search import SearchStopped


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Replace a file by one that is written beside it, or leave it as it is if writing fails.

    Yields:
        Where to write: a hidden file of the same suffix. Devices and pipes cannot be replaced and are written to directly.

    Raises:
        SearchStopped: if the file cannot be written.
    """
    if path.exists() and not path.is_file():
        yield path
        return
    target = path.resolve()  # a link stays one
    new = target.with_name(f".{os.getpid()}-{target.name}")
    try:
        yield new
        with new.open("rb+") as written:
            os.fsync(written.fileno())
        new.replace(target)
    except OSError as error:
        raise SearchStopped(
            f"{path} cannot be written ({error.strerror or error}); fix this and run the command again"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file. Raises: SearchStopped if it cannot be written."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file. Raises: SearchStopped if it cannot be written."""
    with replacing(path) as new:
        new.write_bytes(content)


def sha256(path: Path) -> str:
    """Digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

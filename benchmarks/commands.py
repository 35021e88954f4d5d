"""Commands of the project, which benchmarks run in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from search import UserError


def environment() -> dict[str, str]:
    """Return the environment in which a command finds this project from any folder."""
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}


def run_command(name: str, overrides: Sequence[str], folder: Path, console: Console, answers: Sequence[int] = (0,)) -> None:
    """Run a command; its output is appended to commands.log.

    Args:
        name: Such as "run" for search.run.
        overrides: Its arguments.
        folder: Where it runs.
        console: Shows the command.
        answers: Exit codes that are not failures.

    Raises:
        UserError: If it fails.
    """
    line = [sys.executable, "-m", f"search.{name}", *overrides]
    console.print(" ".join(line[2:]), highlight=False, soft_wrap=True)
    with (folder / "commands.log").open("a") as log:
        code = subprocess.run(
            line, cwd=folder, env=environment(), stdout=log, stderr=subprocess.STDOUT, check=False
        ).returncode
    if code not in answers:
        raise UserError(f"search.{name} ended with exit code {code}; see {folder / 'commands.log'}")

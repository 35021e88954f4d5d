"""Running the project's commands as a user does: in a process of their own or, to save its imports, in this one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

ROOT = Path(__file__).parents[2]


def command(module: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", module, *arguments]


def start(folder: Path, module: str, *arguments: str) -> subprocess.Popen[str]:
    """A command in a process of its own, in `folder`."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        command(module, *arguments), cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def call(command: str, arguments: Sequence[str]) -> int:
    """Run a command in this process, which keeps the cores it had. Returns the command's exit code."""
    from search.commands.cli import main

    GlobalHydra.instance().clear()
    cores = os.sched_getaffinity(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["command", *arguments])
        with pytest.raises(SystemExit) as ended:
            main(command)
    os.sched_setaffinity(0, cores)
    code = ended.value.code
    assert isinstance(code, int)
    return code

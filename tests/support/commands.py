"""Running the project's commands as a user does: in a process of their own or, to save its imports, in this one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest
from hydra.core.global_hydra import GlobalHydra

ROOT = Path(__file__).parents[2]
TINY = [
    "data.train_size=128",
    "data.val_size=100",
    "train.max_epochs=1",
    "latency.max_seconds=0.3",
    "latency.calibration_seconds=0.3",
    "space.embed_dim=[8]",
]
"""Overrides of a search that ends within seconds: few images, one epoch, a quick look at the latency."""
LIMIT_SECONDS = 280.0


class Command:
    """`python -m MODULE ARGUMENTS` in a process of its own, killed on leaving the context.

    Ctrl-C (SIGINT) reaches it even where the tests themselves run in the background of a shell, which ignores it there.

    Attributes:
        folder: the working directory; the output goes to a file in it.
    """

    def __init__(self, folder: Path, module: str, *arguments: str) -> None:
        self.folder = folder
        self.arguments = [sys.executable, "-m", module, *arguments]
        self.output_file = folder / f"{module}.output.txt"

    def __enter__(self) -> Self:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        with self.output_file.open("w") as output:
            self.process = subprocess.Popen(
                self.arguments,
                cwd=self.folder,
                env=environment,
                text=True,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                preexec_fn=_enable_ctrl_c,
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()

    @property
    def returncode(self) -> int | None:
        return self.process.poll()

    @property
    def output(self) -> str:
        """What it has printed so far, both streams."""
        return self.output_file.read_text(encoding="utf-8", errors="replace")

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self, seconds: float = LIMIT_SECONDS) -> str:
        """Wait for its end. Returns its output. Raises: TimeoutError if it takes longer; it is killed then."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise TimeoutError(f"{' '.join(self.arguments)} takes longer than {seconds:g} s:\n{self.output}") from None
        return self.output

    def wait_until(self, condition: Callable[[], object], seconds: float = LIMIT_SECONDS) -> None:
        """Wait for something that it does. Raises: RuntimeError if it ends before, TimeoutError if it takes longer."""
        end = time.monotonic() + seconds
        while not condition():
            if self.returncode is not None:
                raise RuntimeError(f"{' '.join(self.arguments)} ended too early:\n{self.output}")
            if time.monotonic() > end:
                raise TimeoutError(f"{' '.join(self.arguments)} takes longer than {seconds:g} s:\n{self.output}")
            time.sleep(0.02)


def _enable_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


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

"""A small search that things are done to, and what is then held against its study: for `python -m benchmarks.faults`."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import optuna
from optuna.trial import TrialState

from search.study.storage import open_study
from search.study.trial import Finished, finished_trials

ROOT = Path(__file__).parents[1]
NAME = "faults"
# A search that ends within seconds: few images, one epoch, a quick look at the latency.
TINY = [
    "data.train_size=128",
    "data.val_size=100",
    "train.max_epochs=1",
    "latency.max_seconds=0.3",
    "latency.calibration_seconds=0.3",
    "space.embed_dim=[8]",
]
SEARCH = ["+search=cpu_latency", f"study.name={NAME}", "accuracy=scratch", "accuracy.num_threads=1"]
LIMIT_SECONDS = 900.0
Ledger = dict[int, tuple[str, object, object]]  # of finished trials, by number: network, accuracy and latency


@dataclass
class Tally:
    """Of one kind of fault. before, after: finished trials of the studies, at the last fault of each and at its end."""

    times: int = 0
    before: int = 0
    after: int = 0
    lost: int = 0
    duplicated: int = 0
    inexact: int = 0
    said: Counter[str] = field(default_factory=Counter)


@dataclass
class Search:
    """A search in a folder of its own, as a user starts it; killed on leaving its context.

    known: what was finished at some fault, and has to stay as it was.
    """

    folder: Path
    n_trials: int
    arguments: list[str] = field(default_factory=list)
    url: str = ""
    known: Ledger = field(default_factory=dict)
    process: subprocess.Popen[str] | None = None

    def __post_init__(self) -> None:
        self.url = self.url or f"sqlite:///{self.folder}/outputs/{NAME}/study.db"
        self.output = self.folder / "output.txt"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    @property
    def running(self) -> subprocess.Popen[str]:
        assert self.process is not None, "not started"
        return self.process

    def start(self) -> None:
        limits = [f"study.n_trials={self.n_trials}", "study.max_consecutive_failures=20"]
        command = [sys.executable, "-m", "search.run", *SEARCH, *TINY, *limits, *self.arguments]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        with self.output.open("w") as output:
            self.process = subprocess.Popen(
                command, cwd=self.folder, env=environment, text=True, stdout=output, stderr=subprocess.STDOUT
            )

    def log(self) -> str:
        file = self.folder / "outputs" / NAME / "run.log"
        return file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""

    def wait_for(self, text: str, times: int) -> None:
        """Until the log holds it so many times. Raises: RuntimeError if the search ends before."""
        end = time.monotonic() + LIMIT_SECONDS
        while self.log().count(text) < times:
            if self.running.poll() is not None:
                raise RuntimeError(f"the search ended before it said {text} {times} times: {self.end()}")
            if time.monotonic() > end:
                raise RuntimeError(f"the search did not say {text} {times} times within {LIMIT_SECONDS:g} s")
            time.sleep(0.02)

    def worker(self, place: str) -> int:
        """The process that does this now."""
        return int(re.findall(rf"process (\d+) is for {place}", self.log())[-1])

    def end(self) -> str:
        """Wait for its end. Returns the last line that it printed. Raises: RuntimeError if that is a traceback's."""
        self.running.wait(LIMIT_SECONDS)
        lines = self.output.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        if any(line.startswith("Traceback") for line in lines):
            raise RuntimeError("\n".join(lines))
        return lines[-1] if lines else ""

    def fail(self) -> str:
        """Start it, see that it cannot go on, and return what it says."""
        self.start()
        said = self.end()
        if self.running.returncode == 0:
            raise RuntimeError(f"the search did not fail: {said}")
        return said

    def finish(self) -> None:
        """Start it or repeat the command, to its end."""
        self.start()
        said = self.end()
        if self.running.returncode != 0:
            raise RuntimeError(f"the search did not end well: {said}")

    @contextmanager
    def study(self) -> Iterator[optuna.Study]:
        """Its study, with no file or connection left open afterwards."""
        study = open_study(NAME, self.url, create=False)
        try:
            yield study
        finally:
            study._storage.remove_session()
            study._storage._backend.engine.dispose()  # type: ignore[attr-defined]  # of the cache that Optuna puts before it

    def finished(self) -> list[Finished]:
        with self.study() as study:
            return finished_trials(study)

    def note(self) -> None:
        """What is finished now has to stay as it is."""
        self.known = {**ledger(self.finished()), **self.known}

    def is_exact(self) -> bool:
        """Whether as many trials are finished as were asked for, and none is open."""
        with self.study() as study:
            running = any(trial.state == TrialState.RUNNING for trial in study.trials)
            return len(finished_trials(study)) == self.n_trials and not running

    def count(self, tally: Tally) -> None:
        """Hold the finished study against what was finished when faults came, and what the log says was."""
        finished = self.finished()
        after = ledger(finished)
        told = {int(number) for number in re.findall(r"trial (\d+) finished", self.log())}
        trained = Counter(
            one.architecture.key for one in finished if one.outcome.accuracy and not one.outcome.reused_accuracy
        )
        tally.before += len(self.known)
        tally.after += len(after)
        changed = {number for number, found in self.known.items() if after.get(number) != found}
        unsampled = {one.number for one in finished if one.outcome.latency.measured and not self._has_samples(one)}
        tally.lost += len(changed | (told - after.keys()) | unsampled)
        tally.duplicated += sum(count - 1 for count in trained.values())
        tally.inexact += not self.is_exact()

    def _has_samples(self, trial: Finished) -> bool:
        """Whether the samples of its measurement are there, and its own."""
        file = self.folder / "outputs" / NAME / "latency" / f"trial-{trial.number:05d}.json"
        kept = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        return kept.get("latency_ms") == trial.outcome.latency.latency_ms


def ledger(finished: list[Finished]) -> Ledger:
    return {one.number: (one.architecture.key, one.outcome.accuracy, one.outcome.latency) for one in finished}

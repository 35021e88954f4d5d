"""A small search that faults are done to, and what is then compared with its study."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import optuna
from optuna.trial import TrialState

from search.study.storage import open_study
from search.study.trial import TrialRecord, finished_trials
from tests.support.commands import TINY, Command

NAME = "faults"
SEARCH = ["+search=cpu_latency", "study.min_expected_gain=null", f"study.name={NAME}"]
SEARCH += ["accuracy=scratch", "accuracy.num_threads=1"]
LIMIT_SECONDS = 900.0
Ledger = dict[int, tuple[str, object, object]]  # of finished trials, by number: network, accuracy and latencies


@dataclass
class Tally:
    """What became of the studies of one kind of fault.

    Attributes:
        before, after: finished trials, at the last fault of each study and at its end.
        messages: what the searches printed.
    """

    times: int = 0
    before: int = 0
    after: int = 0
    lost: int = 0
    duplicated: int = 0
    inexact: int = 0
    messages: Counter[str] = field(default_factory=Counter)


class SearchProcess:
    """A search in a folder of its own, as a user starts it again and again; killed on leaving its context.

    Attributes:
        recorded: what was finished at some fault, and must stay as it was.
    """

    def __init__(self, folder: Path, n_trials: int, arguments: Sequence[str] = (), url: str = "") -> None:
        self.folder = folder
        self.n_trials = n_trials
        self.arguments = list(arguments)
        self.url = url or f"sqlite:///{folder}/outputs/{NAME}/study.db"
        self.recorded: Ledger = {}
        self._command: Command | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._command is not None:
            self._command.__exit__(kind, error, traceback)

    @property
    def running(self) -> Command:
        assert self._command is not None, "not started"
        return self._command

    def start(self) -> None:
        limits = [f"study.n_trials={self.n_trials}", "study.max_consecutive_failures=20"]
        self._command = Command(self.folder, "search.run", *SEARCH, *TINY, *limits, *self.arguments).__enter__()

    def log(self) -> str:
        file = self.folder / "outputs" / NAME / "run.log"
        return file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""

    def wait_for(self, text: str, times: int) -> None:
        """Wait until the log contains it so many times. Raises: RuntimeError if the search ends before."""
        self.running.wait_until(lambda: self.log().count(text) >= times, LIMIT_SECONDS)

    def worker(self, role: str) -> int:
        """The process that has this role now."""
        return int(re.findall(rf"process (\d+) is for {role}", self.log())[-1])

    def end(self) -> str:
        """Wait for its end. Returns the last line that it printed. Raises: RuntimeError if that is a traceback's."""
        lines = self.running.wait(LIMIT_SECONDS).strip().splitlines()
        if any(line.startswith("Traceback") for line in lines):
            raise RuntimeError("\n".join(lines))
        return lines[-1] if lines else ""

    def fail(self) -> str:
        """Start it, check that it cannot go on, and return what it prints last."""
        self.start()
        message = self.end()
        if self.running.returncode == 0:
            raise RuntimeError(f"the search did not fail: {message}")
        return message

    def finish(self) -> None:
        """Start it, or run the command again, to its end."""
        self.start()
        message = self.end()
        if self.running.returncode != 0:
            raise RuntimeError(f"the search did not end well: {message}")

    @contextmanager
    def study(self) -> Iterator[optuna.Study]:
        """Its study, with no file or connection left open afterwards."""
        study = open_study(NAME, self.url, create=False)
        try:
            yield study
        finally:
            study._storage.remove_session()
            study._storage._backend.engine.dispose()  # type: ignore[attr-defined]  # below Optuna's cache

    def finished(self) -> list[TrialRecord]:
        with self.study() as study:
            return finished_trials(study)

    def record(self) -> None:
        """Remember what is finished now: it must stay as it is."""
        self.recorded = {**ledger(self.finished()), **self.recorded}

    def is_exact(self) -> bool:
        """Whether as many trials are finished as were asked for, and none is open."""
        with self.study() as study:
            is_running = any(trial.state == TrialState.RUNNING for trial in study.trials)
            return len(finished_trials(study)) == self.n_trials and not is_running

    def count(self, tally: Tally) -> None:
        """Compare the finished study with what was finished when faults came, and with what the log reports."""
        finished = self.finished()
        after = ledger(finished)
        reported = {int(number) for number in re.findall(r"trial (\d+) finished", self.log())}
        trained = Counter(
            trial.architecture.key for trial in finished if trial.result.accuracy and not trial.result.reused_accuracy
        )
        tally.before += len(self.recorded)
        tally.after += len(after)
        changed = {number for number, recorded in self.recorded.items() if after.get(number) != recorded}
        unsampled = {trial.number for trial in finished if trial.result.measured and not self._has_samples(trial)}
        tally.lost += len(changed | (reported - after.keys()) | unsampled)
        tally.duplicated += sum(count - 1 for count in trained.values())
        tally.inexact += not self.is_exact()

    def _has_samples(self, trial: TrialRecord) -> bool:
        """Whether the samples of its own measurements are there."""
        file = self.folder / "outputs" / NAME / "latency" / f"trial-{trial.number:05d}.json"
        stored = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        return {name: samples["latency_ms"] for name, samples in stored.items()} == {
            name: latency.latency_ms for name, latency in trial.result.latencies.items()
        }


def ledger(finished: list[TrialRecord]) -> Ledger:
    return {trial.number: (trial.architecture.key, trial.result.accuracy, trial.result.latencies) for trial in finished}

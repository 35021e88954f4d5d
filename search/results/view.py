"""The progress of a search: a live page on a terminal, plain log lines elsewhere."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from models.architecture import Architecture
from search.results.significance import Monitor
from search.results.tables import accuracy_text, latencies_text, note_text, trial_table
from search.space.dimensions import describe
from search.study.convergence import HORIZON
from search.study.coordinator import SearchProgress
from search.study.drift import is_noteworthy
from search.study.trial import TrialRecord, metric_of, on

log = logging.getLogger(__name__)
LOG_WIDTH = 140  # characters
NUM_ROWS = 12  # finished trials that stay in view


def make_console() -> Console:
    """A console for standard output; wide enough for a table's lines where no terminal sets the width."""
    console = Console()
    return console if console.is_terminal else Console(width=LOG_WIDTH)


@contextmanager
def progress_of(console: Console, text: str) -> Iterator[Callable[[float], None]]:
    """Show a bar on a terminal, a log line every tenth elsewhere. Yields what takes the share that is done."""
    if console.is_terminal:
        with Progress(console=console) as progress:
            bar = progress.add_task(text, total=1.0, visible=False)
            yield lambda share: progress.update(bar, completed=share, visible=True)
        return
    tenths = 0

    def report(share: float) -> None:
        nonlocal tenths
        if int(10 * share) > tenths:
            tenths = int(10 * share)
            log.info("%s: %d %%", text, 10 * tenths)

    yield report


class LogView:
    """Writes a log line for each event, at a given level.

    Args:
        monitor: warns if the search tells nothing apart.
    """

    def __init__(self, level: int = logging.INFO, monitor: Monitor | None = None) -> None:
        self.monitor = monitor
        self.level = level
        self.was_warned = False
        self.drifting: set[str] = set()  # targets whose drift was reported

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        return None

    def trial_started(self, number: int, architecture: Architecture) -> None:
        log.log(self.level, "trial %d: %s", number, describe(architecture))

    def phase(self, number: int, text: str, share: float) -> None:
        if not share:
            log.debug("trial %d, phase: %s", number, text)

    def trial_finished(self, trial: TrialRecord, progress: SearchProgress) -> None:
        note = note_text(trial)
        log.log(
            self.level,
            "trial %d finished (%d of %d): %s %s, latency %s%s; front %d, hypervolume %.4f%s, %s",
            trial.number,
            progress.num_finished,
            progress.num_wanted,
            metric_of([trial]),
            accuracy_text(trial),
            latencies_text(trial.result),
            f" ({note})" if note else "",
            progress.front_size,
            progress.hypervolume,
            model_text(progress),
            left_text(progress),
        )
        warnings = [latency.warning for latency in trial.result.latencies.values() if latency.warning]
        if warnings and not self.was_warned:  # once for a run of disturbed trials
            log.warning("trial %d: %s", trial.number, warnings[0])
        self.was_warned = bool(warnings)
        self._report_drift(progress)
        if self.monitor is not None and (warning := self.monitor.warning(trial)):
            log.warning("%s", warning)

    def _report_drift(self, progress: SearchProgress) -> None:
        """Warn of each target that becomes slower or faster than it was, and say when it is as before."""
        slowdowns = progress.slowdowns
        for name, slowdown in slowdowns.items():
            text = f"the anchor takes {slowdown:.2f} times what it took at the start{on(name, slowdowns)}"
            if is_noteworthy(slowdown) and name not in self.drifting:
                log.warning("%s: milliseconds are those of the start, the ratios between networks hold", text)
                self.drifting.add(name)
            elif not is_noteworthy(slowdown) and name in self.drifting:
                log.info("%s: as before", text)
                self.drifting.remove(name)

    def trial_failed(self, number: int, reason: str) -> None:
        log.warning("trial %d failed: %s", number, reason)

    def trial_skipped(self, number: int, reason: str) -> None:
        log.log(self.level, "trial %d %s", number, reason)


class LiveView(LogView):
    """Shows the latest trials as a table, and below it the running ones and the whole search; log lines go to the file."""

    def __init__(
        self, console: Console, num_wanted: int, finished: list[TrialRecord], monitor: Monitor | None = None
    ) -> None:
        super().__init__(logging.DEBUG, monitor)
        self.recent = deque(finished, maxlen=NUM_ROWS)
        self.progress = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}"), console=console
        )
        self.search = self.progress.add_task("search", total=num_wanted, completed=len(finished), text="")
        self.running: dict[int, tuple[TaskID, str]] = {}  # row and description of each running trial, by number
        self.live = Live(console=console, get_renderable=self._render, refresh_per_second=4)

    def __enter__(self) -> Self:
        self.live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        for number in list(self.running):
            self._remove(number)
        self.live.stop()

    def trial_started(self, number: int, architecture: Architecture) -> None:
        super().trial_started(number, architecture)
        description = f"trial {number}  {describe(architecture)}"
        self.running[number] = (self.progress.add_task("trial", total=1.0, text=description), description)

    def phase(self, number: int, text: str, share: float) -> None:
        super().phase(number, text, share)
        row, description = self.running[number]
        self.progress.update(row, completed=share, text=f"{description}  {text}")

    def trial_finished(self, trial: TrialRecord, progress: SearchProgress) -> None:
        super().trial_finished(trial, progress)
        self._remove(trial.number)
        self.recent.append(trial)
        text = (
            f"{progress.num_finished} of {progress.num_wanted}, front {progress.front_size}, "
            f"hypervolume {progress.hypervolume:.4f}{model_text(progress)}, {left_text(progress)}"
        )
        self.progress.update(self.search, completed=progress.num_finished, text=text)

    def trial_failed(self, number: int, reason: str) -> None:
        super().trial_failed(number, reason)
        self._remove(number)

    def trial_skipped(self, number: int, reason: str) -> None:
        super().trial_skipped(number, reason)
        self._remove(number)

    def _remove(self, number: int) -> None:
        row, _ = self.running.pop(number)
        self.progress.remove_task(row)

    def _render(self) -> Group:
        return Group(trial_table("Finished trials", list(self.recent)), self.progress)


def model_text(progress: SearchProgress) -> str:
    """Errors of the block models' predictions, and the number of networks that were skipped because of them."""
    errors = progress.model_errors
    if len(errors) > 1:
        text = ", block models off by " + ", ".join(f"{error:.1%} on {name}" for name, error in errors.items())
    else:
        text = "".join(f", block model off by {error:.1%}" for error in errors.values())
    return text + (f", {progress.num_skipped} skipped" if progress.num_skipped else "")


def left_text(progress: SearchProgress) -> str:
    """The time left and, where that ends the search, the gain that is expected of further networks."""
    if progress.outlook is None:
        return f"{duration(progress.seconds_left)} left"
    return f"next {HORIZON} networks: +{progress.outlook.share:.1%} expected; at most {duration(progress.seconds_left)} left"


def duration(seconds: float) -> str:
    """Minutes and seconds, as 4:07."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"

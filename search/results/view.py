"""What a search shows: a live page on a terminal, plain log lines elsewhere."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table

from models.architecture import Architecture
from search.latency.base import Latency
from search.space.dimensions import describe
from search.study.coordinator import SearchProgress
from search.study.front import front, front_probability
from search.study.targets import FIRST
from search.study.trial import SAMPLED, TrialRecord

log = logging.getLogger(__name__)
LOG_WIDTH = 140  # characters
ROWS = 12  # finished trials that stay in view


def accuracy_text(trial: TrialRecord) -> str:
    accuracy = trial.result.accuracy
    if accuracy is None:
        return "not trained"
    return f"{accuracy.accuracy:.4f} ±{accuracy.standard_error:.4f}"


def latency_text(latency: Latency) -> str:
    return f"{'' if latency.measured else '~'}{latency.latency_ms:.3f} [{latency.low_ms:.3f}, {latency.high_ms:.3f}]"


def note_text(trial: TrialRecord) -> str:
    if not trial.result.feasible:
        return "over budget"
    if trial.result.reused_accuracy:
        return "known network, measured again"
    if not trial.result.latencies[FIRST].measured:
        return "dominated, latency predicted"
    return "" if trial.origin == SAMPLED else trial.origin


def model_text(progress: SearchProgress) -> str:
    """How far the block model's predictions are off, and how many networks it has spared."""
    errors = progress.model_errors
    error = f", block model off by {max(errors.values()):.1%}" if errors else ""
    return error + (f", {progress.num_skipped} skipped" if progress.num_skipped else "")


def make_console() -> Console:
    """A console for standard output; wide enough for a table's lines where no terminal sets the width."""
    console = Console()
    return console if console.is_terminal else Console(width=LOG_WIDTH)


def trial_table(title: str, trials: list[TrialRecord], surely: Callable[[TrialRecord], str] | None = None) -> Table:
    """Trials as rows: number, accuracy, latencies with their intervals, cost and architecture; how surely on the front."""
    table = Table(title=title, title_justify="left")
    devices = list(dict.fromkeys(name for trial in trials for name in trial.result.latencies))
    latencies = ("latency, ms [95 %]", *(f"on {name}, ms [95 %]" for name in devices))
    for header in ("trial", "accuracy", *latencies, *(("on the front",) if surely else ()), "MACs"):
        table.add_column(escape(header), justify="right", no_wrap=True)
    table.add_column("width: blocks of each stage", overflow="fold")
    for trial in trials:
        note = f" [dim]({note_text(trial)})[/dim]" if note_text(trial) else ""
        further = trial.result.latencies
        table.add_row(
            str(trial.number),
            accuracy_text(trial),
            escape(latency_text(trial.result.latencies[FIRST])),
            *(escape(latency_text(further[name])) if name in further else "" for name in devices),
            *((surely(trial),) if surely else ()),
            f"{trial.num_macs / 1e6:,.1f} M",
            describe(trial.architecture) + note,
        )
    return table


@contextmanager
def progress_of(console: Console, text: str) -> Iterator[Callable[[float], None]]:
    """A bar on a terminal, a log line every tenth elsewhere. Yields what takes the share that is done."""
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


def front_table(title: str, trials: list[TrialRecord]) -> Table:
    """The front of finished trials, with the probability that a member belongs there."""
    probability = front_probability(trials)
    return trial_table(title, front(trials), lambda member: f"{probability[member.architecture.key]:.0%}")


class LogView:
    """One log line for each event, at a given level."""

    def __init__(self, level: int = logging.INFO) -> None:
        self.level = level
        self.was_warned = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        return None

    def phase(self, number: int, text: str, share: float) -> None:
        if not share:
            log.debug("trial %d, phase: %s", number, text)

    def trial_started(self, number: int, architecture: Architecture) -> None:
        log.log(self.level, "trial %d: %s", number, describe(architecture))

    def trial_finished(self, trial: TrialRecord, progress: SearchProgress) -> None:
        log.log(
            self.level,
            "trial %d finished (%d of %d): accuracy %s, latency %s ms%s; front %d, hypervolume %.4f%s, %s left",
            trial.number,
            progress.num_finished,
            progress.num_wanted,
            accuracy_text(trial),
            latency_text(trial.result.latencies[FIRST]),
            f" ({note_text(trial)})" if note_text(trial) else "",
            progress.front_size,
            progress.hypervolume,
            model_text(progress),
            duration(progress.seconds_left),
        )
        warning = trial.result.latencies[FIRST].warning
        if warning and not self.was_warned:  # once for a run of disturbed trials
            log.warning("trial %d: %s", trial.number, warning)
        self.was_warned = bool(warning)

    def trial_failed(self, number: int, reason: str) -> None:
        log.warning("trial %d failed: %s", number, reason)

    def trial_skipped(self, number: int, reason: str) -> None:
        log.log(self.level, "trial %d %s", number, reason)


class LiveView(LogView):
    """The last trials as a table, and below it what is going on and how far the search is; its lines go to the file."""

    def __init__(self, console: Console, num_wanted: int, finished: list[TrialRecord]) -> None:
        super().__init__(logging.DEBUG)
        self.recent = deque(finished, maxlen=ROWS)
        self.progress = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}"), console=console
        )
        self.search = self.progress.add_task("search", total=num_wanted, completed=len(finished), text="")
        self.underway: dict[int, tuple[TaskID, str]] = {}
        self.live = Live(console=console, get_renderable=self._render, refresh_per_second=4)

    def __enter__(self) -> Self:
        self.live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        for number in list(self.underway):
            self._remove(number)
        self.live.stop()

    def phase(self, number: int, text: str, share: float) -> None:
        super().phase(number, text, share)
        task, described = self.underway[number]
        self.progress.update(task, completed=share, text=f"{described}  {text}")

    def trial_started(self, number: int, architecture: Architecture) -> None:
        super().trial_started(number, architecture)
        described = f"trial {number}  {describe(architecture)}"
        self.underway[number] = (self.progress.add_task("trial", total=1.0, text=described), described)

    def trial_finished(self, trial: TrialRecord, progress: SearchProgress) -> None:
        super().trial_finished(trial, progress)
        self._remove(trial.number)
        self.recent.append(trial)
        text = (
            f"{progress.num_finished} of {progress.num_wanted}, front {progress.front_size}, "
            f"hypervolume {progress.hypervolume:.4f}{model_text(progress)}, {duration(progress.seconds_left)} left"
        )
        self.progress.update(self.search, completed=progress.num_finished, text=text)

    def trial_failed(self, number: int, reason: str) -> None:
        super().trial_failed(number, reason)
        self._remove(number)

    def trial_skipped(self, number: int, reason: str) -> None:
        super().trial_skipped(number, reason)
        self._remove(number)

    def _remove(self, number: int) -> None:
        task, _ = self.underway.pop(number)
        self.progress.remove_task(task)

    def _render(self) -> Group:
        return Group(trial_table("TrialRecord trials", list(self.recent)), self.progress)


def duration(seconds: float) -> str:
    """Minutes and seconds, as 4:07."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"

"""Results as text: accuracies, latencies and trials in a few words, and tables of trials for a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from rich.markup import escape
from rich.table import Table

from search.accuracy.checked import Checked
from search.latency.base import Latency
from search.space.dimensions import describe
from search.study.front import front, front_probability, probability_name
from search.study.trial import SAMPLED, TrialRecord, TrialResult, metric_of, on, stopped_text

NETWORK = "width: blocks of each stage"  # header above `describe`


def accuracy_text(trial: TrialRecord) -> str:
    """Accuracy with its standard error."""
    accuracy = trial.result.accuracy
    if trial.result.stopped_after is not None:
        return "stopped early"
    return "not trained" if accuracy is None else f"{accuracy.accuracy:.4f} ±{accuracy.standard_error:.4f}"


def latency_text(latency: Latency) -> str:
    """Milliseconds with their 95 % confidence interval; "~" marks a prediction."""
    return f"{'' if latency.measured else '~'}{latency.latency_ms:.3f} [{latency.low_ms:.3f}, {latency.high_ms:.3f}]"


def latencies_text(result: TrialResult, targets: Mapping[str, object] | None = None) -> str:
    """The latency on each target.

    Args:
        targets: of the study, named where there are several; by default those that were measured.
    """
    named = result.latencies if targets is None else targets
    return ", ".join(f"{latency_text(latency)} ms{on(name, named)}" for name, latency in result.latencies.items())


def note_text(trial: TrialRecord) -> str:
    """A note on a special trial; empty for an ordinary one."""
    if not trial.result.feasible:
        return "over budget"
    if trial.result.reused_accuracy:
        return "same network as an earlier trial, measured again"
    if trial.result.stopped_after is not None:
        return stopped_text(trial.result)
    if not trial.result.measured:
        return "dominated, latency predicted"
    return "" if trial.origin == SAMPLED else trial.origin


def targets_in(trials: Iterable[TrialRecord]) -> list[str]:
    """Names of all targets that trials have latencies on."""
    return list(dict.fromkeys(name for trial in trials for name in trial.result.latencies))


def latency_headers(targets: Sequence[str]) -> list[str]:
    """The header of each target's latencies with their confidence intervals; it names the target where there are several."""
    if len(targets) == 1:
        return ["latency, ms [95 % CI]"]
    return [f"{name}, ms [95 % CI]" for name in targets]


def latency_cells(trial: TrialRecord, targets: Sequence[str]) -> list[str]:
    """A trial's latency on each target, empty where it was not measured."""
    latencies = trial.result.latencies
    return [latency_text(latencies[name]) if name in latencies else "" for name in targets]


def front_table(title: str, trials: Sequence[TrialRecord], checked: Checked | None) -> Table:
    """The front of finished trials, with the probability that a member belongs there.

    Args:
        checked: how far scores are from accuracies; None if that is not known.
    """
    probability = front_probability(trials, checked)
    column = {probability_name(checked): lambda member: f"{probability[member.architecture.key]:.0%}"}
    return trial_table(title, front(trials), column)


def trial_table(
    title: str, trials: Sequence[TrialRecord], further_columns: Mapping[str, Callable[[TrialRecord], str]] | None = None
) -> Table:
    """Trials as rows: number, accuracy, latency on each target, cost and architecture.

    Args:
        further_columns: what they say about a trial, by header.
    """
    table = Table(title=title, title_justify="left")
    targets = targets_in(trials) or [""]
    columns = further_columns or {}
    for header in ("trial", metric_of(trials), *latency_headers(targets), *columns, "MACs"):
        table.add_column(escape(header), justify="right", no_wrap=True)
    table.add_column(NETWORK, overflow="fold")
    for trial in trials:
        note = note_text(trial)
        table.add_row(
            str(trial.number),
            accuracy_text(trial),
            *map(escape, latency_cells(trial, targets)),
            *(text(trial) for text in columns.values()),
            f"{trial.num_macs / 1e6:,.1f} M",
            describe(trial.architecture) + (f" [dim]({note})[/dim]" if note else ""),
        )
    return table

"""The front of a study: the networks that no other one dominates in accuracy and latency, and how sure their place is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from search.accuracy.checked import Checked
from search.accuracy.paired import draw_accuracies
from search.space.space import PATTERN
from search.study.pareto import front_indices, front_probabilities, hypervolume, mean_accuracy
from search.study.trial import SAMPLED, TrialRecord, metric_of

DRAWS = 1000  # of a Monte Carlo estimate: its own error is at most 0.016
BY_ACCURACY, BY_SCORE = "on the front", "on the front by score"


def latest_of_each(trials: Iterable[TrialRecord]) -> list[TrialRecord]:
    """One trial per network: the latest, which all its measurements have gone into, with the origin of the first."""
    latest: dict[str, TrialRecord] = {}
    for trial in trials:
        before = latest.get(trial.architecture.key, trial)
        is_baseline = trial.origin == SAMPLED and before.origin != SAMPLED
        latest[trial.architecture.key] = replace(trial, origin=before.origin) if is_baseline else trial
    return list(latest.values())


def evaluated(trials: Iterable[TrialRecord]) -> list[TrialRecord]:
    """Different networks that have an accuracy and keep the limits, measured or predicted."""
    return [trial for trial in latest_of_each(trials) if trial.result.feasible and trial.result.accuracy is not None]


def candidates(trials: Iterable[TrialRecord]) -> list[TrialRecord]:
    """What a front is made of: feasible networks, measured and with an accuracy."""
    return [trial for trial in evaluated(trials) if trial.result.measured]


def front(trials: Iterable[TrialRecord]) -> list[TrialRecord]:
    """Candidates that no other one dominates, by rising latency on the first target that is an objective."""
    compared = candidates(trials)
    indices = front_indices([trial.accuracy for trial in compared], [trial.result.latencies_ms for trial in compared])
    return [compared[index] for index in indices]


def front_probability(trials: Iterable[TrialRecord], checked: Checked | None) -> dict[str, float]:
    """How probable it is that no other candidate dominates each one, given the errors of all values; by network key.

    Args:
        checked: how far scores are from accuracies; without it the probability is that of being on the front by score.
    """
    compared = candidates(trials)
    rng = np.random.default_rng(0)
    scores = [[trial.result.accuracy] for trial in compared if trial.result.accuracy is not None]
    shares = front_probabilities(
        draw_accuracies(scores, 0.0 if checked is None else checked.score_error, DRAWS, rng),
        [trial.result.latencies_ms for trial in compared],
        [[latency.standard_error for latency in trial.result.objectives.values()] for trial in compared],
        rng,
    )
    return {trial.architecture.key: share for trial, share in zip(compared, shares, strict=True)}


def probability_name(checked: Checked | None) -> str:
    """What `front_probability` is the probability of, for people."""
    return BY_SCORE if checked is None else BY_ACCURACY


@dataclass(frozen=True)
class PatternGain:
    """How much more accurate than the LITv2 pattern a front is.

    Attributes:
        value: mean difference in accuracy, over latencies at equal ratios; at least zero, since the front contains the
            patterns that nothing dominates.
        metric: what counts as accuracy.
        low_ms, high_ms: the latencies, of the fastest and of the slowest pattern.
    """

    value: float
    metric: str
    low_ms: float
    high_ms: float

    def __str__(self) -> str:
        return (
            f"Within latencies of {self.low_ms:.3g} to {self.high_ms:.3g} ms, those of the LITv2 pattern, the best network "
            f"of the front has {self.value:.4f} more {self.metric} than the best pattern, in the mean over latencies; by "
            "values of the search, which favour what it chose"
        )


def gain_over_pattern(trials: Iterable[TrialRecord]) -> PatternGain | None:
    """Compare the front with the LITv2 pattern at all widths; None unless two widths of it were measured.

    Also None if several targets are objectives: what the pattern reaches is not a box of latencies then.
    """
    compared = candidates(trials)
    patterns = [trial for trial in compared if trial.origin.startswith(PATTERN)]
    if len(patterns) < 2 or len(patterns[0].result.latencies_ms) > 1:
        return None
    latencies = [trial.result.latencies_ms[0] for trial in patterns]
    low_ms, high_ms = min(latencies), max(latencies)
    if low_ms == high_ms:
        return None
    of_front, of_pattern = (
        mean_accuracy([t.accuracy for t in networks], [t.result.latencies_ms for t in networks], [low_ms], [high_ms])
        for networks in (compared, patterns)
    )
    return PatternGain(of_front - of_pattern, metric_of(compared), low_ms, high_ms)


def front_hypervolume(members: Sequence[TrialRecord], references_ms: float | Sequence[float]) -> float:
    """Share of the box up to the reference latencies that a front dominates."""
    return hypervolume(
        [member.accuracy for member in members], [member.result.latencies_ms for member in members], references_ms
    )

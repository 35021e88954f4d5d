"""Why a search is over, and how it can go on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import optuna

from search.space.space import Space
from search.study.convergence import HORIZON, Convergence
from search.study.search_time import seconds_of
from search.study.targets import references_ms, targets_of
from search.study.trial import TrialRecord, evaluated_trials, finished_by_time, is_finished, is_skipped, network_of


@dataclass(frozen=True)
class StoppingCriteria:
    """Limits of a search, each named as in the group study; None sets none."""

    n_trials: int
    timeout_minutes: float | None = None
    min_expected_gain: float | None = None


@dataclass(frozen=True)
class StopReason:
    """Why a search is over.

    Attributes:
        text: continues "study NAME".
        remedy: settings by which the same command goes on; empty where nothing is left.
    """

    text: str
    remedy: str = ""


def stop_reason(study: optuna.Study, space: Space, criteria: StoppingCriteria) -> StopReason | None:
    """Why the search of a study is over, by all criteria that hold; None if it is not."""
    if summary := used_up(study, space):
        return StopReason(f"is complete: {summary}; there is nothing left to search")
    reasons = criteria_reached(study, finished_by_time(study), criteria)
    if not reasons:
        return None
    return StopReason(" and ".join(each.text for each in reasons), " and ".join(each.remedy for each in reasons))


def criteria_reached(study: optuna.Study, trials: Sequence[TrialRecord], criteria: StoppingCriteria) -> list[StopReason]:
    """A reason for each criterion that holds. trials: the finished ones, in the order in which they were finished."""
    reasons = []
    if len(trials) >= criteria.n_trials:
        text = f"is complete: {len(trials)} of {criteria.n_trials} trials are finished"
        reasons.append(StopReason(text, f"study.n_trials above {criteria.n_trials}"))
    if criteria.min_expected_gain is not None and trials:
        convergence = Convergence.of(trials, references_ms(targets_of(study)), criteria.min_expected_gain)
        outlook = convergence.outlook()
        if outlook is not None and convergence.has_converged:
            text = (
                f"has converged after {len(trials)} trials: the next {HORIZON} networks are expected to add "
                f"{outlook.share:.1%} to what the search has gained, less than "
                f"study.min_expected_gain={criteria.min_expected_gain:g}"
            )
            reasons.append(StopReason(text, "study.min_expected_gain=null, or a smaller one"))
    if criteria.timeout_minutes is not None and seconds_of(study) >= 60 * criteria.timeout_minutes:
        text = f"has reached its time limit, study.timeout_minutes={criteria.timeout_minutes:g}"
        reasons.append(StopReason(text, f"study.timeout_minutes above {criteria.timeout_minutes:g}"))
    return reasons


def used_up(study: optuna.Study, space: Space) -> str:
    """How the networks of a space ended if trials have evaluated all of them; empty otherwise."""
    trials, size = evaluated_trials(study), space.num_architectures()
    if len({network_of(trial).key for trial in trials}) < size:
        return ""
    finished = {network_of(trial).key for trial in trials if is_finished(trial)}
    skipped = {network_of(trial).key for trial in trials if is_skipped(trial)} - finished
    num_failed = size - len(finished) - len(skipped)
    return (
        f"all {size:,} networks of the space are evaluated: "
        f"{len(finished):,} finished, {len(skipped):,} skipped, {num_failed:,} failed"
    )

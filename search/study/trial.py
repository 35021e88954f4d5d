"""The trials of a study as what they found: read from Optuna's, compared, and written to them.

A finished trial is one that is complete or that a latency budget ruled out; an interrupted or failed one does not count.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from models.architecture import Architecture
from search.accuracy.base import Accuracy
from search.latency.base import Latency
from search.space.space import Parameters
from search.study.evaluate import Budgeted, Outcome
from search.study.pareto import front_indices, front_probabilities, hypervolume

METRICS = ["accuracy", "latency_ms"]
INTERRUPTED = "interrupted"
SAMPLED = "sampled"  # origin of trials that the sampler proposed
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
SKIPPED = "skipped_at_ms"  # attribute of a skipped trial: the prediction that ruled it out


@dataclass(frozen=True)
class Finished:
    """A finished trial and what it found.

    predicted_ms: what the block model said of the first device before it was measured; predicted: of further devices.
    parameters: what the trial was asked.
    """

    number: int
    architecture: Architecture
    outcome: Outcome
    num_params: int
    num_macs: int
    origin: str
    predicted_ms: float | None = None
    parameters: Parameters = field(default_factory=dict)
    predicted: Mapping[str, float] = field(default_factory=dict)


def finished_trials(study: optuna.Study) -> list[Finished]:
    """All finished trials of a study, by number."""
    return [read(trial) for trial in study.get_trials(deepcopy=False, states=FINISHED) if is_judged(trial)]


def is_judged(trial: FrozenTrial) -> bool:
    """Whether a trial is a finished one, rather than skipped, failed or under way."""
    return trial.state in FINISHED and "latency" in trial.user_attrs


def count_skipped(study: optuna.Study) -> int:
    """Trials that the block model ended before they were measured."""
    return sum(SKIPPED in trial.user_attrs for trial in study.get_trials(deepcopy=False, states=(TrialState.PRUNED,)))


def latest_of_each(trials: Iterable[Finished]) -> list[Finished]:
    """One trial for each network: the latest, whose latency all its measurements have gone into, with its first origin."""
    latest: dict[str, Finished] = {}
    for trial in trials:
        before = latest.get(trial.architecture.key, trial)
        is_known = trial.origin == SAMPLED and before.origin != SAMPLED
        latest[trial.architecture.key] = replace(trial, origin=before.origin) if is_known else trial
    return list(latest.values())


def judged(trials: Iterable[Finished]) -> list[Finished]:
    """Different networks that have an accuracy and keep the budgets, measured or predicted."""
    return [t for t in latest_of_each(trials) if t.outcome.feasible and t.outcome.accuracy is not None]


def candidates(trials: Iterable[Finished]) -> list[Finished]:
    """What a front is made of: feasible networks, measured and with an accuracy."""
    return [t for t in judged(trials) if t.outcome.latency.measured]


def front(trials: Iterable[Finished]) -> list[Finished]:
    """Candidates that no other one dominates, by rising latency."""
    return not_dominated(candidates(trials))


def not_dominated(trials: Sequence[Finished]) -> list[Finished]:
    """Those of given trials, all with an accuracy, that no other of them dominates, by rising latency."""
    indices = front_indices([accuracy_of(t) for t in trials], [t.outcome.latencies_ms for t in trials])
    return [trials[i] for i in indices]


def front_probability(trials: list[Finished]) -> dict[str, float]:
    """Of each candidate, by its key: how probable it is that no other one dominates it, given the errors of all values."""
    compared = candidates(trials)
    shares = front_probabilities(
        [accuracy_of(t) for t in compared],
        [t.outcome.accuracy.standard_error for t in compared if t.outcome.accuracy is not None],
        [t.outcome.latencies_ms for t in compared],
        [[latency.standard_error for latency in t.outcome.objectives] for t in compared],
    )
    return {trial.architecture.key: share for trial, share in zip(compared, shares, strict=True)}


def accuracy_of(trial: Finished) -> float:
    assert trial.outcome.accuracy is not None
    return trial.outcome.accuracy.accuracy


def front_hypervolume(members: Sequence[Finished], reference_ms: float | Sequence[float]) -> float:
    """Share of the box up to the reference latencies that a front dominates."""
    return hypervolume([accuracy_of(t) for t in members], [t.outcome.latencies_ms for t in members], reference_ms)


def reference_latencies(study: optuna.Study) -> list[float]:
    """Up to which the hypervolume counts, in milliseconds, for each latency that is an objective."""
    return [study.user_attrs["reference_latency_ms"], *study.user_attrs.get("further_reference_latencies_ms", {}).values()]


def further_objectives(study: optuna.Study) -> list[str]:
    """Names of the devices beside the first one on which latency is to be low."""
    return list(study.user_attrs.get("further_reference_latencies_ms", {}))


def read(trial: FrozenTrial) -> Finished:
    """What a finished trial found."""
    attrs = trial.user_attrs
    outcome = Outcome(
        latency=Latency(**attrs["latency"]),
        accuracy=Accuracy(**attrs["accuracy"]) if "accuracy" in attrs else None,
        feasible=all(value <= 0 for value in trial.system_attrs.get("constraints", [0.0])),
        reused_accuracy=bool(attrs.get("reused_accuracy", False)),
        others={name: Latency(**latency) for name, latency in attrs.get("latencies", {}).items()},
        limited={name: Latency(**latency) for name, latency in attrs.get("limited_latencies", {}).items()},
    )
    return Finished(
        number=trial.number,
        architecture=Architecture.from_dict(attrs["architecture"]),
        outcome=outcome,
        num_params=attrs["parameters"],
        num_macs=attrs["multiply_accumulates"],
        origin=attrs.get("origin", SAMPLED),
        predicted_ms=attrs.get("predicted_latency_ms"),
        parameters=trial.params,
        predicted=attrs.get("predicted_latencies_ms", {}),
    )


def describe(result: Finished, devices: Mapping[str, Budgeted]) -> dict[str, Any]:
    """A trial's attributes: what the dashboard shows and `read` reads."""
    outcome = result.outcome
    described = {
        "status": status(outcome, devices),
        "architecture": result.architecture.to_dict(),
        "parameters": result.num_params,
        "multiply_accumulates": result.num_macs,
        "latency": outcome.latency.summary(),
        "predicted_latency_ms": result.predicted_ms,
    }
    further = {
        "latencies": {name: latency.summary() for name, latency in outcome.others.items()},
        "limited_latencies": {name: latency.summary() for name, latency in outcome.limited.items()},
        "predicted_latencies_ms": dict(result.predicted),
    }
    described |= {key: value for key, value in further.items() if value}
    if outcome.accuracy is not None:
        described["accuracy"] = outcome.accuracy.to_dict()
        described["accuracy_standard_error"] = outcome.accuracy.standard_error
        described["reused_accuracy"] = outcome.reused_accuracy
    return described


def status(outcome: Outcome, devices: Mapping[str, Budgeted]) -> str:
    """In words, how a trial ended."""
    first = next(iter(devices))
    for name, latency in {first: outcome.latency, **outcome.further}.items():
        if not devices[name].is_kept_by(latency):
            where = "" if name == first else f" on {name}"
            budget = devices[name].budget_ms
            return f"infeasible: latency {latency.latency_ms:.3g} ms{where} is over the budget of {budget:g} ms"
    if not outcome.latency.measured:
        return "dominated: not measured, its latency is the block model's prediction"
    return "same network as an earlier trial: its accuracy, latency refined" if outcome.reused_accuracy else "judged"

"""Results of trials (`TrialResult`), with their number and network (`TrialRecord`), read from and written to Optuna.

A finished trial is one that is complete or that a latency limit ruled out; an interrupted, failed or skipped one does not
count.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from models.architecture import Architecture
from search.accuracy.base import Accuracy, Metric, metric_name
from search.latency.base import Latency
from search.space.space import Parameters
from search.study.limits import Values
from search.study.targets import Role, Target

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
EXPECTED_GAIN = "expected_gain"  # attribute of a trial: in hypervolume, by the sampler that proposed it
SAMPLED = "sampled"  # origin of trials that the sampler proposed
INTERRUPTED = "interrupted"  # status of trials that a stopped search left open
STATUS, ORIGIN, LATENCIES = "status", "origin", "latencies"  # attributes of a trial
IMAGES = {"correct": "correct_images", "deviations": "image_deviations"}
"""System attributes of a trial, which the dashboard does not show, by the field of `Accuracy` that they hold."""
RUNGS = "accuracy_after_epochs"  # attribute of a trial whose training was compared before its end
STOPPED_SECONDS = "stopped_training_seconds"  # attribute of a trial whose training stopped early
SKIPPED = "skipped_at_ms"  # attribute of a skipped trial: the prediction that ruled it out
OVER_LIMITS = "over_limits"  # attribute of a skipped trial: the costs that are over their limits


@dataclass(frozen=True)
class TrialResult:
    """What a trial found.

    Attributes:
        latencies: by target; targets after one whose limit is exceeded are left out.
        accuracy: None if a limit ruled the network out before training, or its training stopped early.
        feasible: whether every limit is kept.
        roles: of the targets that are not objectives.
        reused_accuracy: whether the accuracy is that of an earlier trial of the same network.
        rungs: accuracies after some epochs, by their number, of a training that was compared there (halving.py).
        stopped_seconds: duration of a training that stopped early.
    """

    latencies: Mapping[str, Latency]
    accuracy: Accuracy | None
    feasible: bool
    roles: Mapping[str, Role] = field(default_factory=dict)
    reused_accuracy: bool = False
    rungs: Mapping[int, float] = field(default_factory=dict)
    stopped_seconds: float = 0.0

    @property
    def stopped_after(self) -> int | None:
        """Number of epochs of a training that stopped early; None if it did not."""
        return max(self.rungs) if self.rungs and self.accuracy is None else None

    @property
    def objectives(self) -> dict[str, Latency]:
        """The latencies that are minimised, by target."""
        return {name: latency for name, latency in self.latencies.items() if self.roles.get(name) is not Role.CONSTRAINT}

    @property
    def latencies_ms(self) -> list[float]:
        """The latencies that are minimised."""
        return [latency.latency_ms for latency in self.objectives.values()]

    @property
    def measured(self) -> bool:
        """Whether the latencies were measured, not predicted."""
        return all(latency.measured for latency in self.latencies.values())

    def without_samples(self) -> TrialResult:
        """The same with summaries alone: what a long search holds of thousands of trials."""
        return replace(self, latencies={name: latency.without_samples() for name, latency in self.latencies.items()})


@dataclass(frozen=True)
class TrialRecord:
    """A finished trial.

    Attributes:
        origin: name of the baseline that it evaluates, or `SAMPLED`.
        parameters: what the trial was asked.
        predicted_ms: what the block models predicted before anything was measured, by target.
        expected_gain: in hypervolume, by the sampler that proposed the network; None if it made no prediction.
    """

    number: int
    architecture: Architecture
    result: TrialResult
    num_params: int
    num_macs: int
    origin: str
    parameters: Parameters = field(default_factory=dict)
    predicted_ms: Mapping[str, float] = field(default_factory=dict)
    expected_gain: float | None = None

    @property
    def costs(self) -> Values:
        """Parameters and multiply-accumulates, by quantity."""
        return {"num_params": self.num_params, "num_macs": self.num_macs}

    @property
    def accuracy(self) -> float:
        """Accuracy of a trial that has one, in [0, 1]."""
        assert self.result.accuracy is not None
        return self.result.accuracy.accuracy


def metric_of(trials: Iterable[TrialRecord]) -> str:
    """The name of the metric that the accuracies of trials are values of."""
    metrics = (trial.result.accuracy.metric for trial in trials if trial.result.accuracy is not None)
    return metric_name(next(metrics, Metric.TOP1))


def finished_trials(study: optuna.Study) -> list[TrialRecord]:
    """All finished trials of a study, by number."""
    return [read(trial) for trial in _finished(study)]


def finished_by_time(study: optuna.Study) -> list[TrialRecord]:
    """All finished trials of a study, in the order in which they were finished."""
    return [read(trial) for trial in sorted(_finished(study), key=lambda trial: (trial.datetime_complete, trial.number))]


def _finished(study: optuna.Study) -> list[FrozenTrial]:
    return [trial for trial in study.get_trials(deepcopy=False, states=FINISHED) if is_finished(trial)]


def is_finished(trial: FrozenTrial) -> bool:
    """Whether a trial is finished, rather than skipped, failed or running."""
    return trial.state in FINISHED and LATENCIES in trial.user_attrs


def is_skipped(trial: FrozenTrial) -> bool:
    """Whether the block model or a limit ended a trial before anything was measured."""
    return trial.state == TrialState.PRUNED and not trial.user_attrs.keys().isdisjoint((SKIPPED, OVER_LIMITS))


def has_failed(trial: FrozenTrial) -> bool:
    """Whether the network of a trial failed. Interrupted trials did not, nor did those that have no network of the space."""
    attrs = trial.user_attrs
    return trial.state == TrialState.FAIL and "architecture" in attrs and attrs.get(STATUS) != INTERRUPTED


def ended_with_failure(trials: Sequence[FrozenTrial]) -> bool:
    """Whether the latest trial that finished or failed has failed."""
    return next((has_failed(trial) for trial in reversed(trials) if has_failed(trial) or is_finished(trial)), False)


def evaluated_trials(study: optuna.Study) -> list[FrozenTrial]:
    """The finished, skipped and failed trials of a study, by number."""
    trials = study.get_trials(deepcopy=False)
    return [trial for trial in trials if is_finished(trial) or is_skipped(trial) or has_failed(trial)]


def network_of(trial: FrozenTrial) -> Architecture:
    """The network of a finished, skipped or failed trial."""
    return Architecture.from_dict(trial.user_attrs["architecture"])


def is_unmeasured(trial: FrozenTrial) -> bool:
    """Whether a trial was skipped, or finished with predicted latencies."""
    latencies = trial.user_attrs.get(LATENCIES)
    if latencies is None:
        return SKIPPED in trial.user_attrs
    return all(latency["repetitions"] == 0 for latency in latencies.values())


def read(trial: FrozenTrial) -> TrialRecord:
    """A finished trial of Optuna's as a record: the inverse of `attributes`."""
    attrs = trial.user_attrs
    stored = {name: dict(latency) for name, latency in attrs[LATENCIES].items()}
    roles = {name: Role(latency.pop("role")) for name, latency in stored.items()}
    result = TrialResult(
        latencies={name: Latency.from_summary(latency) for name, latency in stored.items()},
        accuracy=Accuracy(**attrs["accuracy"], **_images(trial)) if "accuracy" in attrs else None,
        feasible=all(value <= 0 for value in trial.system_attrs.get("constraints", [0.0])),
        roles={name: role for name, role in roles.items() if role is not Role.OBJECTIVE},
        reused_accuracy=bool(attrs.get("reused_accuracy", False)),
        rungs={int(num_epochs): accuracy for num_epochs, accuracy in attrs.get(RUNGS, {}).items()},
        stopped_seconds=attrs.get(STOPPED_SECONDS, 0.0),
    )
    return TrialRecord(
        number=trial.number,
        architecture=Architecture.from_dict(attrs["architecture"]),
        result=result,
        num_params=attrs["parameters"],
        num_macs=attrs["multiply_accumulates"],
        origin=attrs.get(ORIGIN, SAMPLED),
        parameters=trial.params,
        predicted_ms=attrs["predicted_latencies_ms"],
        expected_gain=attrs.get(EXPECTED_GAIN),
    )


def _images(trial: FrozenTrial) -> dict[str, Any]:
    """Fields of `Accuracy` that hold single images."""
    return {name: trial.system_attrs[key] for name, key in IMAGES.items() if key in trial.system_attrs}


def attributes(record: TrialRecord, targets: Mapping[str, Target]) -> dict[str, Any]:
    """A finished trial's attributes: what the dashboard shows and `read` reads."""
    result = record.result
    described: dict[str, Any] = {
        STATUS: status(result, targets),
        "architecture": record.architecture.to_dict(),
        "parameters": record.num_params,
        "multiply_accumulates": record.num_macs,
        LATENCIES: {
            name: {**latency.summary(), "role": str(result.roles.get(name, Role.OBJECTIVE))}
            for name, latency in result.latencies.items()
        },
        "predicted_latencies_ms": dict(record.predicted_ms),
    }
    if result.rungs:
        described[RUNGS] = {str(num_epochs): accuracy for num_epochs, accuracy in result.rungs.items()}
    if result.stopped_after is not None:
        described[STOPPED_SECONDS] = result.stopped_seconds
    if result.accuracy is not None:
        described["accuracy"] = result.accuracy.summary()
        described["accuracy_standard_error"] = result.accuracy.standard_error
        described["reused_accuracy"] = result.reused_accuracy
    return described


def hidden_attributes(record: TrialRecord) -> dict[str, Any]:
    """A finished trial's system attributes: what `read` reads and the dashboard does not show."""
    accuracy = record.result.accuracy
    if accuracy is None:
        return {}
    return {key: value for name, key in IMAGES.items() if (value := getattr(accuracy, name)) is not None}


def constraint_values(latencies_ms: Mapping[str, float], targets: Mapping[str, Target]) -> list[float]:
    """Latency minus budget of each target with a budget, in ms. Optuna's convention: feasible if none is above 0.

    Args:
        latencies_ms: what each target compares with its budget.

    0 for a target that was not measured, because an earlier one exceeds its limit: samplers compare lists of equal length.
    """
    return [
        latencies_ms[name] - target.limit_ms if name in latencies_ms else 0.0
        for name, target in targets.items()
        if target.limit_ms is not None
    ]


def status(result: TrialResult, targets: Mapping[str, Target]) -> str:
    """How a trial ended, in words."""
    for name, latency in result.latencies.items():
        if excess := targets[name].excess(latency, on(name, targets)):
            return f"infeasible: {excess}"
    if result.stopped_after is not None:
        return f"stopped early: {stopped_text(result)}"
    if not result.measured:
        return "dominated: not measured, its latency is the block model's prediction"
    return "same network as an earlier trial: its accuracy, latency refined" if result.reused_accuracy else "evaluated"


def stopped_text(result: TrialResult) -> str:
    """When the training of a network was stopped, in words."""
    assert result.stopped_after is not None
    epochs = "1 epoch" if result.stopped_after == 1 else f"{result.stopped_after} epochs"
    return f"accuracy {result.rungs[result.stopped_after]:.4f} after {epochs}, dominated by other networks there"


def on(name: str, targets: Mapping[str, Any]) -> str:
    """Which target a message is about, where there are several."""
    return f" on {name}" if len(targets) > 1 else ""

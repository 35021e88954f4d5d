"""How one trial is judged: read this first.

The coordinator (study.py) asks Optuna for a trial, whose parameters become an architecture (space.py). Here its latency is
measured on every device; if that breaks a budget the trial ends, infeasible and untrained; otherwise it gets its accuracy,
by training unless the same network was trained before. An evaluator that is as quick as a measurement goes first, and what
is then probably dominated is not measured. The coordinator has the work done by an engine, many trials at a time where it
can, writes the outcome to the trial and tells Optuna.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from models.architecture import Architecture
from search.accuracy.base import Accuracy
from search.engine.work import Measure, Train, Work
from search.latency.base import Calibration, Latency
from search.latency.block_model import Prediction

DOMINATED = 0.75  # confidence that leaves a network unmeasured: with 0.99 twice as many are measured, for the same front


@dataclass(frozen=True)
class Budgeted:
    """A device as a search sees it. budget_ms: latency above which a network is not worth training, or None.

    is_objective: whether latency on it is to be low, or has to keep the budget alone.
    """

    calibration: Calibration
    budget_ms: float | None = None
    is_objective: bool = True

    def is_kept_by(self, latency: Latency) -> bool:
        return self.budget_ms is None or latency.latency_ms <= self.budget_ms


@dataclass(frozen=True)
class Outcome:
    """What is known of a network. accuracy is None if a latency budget ruled it out before training.

    latency: on the first device. others: on further devices that are objectives; limited: on those that only have a budget.
    Devices after one whose budget is broken are left out.
    """

    latency: Latency
    accuracy: Accuracy | None
    feasible: bool
    reused_accuracy: bool = False
    others: Mapping[str, Latency] = field(default_factory=dict)
    limited: Mapping[str, Latency] = field(default_factory=dict)

    @property
    def further(self) -> dict[str, Latency]:
        """On every device beside the first, by name."""
        return {**self.others, **self.limited}

    def without_samples(self) -> Outcome:
        """The same with summaries alone: what a long search keeps of thousands of trials."""
        others = {name: latency.without_samples() for name, latency in self.others.items()}
        limited = {name: latency.without_samples() for name, latency in self.limited.items()}
        return replace(self, latency=self.latency.without_samples(), others=others, limited=limited)

    @property
    def objectives(self) -> list[Latency]:
        """Latencies that are to be low."""
        return [self.latency, *self.others.values()]

    @property
    def latencies_ms(self) -> list[float]:
        return [latency.latency_ms for latency in self.objectives]


@dataclass(frozen=True)
class Context:
    """What a study knows when a network comes up.

    known: what an earlier trial of the same network found. predictions: the block models' word on its latency on each
    device, empty without any. front: the networks that nothing dominates so far.
    """

    known: Outcome | None = None
    predictions: Mapping[str, Prediction] = field(default_factory=dict)
    front: Sequence[Outcome] = ()

    def dominates(self, accuracy: Accuracy, objectives: Sequence[str]) -> bool:
        """Whether a network of this accuracy is probably slower on all than one of the front that is no less accurate."""
        if any(name not in self.predictions for name in objectives):
            return False
        expected = [self.predictions[name] for name in objectives]
        better = [one for one in self.front if one.accuracy is not None and one.accuracy.accuracy >= accuracy.accuracy]
        return any(
            all(device.above(ms, DOMINATED) for device, ms in zip(expected, one.latencies_ms, strict=True)) for one in better
        )


@dataclass(frozen=True)
class Step:
    """Something to have done for a trial, and what to call it meanwhile."""

    text: str
    work: Work


Judgement = Generator[Step, Any, Outcome]
"""Gives a step, takes its result, and so on; returns the outcome."""


@dataclass(frozen=True)
class Objective:
    """How a candidate is judged.

    devices: by name, the first one first. seed: of trainings. accuracy_first: it takes no longer than a measurement.
    """

    devices: Mapping[str, Budgeted]
    seed: int
    accuracy_first: bool = False

    @property
    def first(self) -> str:
        """Name of the first device."""
        return next(iter(self.devices))

    @property
    def objectives(self) -> list[str]:
        """Devices on which latency is to be low."""
        return [name for name, device in self.devices.items() if device.is_objective]

    def judge(self, architecture: Architecture, context: Context) -> Judgement:
        """Judge a network, step by step. There is no default result."""
        known = context.known
        accuracy = known.accuracy if known is not None else None
        reused = accuracy is not None
        if accuracy is None and self.accuracy_first:
            accuracy = yield self._train(architecture)
            if known is None and context.dominates(accuracy, self.objectives):
                said = {name: one.latency() for name, one in context.predictions.items() if one.error is not None}
                return self._outcome(said, accuracy, reused)
        latencies: dict[str, Latency] = {}
        before = {} if known is None else {self.first: known.latency, **known.further}
        for name, device in self.devices.items():
            latency: Latency = yield Step(self._measuring(name), Measure(name, architecture, device.calibration))
            if name in before and before[name].measured:
                latency = before[name].refined_by(latency)
            latencies[name] = latency
            if not device.is_kept_by(latency):
                break
        outcome = self._outcome(latencies, accuracy, reused)
        if accuracy is None and outcome.feasible:
            accuracy = yield self._train(architecture)
            outcome = self._outcome(latencies, accuracy, reused)
        return outcome

    def _outcome(self, latencies: Mapping[str, Latency], accuracy: Accuracy | None, reused: bool) -> Outcome:
        first, *rest = latencies
        return Outcome(
            latencies[first],
            accuracy,
            all(self.devices[name].is_kept_by(latency) for name, latency in latencies.items()),
            reused,
            {name: latencies[name] for name in rest if self.devices[name].is_objective},
            {name: latencies[name] for name in rest if not self.devices[name].is_objective},
        )

    def _measuring(self, device: str) -> str:
        return "measuring" if len(self.devices) == 1 else f"measuring on {device}"

    def _train(self, architecture: Architecture) -> Step:
        return Step("scoring" if self.accuracy_first else "training", Train(architecture, self.seed))


def constraint_values(outcome: Outcome, devices: Mapping[str, Budgeted]) -> list[float]:
    """Of each device with a budget, in milliseconds. Optuna's convention: a trial is feasible if all are at most 0.

    0 for a device that was not measured, as the budget of one before it is broken: samplers compare lists of equal length.
    """
    first, *_ = devices
    found = {first: outcome.latency, **outcome.further}
    return [
        found[name].latency_ms - device.budget_ms if name in found else 0.0
        for name, device in devices.items()
        if device.budget_ms is not None
    ]

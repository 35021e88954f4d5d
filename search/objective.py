"""How one trial is judged: read this first.

The coordinator (study.py) asks Optuna for a trial, whose parameters become an architecture (space.py). Here its latency is
measured on the target; if that breaks the budget the trial ends, infeasible and untrained; otherwise it gets its accuracy,
by training unless the same network was trained before. An evaluator that is as quick as a measurement goes first, and what
is then probably dominated is not measured. The coordinator writes the outcome to the trial and tells Optuna.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from models.architecture import Architecture
from search.accuracy.base import Accuracy
from search.engine.base import Engine
from search.latency.base import Calibration, Latency
from search.latency.block_model import Prediction

DOMINATED = 0.75  # confidence that leaves a network unmeasured: with 0.99 twice as many are measured, for the same front


@dataclass(frozen=True)
class Outcome:
    """What is known of a network. accuracy is None if the latency budget ruled it out before training."""

    latency: Latency
    accuracy: Accuracy | None
    feasible: bool
    reused_accuracy: bool = False


@dataclass(frozen=True)
class Context:
    """What a study knows when a network comes up.

    known: what an earlier trial of the same network found. prediction: the block model's word on its latency. front: the
    networks that nothing dominates so far.
    """

    known: Outcome | None = None
    prediction: Prediction | None = None
    front: Sequence[Outcome] = ()

    def dominates(self, accuracy: Accuracy) -> bool:
        """Whether a network of this accuracy is probably slower than one of the front that is no less accurate."""
        if self.prediction is None:
            return False
        better = [one for one in self.front if one.accuracy is not None and one.accuracy.accuracy >= accuracy.accuracy]
        return any(self.prediction.above(one.latency.latency_ms, DOMINATED) for one in better)


class Reporter(Protocol):
    """Hears what a trial is doing."""

    def phase(self, text: str, share: float | None = None) -> None: ...


@dataclass(frozen=True)
class Objective:
    """How a candidate is judged.

    budget_ms: latency above which a network is not worth training, or None. accuracy_first: it takes no longer than a
    measurement.
    """

    engine: Engine
    calibration: Calibration
    budget_ms: float | None
    seed: int
    accuracy_first: bool = False

    def evaluate(self, architecture: Architecture, context: Context, reporter: Reporter) -> Outcome:
        """Judge a network. Raises: whatever building, measuring or training raised. There is no default result."""
        known = context.known
        accuracy = known.accuracy if known is not None else None
        reused = accuracy is not None
        if accuracy is None and self.accuracy_first:
            accuracy = self._train(architecture, reporter)
            if known is None and context.dominates(accuracy):
                assert context.prediction is not None
                latency = context.prediction.latency()
                return Outcome(latency, accuracy, self._keeps_budget(latency))
        latency = self._measure(architecture, reporter)
        if known is not None and known.latency.measured:
            latency = known.latency.refined_by(latency)
        feasible = self._keeps_budget(latency)
        if accuracy is None and feasible:
            accuracy = self._train(architecture, reporter)
        return Outcome(latency, accuracy, feasible, reused)

    def _measure(self, architecture: Architecture, reporter: Reporter) -> Latency:
        reporter.phase("measuring")
        return self.engine.measure(architecture, self.calibration)

    def _train(self, architecture: Architecture, reporter: Reporter) -> Accuracy:
        text = "scoring" if self.accuracy_first else "training"
        reporter.phase(text, 0.0)
        return self.engine.train(architecture, self.seed, lambda share: reporter.phase(text, share))

    def _keeps_budget(self, latency: Latency) -> bool:
        return self.budget_ms is None or latency.latency_ms <= self.budget_ms


def constraint_value(outcome: Outcome, budget_ms: float) -> float:
    """Optuna's convention: a trial is feasible if this is at most 0. In milliseconds."""
    return outcome.latency.latency_ms - budget_ms

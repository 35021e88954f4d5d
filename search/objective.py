"""How one trial is judged: read this first.

The coordinator (study.py) asks Optuna for a trial, whose parameters become an architecture (space.py). Here its latency is
measured on the target; if that breaks the budget the trial ends, infeasible and untrained; otherwise it gets its accuracy,
by training unless the same network was trained before. The coordinator writes the outcome to the trial and tells Optuna.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from models.architecture import Architecture
from search.accuracy.base import Accuracy
from search.engine.base import Engine
from search.latency.base import Calibration, Latency


@dataclass(frozen=True)
class Outcome:
    """What is known of a network. accuracy is None if the latency budget ruled it out before training."""

    latency: Latency
    accuracy: Accuracy | None
    feasible: bool
    reused_accuracy: bool = False


class Reporter(Protocol):
    """Hears what a trial is doing."""

    def phase(self, text: str, share: float | None = None) -> None: ...


@dataclass(frozen=True)
class Objective:
    """How a candidate is judged. budget_ms: latency above which a network is not worth training, or None."""

    engine: Engine
    calibration: Calibration
    budget_ms: float | None
    seed: int

    def evaluate(self, architecture: Architecture, known: Outcome | None, reporter: Reporter) -> Outcome:
        """Judge a network.

        known: what an earlier trial of the same network found; its latency is refined, its accuracy reused.

        Raises: whatever building, measuring or training raised. There is no default result.
        """
        reporter.phase("measuring")
        latency = self.engine.measure(architecture, self.calibration)
        if known is not None:
            latency = known.latency.refined_by(latency)
        feasible = self.budget_ms is None or latency.latency_ms <= self.budget_ms
        if known is not None and known.accuracy is not None:
            return Outcome(latency, known.accuracy, feasible, reused_accuracy=True)
        if not feasible:
            return Outcome(latency, None, feasible)
        reporter.phase("training", 0.0)
        accuracy = self.engine.train(architecture, self.seed, lambda share: reporter.phase("training", share))
        return Outcome(latency, accuracy, feasible)


def constraint_value(outcome: Outcome, budget_ms: float) -> float:
    """Optuna's convention: a trial is feasible if this is at most 0. In milliseconds."""
    return outcome.latency.latency_ms - budget_ms

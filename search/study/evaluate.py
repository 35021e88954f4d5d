"""How one trial is evaluated: read this first.

The coordinator (coordinator.py) asks Optuna for a trial, whose parameters become an architecture (search/space). Here it
is evaluated: a network that surely exceeds a limit is ruled out by prediction (known.py); an evaluator that is as quick
as a measurement scores it first, and what is then probably dominated is not measured; its latency is measured on every
target, until one exceeds its limit; what keeps all limits gets its accuracy, by training unless the same network was
trained before. An engine (search/engine) measures and trains, here or elsewhere; the coordinator writes the result to the
study.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from models.architecture import Architecture
from search.accuracy.base import Accuracy
from search.engine.base import Engine
from search.latency.base import Latency
from search.study.known import Known, RuledOut
from search.study.targets import Role, Target, objectives
from search.study.trial import TrialResult, on

Report = Callable[[str, float], None]
"""Takes what a trial is doing, and the share of it that is done, in [0, 1]."""


@dataclass(frozen=True)
class Rules:
    """How candidates are evaluated.

    Attributes:
        seed: of trainings.
        scores_before_measuring: whether the evaluator takes no longer than a measurement, and so goes first.
    """

    seed: int
    scores_before_measuring: bool = False


async def evaluate(
    architecture: Architecture,
    known: Known,
    engine: Engine,
    targets: Mapping[str, Target],
    rules: Rules,
    report: Report = lambda text, share: None,
) -> TrialResult | RuledOut:
    """Evaluate one network.

    Raises:
        Exception: whatever building, measuring or training it raises; there is no default result.
    """
    if (ruled_out := known.ruled_out(targets)) is not None:
        return ruled_out

    async def train(text: str) -> Accuracy:
        report(text, 0.0)
        return await engine.train(architecture, rules.seed, partial(report, text))

    accuracy = known.accuracy
    if accuracy is None and rules.scores_before_measuring:
        accuracy = await train("scoring")
        if known.dominates(accuracy, objectives(targets)):
            predicted = {name: p.latency() for name, p in known.predictions.items() if p.error is not None}
            return _result(predicted, accuracy, targets)

    latencies: dict[str, Latency] = {}
    for name, target in targets.items():
        report(f"measuring{on(name, targets)}", 0.0)
        latency = await engine.measure(name, architecture, target.calibration)
        latencies[name] = _combined(name, latency, known)
        if not target.keeps_limit(latencies[name]):
            break

    if accuracy is None and _is_feasible(latencies, targets):
        accuracy = await train("training")
    return _result(latencies, accuracy, targets, reused_accuracy=known.accuracy is not None)


def _combined(name: str, latency: Latency, known: Known) -> Latency:
    """A measurement together with that of an earlier trial of the same network."""
    before = None if known.result is None else known.result.latencies.get(name)
    return latency if before is None or not before.measured else before.refined_by(latency)


def _is_feasible(latencies: Mapping[str, Latency], targets: Mapping[str, Target]) -> bool:
    return all(targets[name].keeps_limit(latency) for name, latency in latencies.items())


def _result(
    latencies: Mapping[str, Latency], accuracy: Accuracy | None, targets: Mapping[str, Target], reused_accuracy: bool = False
) -> TrialResult:
    roles = {name: Role.CONSTRAINT for name in latencies if not targets[name].is_objective}
    return TrialResult(latencies, accuracy, _is_feasible(latencies, targets), roles, reused_accuracy)

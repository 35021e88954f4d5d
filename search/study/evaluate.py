"""How one trial is evaluated: read this first.

The coordinator (coordinator.py) asks Optuna for a trial, whose parameters become an architecture (search/space). Here it
is evaluated:

1. A network that is over a limit of parameters or multiply-accumulates, or is predicted to exceed a latency limit, is
   ruled out (known.py, limits.py).
2. If the accuracy evaluator (search/accuracy) is no slower than a measurement, the network is scored first; if it is then
   probably dominated, its latency is not measured.
3. Latency, file and memory are measured on each target, until one exceeds its limit.
4. If all limits are kept, the network is trained, unless it has an accuracy already. With halving (halving.py) its training
   stops early if other networks dominate it by then.

An engine (search/engine) measures and trains, here or elsewhere; the coordinator writes the result to the study.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from models.architecture import Architecture
from search.accuracy.base import Accuracy
from search.engine.base import Engine
from search.latency.base import Latency
from search.study.halving import Halving
from search.study.known import Known, OverLimits, RuledOut
from search.study.limits import Limits
from search.study.targets import Role, Target, objectives
from search.study.trial import TrialResult, on

Report = Callable[[str, float], None]
"""Takes what a trial is doing, and the share of it that is done, in [0, 1]."""


@dataclass(frozen=True)
class Rules:
    """How candidates are evaluated.

    Attributes:
        seed: of every training.
        scores_before_measuring: whether the evaluator takes no longer than a measurement, and so goes first.
        limits: those of parameters and multiply-accumulates.
        halving: compares trainings before their end; None to train all to the end.
    """

    seed: int
    scores_before_measuring: bool = False
    limits: Limits = field(default_factory=dict)
    halving: Halving | None = None


async def evaluate(
    architecture: Architecture,
    known: Known,
    engine: Engine,
    targets: Mapping[str, Target],
    rules: Rules,
    report: Report = lambda text, share: None,
) -> TrialResult | RuledOut | OverLimits:
    """Evaluate one network.

    Raises:
        Exception: whatever building, measuring or training it raises; there is no default result.
    """
    if (over := known.over_limits(rules.limits)) is not None:
        return over
    if (ruled_out := known.ruled_out(targets)) is not None:
        return ruled_out

    async def get_accuracy(text: str, num_epochs: int | None = None) -> Accuracy:
        report(text, 0.0)
        return await engine.train(architecture, rules.seed, partial(report, text), num_epochs)

    accuracy = known.accuracy
    if accuracy is None and rules.scores_before_measuring:
        accuracy = await get_accuracy("scoring")
        if known.probably_dominates(accuracy, objectives(targets)):
            predicted = {name: p.latency() for name, p in known.predictions.items() if p.error is not None}
            return _result(predicted, accuracy, targets)

    latencies: dict[str, Latency] = {}
    for name, target in targets.items():
        report(f"measuring{on(name, targets)}", 0.0)
        latency = await engine.measure(name, architecture, target.calibration)
        latencies[name] = _combined(name, latency, known)
        if not target.keeps_limit(latencies[name]):
            break

    rungs: dict[int, float] = {}
    if accuracy is None and _is_feasible(latencies, targets):
        if rules.halving is not None:
            compared_ms = [latencies[name].latency_ms for name in objectives(targets)]
            for num_epochs in rules.halving.rungs:
                early = await get_accuracy("training", num_epochs)
                rungs[num_epochs] = early.accuracy
                rules.halving.add(num_epochs, architecture.key, early.accuracy, compared_ms)
                if not known.is_baseline and not rules.halving.should_continue(num_epochs, architecture.key):
                    return replace(_result(latencies, None, targets), rungs=rungs, stopped_seconds=early.seconds)
        accuracy = await get_accuracy("training")
    return replace(_result(latencies, accuracy, targets, reused_accuracy=known.accuracy is not None), rungs=rungs)


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

"""What a study knows of a network before it is evaluated, and what follows without measuring or training it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from search.accuracy.base import Accuracy
from search.latency.block_model import CONFIDENCE, Prediction
from search.study.limits import Limits, Values, describe, exceeded, setting
from search.study.targets import Target
from search.study.trial import TrialResult

DOMINATED = 0.75  # confidence that leaves a network unmeasured: with 0.99 twice as many are measured, for the same front


@dataclass(frozen=True)
class RuledOut:
    """A network that surely exceeds a target's limit: neither measured nor trained."""

    target: str
    prediction: Prediction


@dataclass(frozen=True)
class OverLimits:
    """A network over limits that follow from its architecture: neither measured nor trained.

    Attributes:
        costs: of the network, by quantity.
        names: the quantities that are over their limits.
    """

    costs: Values
    names: Sequence[str]

    def describe(self, limits: Limits) -> str:
        """What is over which limit, in words."""
        return ", ".join(f"{describe(name, self.costs[name])}, over {setting(name, limits[name])}" for name in self.names)


@dataclass(frozen=True)
class Known:
    """What a study knows when the turn of a network comes.

    Attributes:
        result: of an earlier trial of the same network.
        predictions: its latencies by the block models, by target; empty if nothing may be ruled out by prediction.
        front: results that no other one dominates so far.
        costs: parameters and multiply-accumulates, by quantity.
        is_baseline: whether the space knows it; comparisons need its accuracy, so its training does not stop early.
    """

    result: TrialResult | None = None
    predictions: Mapping[str, Prediction] = field(default_factory=dict)
    front: Sequence[TrialResult] = ()
    costs: Values = field(default_factory=dict)
    is_baseline: bool = False

    @property
    def accuracy(self) -> Accuracy | None:
        return None if self.result is None else self.result.accuracy

    def over_limits(self, limits: Limits) -> OverLimits | None:
        """The limits of parameters and multiply-accumulates that the network exceeds; None if it keeps all."""
        names = exceeded(self.costs, limits)
        return OverLimits(self.costs, names) if names else None

    def ruled_out(self, targets: Mapping[str, Target]) -> RuledOut | None:
        """The first target whose limit a new network surely exceeds by prediction."""
        if self.result is not None:
            return None
        for name, target in targets.items():
            prediction = self.predictions.get(name)
            if prediction is not None and target.limit_ms is not None and prediction.above(target.limit_ms, CONFIDENCE):
                return RuledOut(name, prediction)
        return None

    def probably_dominates(self, accuracy: Accuracy, objectives: Sequence[str]) -> bool:
        """Whether a network of the front is no less accurate than a new one of this accuracy, and probably faster.

        "Faster" is by the predictions, on every target that is an objective.
        """
        if self.result is not None or any(name not in self.predictions for name in objectives):
            return False
        rivals = [
            member for member in self.front if member.accuracy is not None and member.accuracy.accuracy >= accuracy.accuracy
        ]
        return any(
            all(self.predictions[name].above(rival.latencies[name].latency_ms, DOMINATED) for name in objectives)
            for rival in rivals
        )

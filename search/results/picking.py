"""Rules that pick networks of a front to deploy, and comparison of a network with the LITv2 pattern."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from search import UserError
from search.latency.estimate import Estimate
from search.results.significance import surely_more_accurate
from search.space.space import PATTERN
from search.study.front import latest_of_each
from search.study.targets import FIRST, BudgetOn
from search.study.trial import TrialRecord, on

NUMBER = r"(?P<limit>(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e-?[0-9]+)?)"
LATENCY = re.compile(rf"latency(?:\.(?P<target>[\w-]+))?\s*<=\s*{NUMBER}\s*(?:ms)?")
ACCURACY = re.compile(rf"accuracy\s*>=\s*{NUMBER}")
RULES = 'front (all networks), distinct, knee, "latency<=5ms", "latency.NAME<=5ms" for a further target, or "accuracy>=0.93"'


def pick(members: Sequence[TrialRecord], rule: str, budget_on: Mapping[str, BudgetOn] | None = None) -> list[TrialRecord]:
    """Select networks of a front.

    Args:
        members: the front, by rising latency.
        rule: "front" for all, "distinct" for those whose accuracies differ by more than their errors, "knee" for the network
            farthest above the line between the ends, a limit of the latency for the most accurate network that keeps it, or
            of the accuracy for the fastest one that reaches it. `latency` is that on the target that latency.* configures,
            `latency.NAME` that on another one.
        budget_on: what of a latency is compared with a limit, by target; by default the estimate.

    Raises:
        UserError: if the rule is none of these, or no network satisfies it.
    """
    if rule == "front":
        return list(members)
    if rule == "distinct":
        return distinct(members)
    if rule == "knee":
        return [knee(members)]
    if (limit := LATENCY.fullmatch(rule.strip())) is not None:
        target = limit["target"] or FIRST
        return [_most_accurate(members, rule, target, float(limit["limit"]), compared_on(target, budget_on))]
    if (limit := ACCURACY.fullmatch(rule.strip())) is not None:
        return [_fastest(members, rule, float(limit["limit"]))]
    raise UserError(f"pick={rule} is an invalid rule; choose {RULES}")


def distinct(members: Sequence[TrialRecord]) -> list[TrialRecord]:
    """The fastest network, then each that is surely more accurate, at 95 %, than the one taken before it."""
    taken = [members[0]]
    for member in members[1:]:
        if surely_more_accurate(member, taken[-1]):
            taken.append(member)
    return taken


def compared_on(target: str, budget_on: Mapping[str, BudgetOn] | None) -> BudgetOn:
    """What of a latency on a target is compared with a limit."""
    return BudgetOn.ESTIMATE if budget_on is None else budget_on.get(target, BudgetOn.ESTIMATE)


def compared_text(rule: str, budget_on: Mapping[str, BudgetOn]) -> str:
    """What a rule about latency compares, in words; empty for other rules."""
    if (limit := LATENCY.fullmatch(rule.strip())) is None:
        return ""
    is_upper = compared_on(limit["target"] or FIRST, budget_on) is BudgetOn.UPPER
    return f" by {'the upper end of the 95 % confidence interval' if is_upper else 'the estimate'} of the latency"


def _most_accurate(
    members: Sequence[TrialRecord], rule: str, target: str, limit_ms: float, budget_on: BudgetOn
) -> TrialRecord:
    """The most accurate network whose latency on a target keeps a limit."""
    names = members[0].result.latencies
    if target not in names:
        raise UserError(f"pick={rule}: the study has no latency target {target}; its targets are {', '.join(names)}")
    within = [member for member in members if budget_on.ms(member.result.latencies[target]) <= limit_ms]
    if not within:
        fastest = min((member.result.latencies[target] for member in members), key=budget_on.ms)
        raise UserError(
            f"pick={rule}: the fastest network of the front takes {budget_on.describe(fastest)}; raise it or continue the "
            "search"
        )
    return max(within, key=lambda member: member.accuracy)


def _fastest(members: Sequence[TrialRecord], rule: str, limit: float) -> TrialRecord:
    """The fastest network whose accuracy reaches a limit."""
    reaching = [member for member in members if member.accuracy >= limit]
    if not reaching:
        best = max(member.accuracy for member in members)
        raise UserError(
            f"pick={rule}: the most accurate network of the front reaches {best:.4f}; lower the limit or continue the search"
        )
    return reaching[0]


def knee(members: Sequence[TrialRecord]) -> TrialRecord:
    """The network farthest above the straight line between the fastest and the most accurate one, all axes scaled.

    With several targets that are objectives, latency is the mean over them.
    """
    accuracies = _scaled([member.accuracy for member in members])
    axes = [_scaled(latencies) for latencies in zip(*(member.result.latencies_ms for member in members), strict=True)]
    above = [accuracy - statistics.fmean(latencies) for accuracy, *latencies in zip(accuracies, *axes, strict=True)]
    return members[above.index(max(above))]


def _scaled(values: Sequence[float]) -> list[float]:
    """Scale values to 0 for the lowest and 1 for the highest."""
    low, width = min(values), max(values) - min(values) or 1.0
    return [(value - low) / width for value in values]


@dataclass(frozen=True)
class Comparison:
    """A network beside the LITv2 pattern.

    Attributes:
        speedups: ratios of the pattern's latency to the network's, by target; shown with their 95 % confidence intervals.
    """

    member: TrialRecord
    pattern: TrialRecord
    speedups: Mapping[str, Estimate]

    @property
    def gain(self) -> float:
        """Difference in accuracy."""
        return self.member.accuracy - self.pattern.accuracy

    def __str__(self) -> str:
        pattern = f"the LITv2 pattern at width {self.pattern.architecture.embed_dim} (trial {self.pattern.number})"
        times = " and ".join(f"{speedup} times as fast{on(name, self.speedups)}" for name, speedup in self.speedups.items())
        return (
            f"trial {self.member.number}: {self._values(self.member)}; {pattern}: {self._values(self.pattern)}, "
            f"so {times} at {self.gain:+.4f}"
        )

    def _values(self, trial: TrialRecord) -> str:
        latencies = (f"{trial.result.latencies[name].latency_ms:.3f} ms{on(name, self.speedups)}" for name in self.speedups)
        return f"{trial.accuracy:.4f} in {' and '.join(latencies)}"


def compare(member: TrialRecord, trials: Sequence[TrialRecord]) -> Comparison | None:
    """Compare a network with the LITv2 pattern, at the width nearest to its own; None if no pattern was measured."""
    patterns = [
        trial
        for trial in latest_of_each(trials)
        if trial.origin.startswith(PATTERN) and trial.result.accuracy is not None and trial.result.measured
    ]
    if not patterns:
        return None
    width = member.architecture.embed_dim
    pattern = min(patterns, key=lambda trial: abs(math.log(trial.architecture.embed_dim / width)))
    latencies = pattern.result.latencies
    speedups = {
        name: latencies[name].estimate.over(latency.estimate)
        for name, latency in member.result.latencies.items()
        if name in latencies
    }
    return Comparison(member, pattern, speedups)

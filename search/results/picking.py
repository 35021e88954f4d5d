"""Which networks of a front to deploy, and how they compare with the authors' pattern."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from search import UserError
from search.space.space import PATTERN
from search.study.front import latest_of_each
from search.study.targets import FIRST
from search.study.trial import TrialRecord

LIMIT = re.compile(r"(latency(?:\.[\w-]+)?|accuracy)\s*(<=|>=)\s*((?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e-?[0-9]+)?)\s*(ms)?")
RULES = 'front (all of it), knee, "latency<=5ms" or "accuracy>=0.93"'


def pick(members: Sequence[TrialRecord], rule: str) -> list[TrialRecord]:
    """Some of a front, given by rising latency.

    rule: "front" for all, "knee" for the one farthest above the line between the ends, a latency that the most accurate one
    must keep to, or an accuracy that the fastest one must reach. latency is that of the first device, latency.NAME that of a
    further one.
    Raises: UserError if the rule is none of these, or no member satisfies it.
    """
    if rule == "front":
        return list(members)
    if rule == "knee":
        return [knee(members)]
    found = LIMIT.fullmatch(rule.strip())
    if found is None or (found[1] == "accuracy") != (found[2] == ">=") or (found[1] == "accuracy" and found[4]):
        raise UserError(f"pick={rule} is no rule; choose {RULES}")
    limit = float(found[3])
    if found[1] != "accuracy":
        device = found[1].partition(".")[2]
        latencies = [latency_ms(one, device, rule) for one in members]
        kept = [one for one, latency in zip(members, latencies, strict=True) if latency <= limit]
        if not kept:
            fastest = min(latencies)
            raise UserError(f"pick={rule}: the fastest of the front takes {fastest:.3g} ms; raise the limit or search on")
        return [max(kept, key=lambda one: one.accuracy)]
    reached = [one for one in members if one.accuracy >= limit]
    if not reached:
        best = max(one.accuracy for one in members)
        raise UserError(f"pick={rule}: the most accurate of the front reaches {best:.4f}; lower the limit or search on")
    return [reached[0]]


def latency_ms(member: TrialRecord, device: str, rule: str) -> float:
    """device: a name, or nothing for the first one. Raises: UserError if there is none of this name."""
    if not device:
        return member.result.latencies[FIRST].latency_ms
    further = member.result.latencies
    if device not in further:
        raise UserError(f"pick={rule}: there is no further device {device}; there are {', '.join(further) or 'none'}")
    return further[device].latency_ms


def knee(members: Sequence[TrialRecord]) -> TrialRecord:
    """The member farthest above the straight line between the fastest and the most accurate one, all axes scaled.

    With several devices latency is the mean over them.
    """
    accuracies = scaled([one.accuracy for one in members])
    devices = [scaled(latencies) for latencies in zip(*(one.result.latencies_ms for one in members), strict=True)]
    above = [accuracy - statistics.fmean(along) for accuracy, *along in zip(accuracies, *devices, strict=True)]
    return members[above.index(max(above))]


def scaled(values: Sequence[float]) -> list[float]:
    """To 0 for the lowest and 1 for the highest."""
    low, width = min(values), max(values) - min(values) or 1.0
    return [(value - low) / width for value in values]


@dataclass(frozen=True)
class Comparison:
    """A network beside the authors' pattern. speedup: how many times as fast it is; low, high: its 95 % interval."""

    member: TrialRecord
    pattern: TrialRecord
    speedup: float
    low: float
    high: float

    @property
    def gain(self) -> float:
        """In accuracy."""
        return self.member.accuracy - self.pattern.accuracy

    @property
    def times(self) -> str:
        return f"{self.speedup:.2f} [{self.low:.2f}, {self.high:.2f}]"

    def __str__(self) -> str:
        own, other = (
            f"{one.accuracy:.4f} in {one.result.latencies[FIRST].latency_ms:.3f} ms" for one in (self.member, self.pattern)
        )
        theirs = f"the LITv2 pattern at width {self.pattern.architecture.embed_dim} (trial {self.pattern.number})"
        return f"trial {self.member.number}: {own}; {theirs}: {other}, so {self.times} times as fast at {self.gain:+.4f}"


def compare(member: TrialRecord, trials: list[TrialRecord]) -> Comparison | None:
    """How a network compares with the authors' pattern, at the width nearest to its own; None if none was measured."""
    patterns = [one for one in latest_of_each(trials) if one.origin.startswith(PATTERN) and one.result.accuracy is not None]
    patterns = [one for one in patterns if one.result.latencies[FIRST].measured]
    if not patterns:
        return None
    width = member.architecture.embed_dim
    pattern = min(patterns, key=lambda one: abs(math.log(one.architecture.embed_dim / width)))
    ours, theirs = member.result.latencies[FIRST], pattern.result.latencies[FIRST]
    ratio, half = theirs.latency_ms / ours.latency_ms, math.hypot(ours.half_width, theirs.half_width)
    return Comparison(member, pattern, ratio, ratio / math.exp(half), ratio * math.exp(half))

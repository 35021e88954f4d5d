"""What follows from the figures of `search.check`: whether a search can rely on its scores, as far as they decide it.

A limit is kept or missed only if the whole interval is on one side of it. Where one is not, the check is undecided, and the
number of networks that would decide is estimated: the width of an interval shrinks with one over its square root.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from search.accuracy.bootstrap import Statistic
from search.accuracy.ranking import SignalQuality

MIN_SIGNAL_TO_NOISE = 3.0
MIN_TAU = 0.6
MAX_MORE_NETWORKS = 1000  # more are not a practical advice


class Answer(StrEnum):
    """Whether accuracies are meaningful."""

    MEANINGFUL = "meaningful"
    NOT_MEANINGFUL = "not meaningful"
    UNDECIDED = "undecided"


@dataclass(frozen=True)
class Criterion:
    """A statistic and the limit that it has to exceed.

    Args:
        subject: What the statistic is, in words.
        statistic: Its value and interval.
        limit: What it has to exceed.
        form: Format of its numbers.
        problem: What is wrong if it does not.
        remedy: What to do then.
    """

    subject: str
    statistic: Statistic
    limit: float
    form: str
    problem: str
    remedy: str

    @property
    def answer(self) -> Answer:
        """What the interval says."""
        if self.statistic.low > self.limit:
            return Answer.MEANINGFUL
        return Answer.NOT_MEANINGFUL if self.statistic.high < self.limit else Answer.UNDECIDED

    @property
    def is_against(self) -> bool:
        """Whether the value itself misses the limit."""
        return self.statistic.value <= self.limit

    def networks_needed(self, count: int) -> float:
        """Estimate with how many networks, instead of `count`, the interval would no longer contain the limit."""
        value = self.statistic.value
        distance = abs(value - self.limit)
        half_width = self.statistic.high - value if self.is_against else value - self.statistic.low
        ratio = half_width / distance if distance else math.inf
        return count * ratio**2 if math.isfinite(ratio) else math.inf

    def __str__(self) -> str:
        limit = f"{self.limit:g}" if self.limit else "0"
        return f"{self.subject} is {self.statistic.text(self.form)}, and more than {limit} is needed"


@dataclass(frozen=True)
class Verdict:
    """The answer of a check.

    Args:
        num_networks: Number of networks that it is based on.
        criteria: All that has to hold.
    """

    num_networks: int
    criteria: tuple[Criterion, ...]

    @property
    def answer(self) -> Answer:
        """Not meaningful if any limit is missed, meaningful if all are kept."""
        answers = {criterion.answer for criterion in self.criteria}
        for answer in (Answer.NOT_MEANINGFUL, Answer.UNDECIDED):
            if answer in answers:
                return answer
        return Answer.MEANINGFUL

    @property
    def more_networks(self) -> int | None:
        """Number of further networks that would decide, if the values stay as they are; None for over 1,000."""
        undecided = [criterion for criterion in self.criteria if criterion.answer is Answer.UNDECIDED]
        if self.answer is not Answer.UNDECIDED:
            return 0
        against = [criterion.networks_needed(self.num_networks) for criterion in undecided if criterion.is_against]
        needed = min(against) if against else max(c.networks_needed(self.num_networks) for c in undecided)
        more = needed - self.num_networks
        return max(1, math.ceil(more)) if more <= MAX_MORE_NETWORKS else None

    def reasons(self) -> list[str]:
        """Return one message per limit that is missed or, if none is, that is undecided: what is wrong and what to do."""
        if self.answer is Answer.UNDECIDED:
            return [str(criterion) for criterion in self.criteria if criterion.answer is Answer.UNDECIDED]
        missed = [criterion for criterion in self.criteria if criterion.answer is Answer.NOT_MEANINGFUL]
        return [f"{criterion.problem} ({criterion}): {criterion.remedy}" for criterion in missed]


def verdict(quality: SignalQuality) -> Verdict:
    """Compare the figures of a check with what a search needs."""
    better = "choose more train.max_epochs, or a space in which different networks cost the same"
    criteria = (
        Criterion(
            "the signal-to-noise ratio",
            quality.signal_to_noise,
            MIN_SIGNAL_TO_NOISE,
            ".1f",
            "accuracies differ little more between networks than between seeds",
            "widen the space (width changes accuracy most), choose harder data, or train longer",
        ),
        Criterion(
            "Kendall's tau of the scores",
            quality.evaluator,
            MIN_TAU,
            ".2f",
            "the evaluator does not rank networks as long trainings do",
            "choose accuracy=supernet if you have not, a larger data.val_size, or more train.max_epochs",
        ),
        Criterion(
            "the tau of the scores minus that of multiply-accumulates",
            quality.over_macs,
            0.0,
            "+.2f",
            "multiply-accumulates rank networks better than the evaluator",
            better,
        ),
        Criterion(
            "the tau of the scores minus that of the number of parameters",
            quality.over_params,
            0.0,
            "+.2f",
            "the number of parameters ranks networks better than the evaluator",
            better,
        ),
    )
    return Verdict(quality.num_networks, criteria)

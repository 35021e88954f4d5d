"""Drift of a target: how the anchor's time changed since it was calibrated, at the start of the study.

The anchor is timed again with every network, and each trial stores its time over the calibrated one as `slowdown`. That
makes a running calibration: of a board that throttles after some minutes it tells by how much. Slowdowns cancel in the
ratios between networks, which are what a search compares. Milliseconds are those of the start: times `sustained` they are
those of the device at work.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from search.study.trial import TrialRecord, on

RECENT = 9  # latest measurements that tell how fast the target is now: their median ignores a few that were disturbed
NOTEWORTHY = 0.1  # relative


@dataclass(frozen=True)
class Drift:
    """The anchor's time on a target over its calibrated time.

    Attributes:
        sustained: median over all measurements of a study.
        recent: median over the latest.
    """

    sustained: float
    recent: float

    @property
    def is_noteworthy(self) -> bool:
        return is_noteworthy(self.sustained) or is_noteworthy(self.recent)


def is_noteworthy(slowdown: float) -> bool:
    """Whether the anchor is so much slower or faster than when it was calibrated that people should know."""
    return abs(slowdown - 1) > NOTEWORTHY


def drifts(trials: Sequence[TrialRecord]) -> dict[str, Drift]:
    """The drift of each target that was measured on."""
    slowdowns: dict[str, list[float]] = {}
    for trial in trials:
        for name, latency in trial.result.latencies.items():
            if latency.measured:
                slowdowns.setdefault(name, []).append(latency.slowdown)
    return {
        name: Drift(statistics.median(values), statistics.median(values[-RECENT:])) for name, values in slowdowns.items()
    }


def recent_slowdown(trials: Sequence[TrialRecord], target: str) -> float | None:
    """The median of the latest measurements on a target; None before there are enough."""
    measured = (
        trial.result.latencies[target].slowdown
        for trial in reversed(trials)
        if target in trial.result.latencies and trial.result.latencies[target].measured
    )
    values = list(islice(measured, RECENT))
    return statistics.median(values) if len(values) == RECENT else None


def drift_notes(trials: Sequence[TrialRecord]) -> list[str]:
    """What to know about milliseconds on the targets that are noticeably slower or faster than when they were calibrated."""
    by_target = drifts(trials)
    return [
        f"the anchor took {drift.sustained:.2f} times its calibrated latency{on(name, by_target)} over the study "
        f"({drift.recent:.2f} times at last): milliseconds are those of the start, multiply them by {drift.sustained:.2f} "
        "under sustained load; ratios between networks hold"
        for name, drift in by_target.items()
        if drift.is_noteworthy
    ]

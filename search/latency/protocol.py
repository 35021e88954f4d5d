"""The only timing loop: candidate and anchor run alternately, and the median of their ratios is the result.

A machine's speed drifts by a tenth within seconds and other processes come and go; both hit a candidate and the anchor that
runs right beside it alike, where they would go straight into a mean of wall times. `python -m benchmarks.latency_fidelity`
compares the two on your machine.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from search.latency.base import NORMAL_95

WARMUP_SECONDS = 0.2
MIN_WARMUP_RUNS = 3
CHECK_EVERY = 10  # pairs between looks at the interval
MIN_PAIRS = 20  # before the interval may end a measurement
LEAST_PAIRS = 6  # whatever the time limit: the range of fewer values holds their median in less than 95 % of cases

Run = Callable[[], object]
Clock = Callable[[], float]


@dataclass(frozen=True)
class Interval:
    """A median and its 95 % interval."""

    median: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Relative to the median."""
        return (self.high - self.low) / 2 / self.median


@dataclass(frozen=True)
class Samples:
    """What a timing loop saw, times in seconds."""

    values: tuple[float, ...]
    interval: Interval
    warmup_runs: int
    converged: bool
    seconds: float


def median_interval(values: list[float] | tuple[float, ...]) -> Interval:
    """Median with its distribution-free 95 % interval: order statistics at n/2 -+ 1.96 sqrt(n)/2."""
    ordered = sorted(values)
    reach = NORMAL_95 * math.sqrt(len(ordered)) / 2
    low = max(0, math.floor(len(ordered) / 2 - reach) - 1)
    high = min(len(ordered) - 1, math.ceil(len(ordered) / 2 + reach))
    return Interval(statistics.median(ordered), ordered[low], ordered[high])


def time_alone(run: Run, seconds: float, clock: Clock = time.perf_counter) -> Samples:
    """Times of `run` for so many seconds: the anchor's calibration."""
    start = clock()
    warmup = _warm_up(run, clock)
    values: list[float] = []
    with _no_garbage_collection():
        while clock() - start < seconds or len(values) < MIN_PAIRS:
            values.append(_time(run, 1, clock))
    return Samples(tuple(values), median_interval(values), len(warmup), True, clock() - start)


def time_ratio(
    candidate: Run, anchor: Run, tolerance: float, max_seconds: float, clock: Clock = time.perf_counter
) -> Samples:
    """Ratios of the candidate's time to the anchor's, until their median's interval is within -+ tolerance or time is up.

    Each pair is a candidate run and an anchor run of its own, in alternating order so that a steady drift cancels; pairs
    share nothing, or the interval would be too narrow. The quicker of the two repeats within a pair, so that both look at
    the machine for about as long and an interruption hits both as often.
    """
    start = clock()
    warmups = _warm_up(candidate, clock), _warm_up(anchor, clock)
    quotient = min(warmups[0]) / min(warmups[1])
    candidate_runs, anchor_runs = max(1, round(1 / quotient)), max(1, round(quotient))
    values: list[float] = []
    converged = False
    with _no_garbage_collection():
        while not converged:
            if len(values) % 2:
                reference = _time(anchor, anchor_runs, clock)
                values.append(_time(candidate, candidate_runs, clock) / reference)
            else:
                values.append(_time(candidate, candidate_runs, clock) / _time(anchor, anchor_runs, clock))
            if len(values) >= MIN_PAIRS and len(values) % CHECK_EVERY == 0:
                converged = median_interval(values).half_width <= tolerance
            if clock() - start >= max_seconds and len(values) >= LEAST_PAIRS:
                break
    warmup_runs = sum(map(len, warmups))
    return Samples(tuple(values), median_interval(values), warmup_runs, converged, clock() - start)


def _time(run: Run, repeats: int, clock: Clock) -> float:
    """Seconds a run, over so many in a row."""
    start = clock()
    for _ in range(repeats):
        run()
    return (clock() - start) / repeats


def _warm_up(run: Run, clock: Clock) -> list[float]:
    """Run until the caches are warm. Returns the times."""
    start = clock()
    times: list[float] = []
    while len(times) < MIN_WARMUP_RUNS or clock() - start < WARMUP_SECONDS:
        times.append(_time(run, 1, clock))
    return times


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()

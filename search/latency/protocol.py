"""The only timing loop: candidate and anchor run in turn, and the median of their ratios is the result.

A machine's speed drifts by a tenth within seconds and jumps by half when a neighbour wakes. Both hit a candidate and the
anchor runs right before and after it alike, where they would go straight into a mean of wall times. Timing goes in rounds of
a fifth of a second, each with another copy of the network and a heap shuffled anew: where weights and activations happen to
lie in memory moves a small network's time by several percent, for as long as they lie there. Left alone, a tenth of 24
networks differed by 3.6 % or more between two passes of an idle machine, shuffled by 1.4 %. How much the rounds differ says
how far another measurement may fall from this one.

Candidate and anchor always take one run each, even where one is much quicker. Two runs in a row find their weights still in
the cache, a gain that a busy neighbour takes away: with 2:1 the ratios of small networks spread by 1.4 to 4 % and moved by 1
to 6 % under load, with 1:1 by 0.5 to 1.3 % and 0.1 to 1 %. So a latency here is that of a network that is not alone.
`python -m benchmarks.latency_fidelity` puts it to the test on your machine.
"""

from __future__ import annotations

import gc
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from search.latency.base import REPEAT, Round

ROUND_SECONDS = 0.2
MIN_ROUNDS = 8  # before the interval may end a measurement: the spread of fewer is a guess
LEAST_ROUNDS = 4  # whatever the time limit
# Relative standard error that no number of rounds brings down. With 0.005 an interval held another pass's latency in 80 % of
# cases (benchmarks.latency_fidelity, 128 of them), with 0.009 in 99 % (144).
SYSTEMATIC = 0.008
STEADY = 0.05  # copies are warm when two stretches differ by less
STRETCH_SECONDS = 0.05
MAX_WARMUP_SECONDS = 1.0
# The kernel takes off a virtual machine's processor time what its host took, perhaps late and from a run that lost nothing.
LEAST_SECONDS = 1e-9
NUM_BLOCKS = 300
BLOCK_FLOATS = (16, 64, 256, 1024, 2048, 4096, 8192, 16384)  # up to what the activations of small networks take
OUTLIER_DEVIATIONS = 5.0  # robust standard deviations from the median

Block = TypeVar("Block")
Run = Callable[[], object]
Clock = Callable[[], float]


@dataclass(frozen=True)
class Interval:
    """A median and the 95 % interval in which the median of another measurement falls."""

    median: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Relative."""
        return math.log(self.high / self.low) / 2


@dataclass(frozen=True)
class Timer:
    """How runs are timed. work: runs once and gives the seconds it took; clock: the time that passes.

    On one thread `work` is the processor time of this process, which does not count while others have the core.
    scatter: called before each round and its result held through it, so that what runs allocate lies elsewhere each time.
    """

    work: Callable[[Run], float]
    clock: Clock = time.perf_counter
    scatter: Callable[[], object] = lambda: None


def timer_on(num_threads: int, scatter: Callable[[], object]) -> Timer:
    """Processor time on one thread, where it is the latency less the time that others had the core; else wall time."""
    return Timer(timed_by(time.process_time if num_threads == 1 else time.perf_counter), scatter=scatter)


def scattered(allocate: Callable[[int], Block]) -> list[Block]:
    """Blocks of random sizes, half of them freed again: what is allocated next takes other places than last time.

    allocate: gives room for so many float32 numbers.
    """
    sizes = [random.choice(BLOCK_FLOATS) + 16 * random.randrange(64) for _ in range(NUM_BLOCKS)]
    blocks = [allocate(size) for size in sizes]
    return [block for block in blocks if random.random() < 0.5]


def timed_by(clock: Clock) -> Callable[[Run], float]:
    """Seconds of a run by a clock."""

    def work(run: Run) -> float:
        start = clock()
        run()
        return max(clock() - start, LEAST_SECONDS)

    return work


@dataclass
class Series:
    """The rounds of one network so far."""

    rounds: list[Round] = field(default_factory=list)
    warmup_runs: int = 0
    seconds: float = 0.0
    converged: bool = False

    @property
    def ratios(self) -> list[float]:
        return [ratio for one in self.rounds for ratio in one.ratios]

    @property
    def interval(self) -> Interval:
        """Of the ratio to the anchor."""
        return repeat_interval([one.ratios for one in self.rounds])

    @property
    def outliers(self) -> int:
        return count_outliers(self.ratios)


def repeat_interval(rounds: Sequence[Sequence[float]]) -> Interval:
    """Median of all values, and where the median of another measurement falls in 95 % of cases.

    Its standard error comes from how the medians of the rounds differ, so that it holds for values that come in waves.
    """
    centre = statistics.median(value for one in rounds for value in one)
    logs = [math.log(statistics.median(one)) for one in rounds]
    variance = statistics.variance(logs) / len(logs) + SYSTEMATIC**2
    reach = math.exp(student(0.975, len(logs) - 1) * REPEAT * math.sqrt(variance))
    return Interval(centre, centre / reach, centre * reach)


def student(confidence: float, freedom: int) -> float:
    """One-sided quantile of Student's t (expansion 26.7.5 of Abramowitz and Stegun; 97.5 % within 1 % from 4 degrees on)."""
    z = statistics.NormalDist().inv_cdf(confidence)
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return float(z + first / freedom + second / freedom**2 + third / freedom**3)


LEAST_HALF_WIDTH = student(0.975, MIN_ROUNDS - 1) * REPEAT * SYSTEMATIC
"""Of an interval after the fewest rounds that may end a measurement, were they all alike; relative."""


def count_outliers(values: Sequence[float]) -> int:
    """Values far off the rest, by the median absolute deviation."""
    centre = statistics.median(values)
    deviation = 1.4826 * statistics.median(abs(value - centre) for value in values)
    return sum(abs(value - centre) > OUTLIER_DEVIATIONS * deviation for value in values)


def time_alone(copies: Sequence[Run], between: Sequence[Run], seconds: float, timer: Timer) -> list[list[float]]:
    """Times of a network's copies, run in turn for so many seconds: the anchor's calibration. In seconds, by round.

    between: what runs untimed before each, so that a single copy does not find its caches warm as it never will again.
    """
    warm_up(copies, timer)
    rounds: list[list[float]] = []
    start = timer.clock()
    with no_garbage_collection():
        while len(rounds) < LEAST_ROUNDS or timer.clock() - start < seconds:
            begin = timer.clock()
            times: list[float] = []
            while not times or timer.clock() - begin < ROUND_SECONDS:
                for copy in copies:
                    for other in between:
                        other()
                    times.append(timer.work(copy))
            rounds.append(times)
    return rounds


def time_ratios(
    networks: Sequence[Sequence[Run]], anchors: Sequence[Run], tolerance: float, max_seconds: float, timer: Timer
) -> list[Series]:
    """Times of each network beside the anchor's, until each one's interval is within -+ tolerance or its time is up.

    networks: copies of each; anchors: copies of the anchor. Rounds take the networks, their copies and the anchor's in
    turn, so that all see the same machine.
    """
    runs = warm_up(anchors, timer)
    series = [Series(warmup_runs=runs + warm_up(copies, timer)) for copies in networks]
    turn = 0
    with no_garbage_collection():
        while waiting := [i for i, one in enumerate(series) if not _is_done(one, tolerance, max_seconds)]:
            for i in waiting:
                begin = timer.clock()
                copies = networks[i]
                series[i].rounds.append(_one_round(copies[turn % len(copies)], anchors[turn % len(anchors)], timer))
                series[i].seconds += timer.clock() - begin
            turn += 1
    return series


def _is_done(one: Series, tolerance: float, max_seconds: float) -> bool:
    """Enough is known, or the next round would be over the time limit."""
    if len(one.rounds) >= MIN_ROUNDS:
        one.converged = one.interval.half_width <= tolerance
    time_is_up = len(one.rounds) >= LEAST_ROUNDS and one.seconds * (1 + 1 / len(one.rounds)) >= max_seconds
    return one.converged or time_is_up


def _one_round(run: Run, anchor: Run, timer: Timer) -> Round:
    """Candidate and anchor in turn, the anchor first and last."""
    held = timer.scatter()
    run(), anchor()  # other copies than in the last round
    begin = timer.clock()
    anchor_ms = [timer.work(anchor) * 1e3]
    candidate_ms: list[float] = []
    while not candidate_ms or timer.clock() - begin < ROUND_SECONDS:
        candidate_ms.append(timer.work(run) * 1e3)
        anchor_ms.append(timer.work(anchor) * 1e3)
    del held
    return Round(tuple(candidate_ms), tuple(anchor_ms))


def warm_up(copies: Sequence[Run], timer: Timer) -> int:
    """Run all copies in turn until two stretches in a row take the same time, within a limit. Returns how many runs."""
    start = timer.clock()
    medians: list[float] = []
    runs = 0
    while not medians or timer.clock() - start < MAX_WARMUP_SECONDS:
        begin = timer.clock()
        times: list[float] = []
        while not times or timer.clock() - begin < STRETCH_SECONDS:
            times += [timer.work(copy) for copy in copies]
        runs += len(times)
        medians.append(statistics.median(times))
        if len(medians) > 1 and abs(medians[-1] / medians[-2] - 1) < STEADY:
            break
    return runs


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()

"""The timing protocol: candidate and anchor run in turn, and the result is the median of their ratios.

This is the only timing loop of the project. It also runs on devices that are reached over ssh, so this module and what it
imports need nothing but the standard library.

A machine's speed drifts by a tenth within seconds and jumps by half when another process wakes up. Both affect a candidate
and the anchor runs just before and after it alike, whereas they would go straight into a mean of wall times. Timing proceeds
in rounds of a fifth of a second, each with another copy of the network and a reshuffled heap: where weights and activations
happen to lie in memory changes the time of a small network by several percent for as long as they stay there. Without
reshuffling, a tenth of 24 networks differed by 3.6 % or more between two passes on an idle machine, with it by 1.4 %. The
differences between rounds give the standard error, together with what rounds cannot tell of (repeatability.py).

Candidate and anchor always take one run each, even if one is much faster. The second of two runs in a row finds its weights
still in the cache, an advantage that a busy neighbour takes away: with 2:1 the ratios of small networks spread by 1.4 to 4 %
and moved by 1 to 6 % under load, with 1:1 by 0.5 to 1.3 % and 0.1 to 1 %. A latency here is therefore that of a network that
shares its caches. `python -m benchmarks.latency_fidelity` checks all of this on your machine.
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

from search.latency.estimate import Estimate
from search.latency.repeatability import ASSUMED, LEAST_DEVIATION, Repeatability
from search.latency.rounds import Round

ROUND_SECONDS = 0.2
MIN_ROUNDS = 8  # before the interval may end a measurement: the spread of fewer rounds is a guess
LEAST_ROUNDS = 4  # even beyond the time limit
STEADY = 0.05  # copies are warm when the medians of two stretches differ by less, relative
STRETCH_SECONDS = 0.05
MAX_WARMUP_SECONDS = 1.0
# A virtual machine's kernel subtracts the time that its host took, perhaps late and from a run that lost nothing.
LEAST_SECONDS = 1e-9
NUM_BLOCKS = 300
BLOCK_FLOATS = (16, 64, 256, 1024, 2048, 4096, 8192, 16384)  # up to the size of a small network's activations
OUTLIER_DEVIATIONS = 5.0  # robust standard deviations from the median

Block = TypeVar("Block")
Run = Callable[[], object]
"""One inference of a network that is ready to run."""
Clock = Callable[[], float]


@dataclass(frozen=True)
class Timer:
    """The clocks of a measurement.

    Attributes:
        time_run: Runs a network once and returns the seconds it took. On one thread these are processor time of this
            process, which does not pass while other processes hold the core.
        clock: The time that passes, in seconds.
        scatter: Called before each round; its result is kept until the round ends, so that memory which runs allocate
            lies elsewhere each time.
    """

    time_run: Callable[[Run], float]
    clock: Clock = time.perf_counter
    scatter: Callable[[], object] = lambda: None


def timer_on(num_threads: int, scatter: Callable[[], object]) -> Timer:
    """Return a timer of processor time for one thread, and of wall time for more.

    On one thread processor time is the latency without the time during which other processes held the core.
    """
    return Timer(timed_by(time.process_time if num_threads == 1 else time.perf_counter), scatter=scatter)


def scatter_heap(allocate: Callable[[int], Block]) -> list[Block]:
    """Allocate blocks of random sizes and free half of them, so that the next allocations go to new addresses.

    Args:
        allocate: Returns room for the given number of float32 values.

    Returns:
        The blocks that stay allocated; keep them through the round.
    """
    sizes = [random.choice(BLOCK_FLOATS) + 16 * random.randrange(64) for _ in range(NUM_BLOCKS)]
    blocks = [allocate(size) for size in sizes]
    return [block for block in blocks if random.random() < 0.5]


def timed_by(clock: Clock) -> Callable[[Run], float]:
    """Return a function that times one run by a clock, in seconds."""

    def time_run(run: Run) -> float:
        start = clock()
        run()
        return max(clock() - start, LEAST_SECONDS)

    return time_run


@dataclass
class Series:
    """The rounds of one network so far.

    Attributes:
        rounds: Times of the candidate and the anchor.
        warmup_runs: Number of runs before the first round.
        seconds: Time spent in rounds.
        converged: True if the confidence interval got as narrow as requested.
        repeatability: Of the target.
    """

    rounds: list[Round] = field(default_factory=list)
    warmup_runs: int = 0
    seconds: float = 0.0
    converged: bool = False
    repeatability: Repeatability = ASSUMED

    @property
    def ratios(self) -> list[float]:
        """Ratios of the candidate to the anchor, of all rounds."""
        return [ratio for round_ in self.rounds for ratio in round_.ratios]

    @property
    def estimate(self) -> Estimate:
        """Median ratio to the anchor with its error."""
        return self.within.widened(self.repeatability.deviation, self.repeatability.degrees_of_freedom)

    @property
    def within(self) -> Estimate:
        """The same with the error that the differences between rounds tell of, alone."""
        return median_of_rounds([round_.ratios for round_ in self.rounds])

    @property
    def outliers(self) -> int:
        """Number of ratios far off the others."""
        return count_outliers(self.ratios)


def median_of_rounds(rounds: Sequence[Sequence[float]]) -> Estimate:
    """Return the median of all values, with a standard error from the differences between the medians of rounds.

    It holds for values that come in waves, where one from single values would be too small.

    Args:
        rounds: Values by round; at least two rounds, none empty.
    """
    centre = statistics.median(value for values in rounds for value in values)
    variance = statistics.variance(math.log(statistics.median(values)) for values in rounds) / len(rounds)
    return Estimate(centre, max(math.sqrt(variance), LEAST_DEVIATION), len(rounds) - 1.0)


def count_outliers(values: Sequence[float]) -> int:
    """Count values far off the rest, by the median absolute deviation."""
    centre = statistics.median(values)
    deviation = 1.4826 * statistics.median(abs(value - centre) for value in values)
    return sum(abs(value - centre) > OUTLIER_DEVIATIONS * deviation for value in values)


def time_alone(copies: Sequence[Run], between: Sequence[Run], seconds: float, timer: Timer) -> list[list[float]]:
    """Time a network by itself, for the anchor's calibration.

    Args:
        copies: Copies of the network, which run in turn.
        between: Runs without timing before each copy, so that a single copy does not find its caches warmer than later.
        seconds: Minimum duration.
        timer: The clocks.

    Returns:
        Times in seconds, by round.
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
                    times.append(timer.time_run(copy))
            rounds.append(times)
    return rounds


def time_ratios(
    networks: Sequence[Sequence[Run]],
    anchors: Sequence[Run],
    tolerance: float,
    max_seconds: float,
    timer: Timer,
    repeatability: Repeatability = ASSUMED,
) -> list[Series]:
    """Time networks beside the anchor until each confidence interval is narrow enough or the network's time is up.

    Rounds take the networks, their copies and the anchor's copies in turn, so that all see the same machine.

    Args:
        networks: Copies of each network.
        anchors: Copies of the anchor.
        tolerance: Relative half-width of the 95 % confidence interval at which to stop.
        max_seconds: Time limit for each network.
        timer: The clocks.
        repeatability: Of the target.

    Returns:
        The rounds of each network, in the order of networks.
    """
    anchor_runs = warm_up(anchors, timer)
    all_series = [
        Series(warmup_runs=anchor_runs + warm_up(copies, timer), repeatability=repeatability) for copies in networks
    ]
    turn = 0
    with no_garbage_collection():
        while waiting := [i for i, series in enumerate(all_series) if not _is_done(series, tolerance, max_seconds)]:
            for i in waiting:
                begin = timer.clock()
                copies = networks[i]
                round_ = _time_round(copies[turn % len(copies)], anchors[turn % len(anchors)], timer)
                all_series[i].rounds.append(round_)
                all_series[i].seconds += timer.clock() - begin
            turn += 1
    return all_series


def _is_done(series: Series, tolerance: float, max_seconds: float) -> bool:
    """True if the interval is narrow enough, or the next round would exceed the time limit."""
    if len(series.rounds) >= MIN_ROUNDS:
        series.converged = series.estimate.half_width <= tolerance
    time_is_up = len(series.rounds) >= LEAST_ROUNDS and series.seconds * (1 + 1 / len(series.rounds)) >= max_seconds
    return series.converged or time_is_up


def _time_round(run: Run, anchor: Run, timer: Timer) -> Round:
    """Time candidate and anchor in turn; the anchor comes first and last."""
    blocks = timer.scatter()
    run(), anchor()  # other copies than in the last round
    begin = timer.clock()
    anchor_ms = [timer.time_run(anchor) * 1e3]
    candidate_ms: list[float] = []
    while not candidate_ms or timer.clock() - begin < ROUND_SECONDS:
        candidate_ms.append(timer.time_run(run) * 1e3)
        anchor_ms.append(timer.time_run(anchor) * 1e3)
    del blocks
    return Round(tuple(candidate_ms), tuple(anchor_ms))


def warm_up(copies: Sequence[Run], timer: Timer) -> int:
    """Run all copies in turn until two consecutive stretches take about the same time, or for MAX_WARMUP_SECONDS.

    Returns:
        The number of runs.
    """
    start = timer.clock()
    medians: list[float] = []
    runs = 0
    while not medians or timer.clock() - start < MAX_WARMUP_SECONDS:
        begin = timer.clock()
        times: list[float] = []
        while not times or timer.clock() - begin < STRETCH_SECONDS:
            times += [timer.time_run(copy) for copy in copies]
        runs += len(times)
        medians.append(statistics.median(times))
        if len(medians) > 1 and abs(medians[-1] / medians[-2] - 1) < STEADY:
            break
    return runs


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Collect garbage now, and not again inside the block."""
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()

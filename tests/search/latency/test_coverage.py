"""Latencies cover the truth as often as they claim, under the stopping rule in use: simulations whose truth is known."""

from __future__ import annotations

import math
import random
import statistics
from functools import lru_cache

import pytest

from search.latency.estimate import Estimate
from search.latency.protocol import LEAST_ROUNDS, ROUND_SECONDS, Series, _is_done
from search.latency.repeatability import ASSUMED, Repeatability, estimate_repeatability
from search.latency.rounds import Round

TRUE = 1.5
TOLERANCE, MAX_SECONDS = 0.025, 3.0  # the defaults
RUNS = 7  # of a round
NETWORKS, REPEATS = 3, 4  # of a calibration
STUDIES, MEASUREMENTS = 150, 10  # in each
Case = tuple[float, float, float]
CASES = [(0.0, 0.015, 0.01), (0.002, 0.03, 0.02), (0.008, 0.0, 0.01), (0.008, 0.015, 0.01), (0.007, 0.02, 0.05)]
"""Standard deviations between measurements, rounds and runs: from a target that repeats perfectly to a noisy one."""


def measurement(case: Case, rng: random.Random, repeatability: Repeatability, max_seconds: float = MAX_SECONDS) -> Series:
    """Add rounds until the stopping rule has enough."""
    systematic, by_round, by_run = case
    of_measurement = rng.gauss(0, systematic)
    series = Series(repeatability=repeatability)
    while not _is_done(series, TOLERANCE, max_seconds):
        of_round = of_measurement + rng.gauss(0, by_round)
        times = tuple(TRUE * math.exp(of_round + rng.gauss(0, by_run)) for _ in range(RUNS))
        series.rounds.append(Round(times, (1.0,) * (RUNS + 1)))
        series.seconds += ROUND_SECONDS
    return series


def calibrated(case: Case, rng: random.Random) -> Repeatability:
    """Repeat short measurements of a few networks, as a target does."""
    short = [[measurement(case, rng, ASSUMED, 0.0) for _ in range(REPEATS)] for _ in range(NETWORKS)]
    assert all(len(series.rounds) == LEAST_ROUNDS for group in short for series in group)
    return estimate_repeatability([[series.within for series in group] for group in short])


@lru_cache
def estimates(case: Case) -> list[Estimate]:
    """Results of many studies, each with a calibration of its own."""
    rng = random.Random(0)
    results = []
    for _ in range(STUDIES):
        repeatability = calibrated(case, rng)
        results += [measurement(case, rng, repeatability).estimate for _ in range(MEASUREMENTS)]
    return results


@pytest.mark.parametrize("case", CASES)
def test_confidence_interval_covers_the_truth_at_its_level(case: Case) -> None:
    covered = statistics.fmean(estimate.low <= TRUE <= estimate.high for estimate in estimates(case))
    assert 0.92 <= covered <= 0.98


@pytest.mark.parametrize("case", CASES)
def test_prediction_interval_covers_another_measurement_at_its_level(case: Case) -> None:
    results = estimates(case)
    intervals = [estimate.prediction_interval() for estimate in results]
    others = [results[index - 1].value for index in range(len(results))]
    covered = statistics.fmean(low <= value <= high for (low, high), value in zip(intervals, others, strict=True))
    assert 0.92 <= covered <= 0.985


@pytest.mark.parametrize("case", CASES)
def test_standard_error_is_the_deviation_from_the_truth(case: Case) -> None:
    """Slightly above it where the median of all runs is surer than the medians of rounds tell."""
    errors = [math.log(estimate.value / TRUE) for estimate in estimates(case)]
    claimed = math.sqrt(statistics.fmean(estimate.standard_error**2 for estimate in estimates(case)))
    assert 0.9 <= claimed / math.hypot(statistics.fmean(errors), statistics.pstdev(errors)) <= 1.25


@pytest.mark.parametrize("case", CASES)
def test_refined_latency_covers_the_truth_at_its_level(case: Case) -> None:
    """As when a network comes again in a search: two measurements are combined."""
    results = estimates(case)
    pairs = zip(results[::2], results[1::2], strict=True)
    covered = statistics.fmean((both := first.combined(second)).low <= TRUE <= both.high for first, second in pairs)
    assert 0.92 <= covered <= 0.985

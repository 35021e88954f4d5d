"""Estimates, their intervals and their combination, on simulations whose truth is known."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable

import pytest
import scipy.stats

from search.latency.base import Calibration, Latency
from search.latency.estimate import Estimate, freedom_of_sum, student
from search.latency.repeatability import ASSUMED
from tests.support.known_engine import CALIBRATION

TRUE = 3.0
MIN_COVERAGE, MAX_COVERAGE = 0.92, 0.98


def drawn(rng: random.Random, deviation: float, freedom: int) -> Estimate:
    """An estimate of TRUE whose error has this standard deviation, estimated with so many degrees of freedom."""
    squares = sum(rng.gauss(0, deviation) ** 2 for _ in range(freedom))
    return Estimate(TRUE * math.exp(rng.gauss(0, deviation)), math.sqrt(squares / freedom), float(freedom))


def share(is_so: Callable[[], bool], count: int = 2000) -> float:
    return sum(is_so() for _ in range(count)) / count


@pytest.mark.parametrize("freedom", [2, 3, 4.5, 7, 30, 1000])
@pytest.mark.parametrize("confidence", [0.6, 0.75, 0.975, 0.99])
def test_student_quantiles_are_scipys(freedom: float, confidence: float) -> None:
    accuracy = 0.01 if confidence <= 0.975 or freedom > 4 else 0.04
    assert student(confidence, freedom) == pytest.approx(scipy.stats.t.ppf(confidence, freedom), rel=accuracy)


def test_confidence_and_prediction_intervals_hold_at_their_level() -> None:
    rng = random.Random(0)
    for level in (0.8, 0.95):

        def covers_the_truth(level: float = level) -> bool:
            low, high = drawn(rng, 0.03, 5).confidence_interval(level)
            return low <= TRUE <= high

        def covers_another(level: float = level) -> bool:
            low, high = drawn(rng, 0.03, 5).prediction_interval(level)
            return low <= drawn(rng, 0.03, 5).value <= high

        assert share(covers_the_truth) == pytest.approx(level, abs=0.02)
        assert share(covers_another) == pytest.approx(level, abs=0.02)


def test_one_sided_limit_holds_at_its_confidence() -> None:
    rng = random.Random(1)
    assert share(lambda: not drawn(rng, 0.1, 8).is_above(TRUE, 0.99), 4000) == pytest.approx(0.99, abs=0.006)


def test_freedom_of_a_sum_is_between_the_least_and_all() -> None:
    assert freedom_of_sum((1.0, 4.0), (1.0, 4.0)) == pytest.approx(8.0)
    assert freedom_of_sum((1.0, 4.0), (0.0, 50.0)) == pytest.approx(4.0)
    assert 3.0 < freedom_of_sum((1.0, 3.0), (0.1, 100.0)) < 5.0
    assert freedom_of_sum((0.0, 3.0), (0.0, 5.0)) == 3.0


def test_ratio_has_both_errors() -> None:
    ratio = Estimate(4.0, 0.03, 10.0).over(Estimate(2.0, 0.04, 10.0))
    assert ratio.value == 2.0
    assert ratio.standard_error == pytest.approx(0.05)
    assert 10 < ratio.degrees_of_freedom < 20
    assert str(Estimate(2.0, 0.01, 1e6)) == "2.00 [1.96, 2.04]"


def test_combination_weighs_by_inverse_variances() -> None:
    both = Estimate(1.0, 0.01, 7.0).combined(Estimate(math.exp(0.005), 0.02, 7.0))
    assert math.log(both.value) == pytest.approx(0.001)  # a fifth of the way
    assert both.standard_error == pytest.approx(0.01 * math.sqrt(0.8))
    assert both.degrees_of_freedom == pytest.approx(1 / (0.8**2 / 7 + 0.2**2 / 7))


def test_disagreement_widens_by_the_birge_ratio() -> None:
    """Two estimates with standard errors of 0.01 that differ by 0.1: chi-squared is 50 with one degree of freedom."""
    both = Estimate(1.0, 0.01, 7.0).combined(Estimate(math.exp(0.1), 0.01, 7.0))
    assert both.standard_error == pytest.approx(0.01 / math.sqrt(2) * math.sqrt(50))  # half of their difference


@pytest.mark.parametrize(("deviations", "freedom"), [((0.02, 0.02), 9), ((0.02, 0.01), 9), ((0.01, 0.03, 0.02), 12)])
def test_interval_of_combined_measurements_covers_the_truth(deviations: tuple[float, ...], freedom: int) -> None:
    rng = random.Random(2)

    def covers() -> bool:
        first, *others = (
            Latency(drawn(rng, deviation, freedom), 20, 3, converged=True, seconds=1.0) for deviation in deviations
        )
        for other in others:
            first = first.refined_by(other)
        return first.low_ms <= TRUE <= first.high_ms

    assert MIN_COVERAGE <= share(covers, 4000) <= MAX_COVERAGE


def test_stored_latency_is_read_as_it_was() -> None:
    latency = Latency(Estimate(2.0, 0.01, 9.5), 20, 3, converged=True, seconds=1.0)
    stored = latency.summary()
    assert Latency.from_summary(stored) == latency
    assert stored["low_ms"] < 2.0 < stored["high_ms"]
    assert math.log(stored["high_ms"] / stored["low_ms"]) / 2 == pytest.approx(
        scipy.stats.t.ppf(0.975, 9.5) * 0.01, rel=1e-3
    )
    assert Calibration.from_dict(CALIBRATION.to_dict()) == CALIBRATION


def test_interval_of_another_measurement_that_version_0_1_stored_is_read_as_one() -> None:
    rng = random.Random(3)
    rounds = [rng.gauss(0, 0.03) for _ in range(8)]
    error = statistics.stdev(rounds) / math.sqrt(8)
    reach = math.exp(scipy.stats.t.ppf(0.975, 7) * math.sqrt(2) * error)
    stored = {"low_ms": 2.0 / reach, "high_ms": 2.0 * reach, "repetitions": 80}
    others = {"warmup_runs": 5, "converged": True, "seconds": 1.6}
    latency = Latency.from_summary({"latency_ms": 2.0, **stored, **others})
    assert latency.standard_error == pytest.approx(error, rel=0.01)
    calibration = Calibration.from_dict({"anchor": CALIBRATION.anchor.to_dict(), "anchor_ms": 2.0, **stored})
    assert calibration.estimate == latency.estimate
    assert calibration.repeatability == ASSUMED

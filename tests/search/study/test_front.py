"""The probability of being on the front, against studies whose front is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from search.accuracy.base import Accuracy
from search.accuracy.checked import Checked
from search.study import front as module
from search.study.front import front_probability, gain_over_pattern, probability_name
from search.study.trial import TrialRecord
from tests.support.known_engine import finished
from tests.support.known_truth import KnownStudy, correctness, known_study, latency, record

RESIDUAL = 0.0145  # of the default search
CHECKED = Checked(RESIDUAL, 0.004, 24)


@pytest.fixture
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DRAWS", 200)


def compared(studies: list[KnownStudy], checked: Checked | None) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The probability of each network of all studies to be on the front, and whether it truly is."""
    probabilities = []
    for study in studies:
        by_key = front_probability(study.trials, checked)
        probabilities += [by_key[trial.architecture.key] for trial in study.trials]
    return np.array(probabilities), np.concatenate([study.on_front for study in studies])


def true_share(low: float, high: float, probabilities: NDArray[np.float64], truth: NDArray[np.bool_]) -> float:
    """Of the networks that are on the front with a probability between two limits, the share that truly are."""
    chosen = truth[(low <= probabilities) & (probabilities <= high)]
    assert len(chosen) > 50
    return float(chosen.mean())


@pytest.mark.usefixtures("few_draws")
def test_probabilities_are_the_shares_of_networks_that_truly_are_on_the_front() -> None:
    studies = [known_study(seed, 30, 2000, RESIDUAL) for seed in range(100)]
    with_check, by_score = compared(studies, CHECKED), compared(studies, None)
    assert 0.75 <= true_share(0.8, 0.9, *with_check) <= 0.95
    assert 0.35 <= true_share(0.4, 0.6, *with_check) <= 0.65
    assert true_share(0.95, 1.0, *with_check) >= 0.95
    assert true_share(0.8, 0.9, *by_score) < 0.75


@pytest.mark.usefixtures("few_draws")
def test_scores_without_a_residual_are_compared_on_the_same_images() -> None:
    networks = compared([known_study(seed, 30, 500, 0.0, 0.02) for seed in range(100)], None)
    assert 0.75 <= true_share(0.8, 0.9, *networks) <= 0.95
    assert 0.35 <= true_share(0.4, 0.6, *networks) <= 0.65


def two_networks() -> list[TrialRecord]:
    """The slower one is right on all images that the other is right on, and on ten more of 1,000."""
    easy = np.arange(1000) < 800
    return [
        record(0, Accuracy.of(easy, 0, 1.0), latency(1.0)),
        record(1, Accuracy.of(np.arange(1000) < 810, 0, 1.0), latency(2.0)),
    ]


def test_a_network_that_is_right_on_more_of_the_same_images_is_surely_more_accurate() -> None:
    """With independent errors of 0.0126 each, a difference of 0.01 would be one of 0.6 standard errors: 71 %."""
    _, slower = two_networks()
    assert front_probability(two_networks(), None)[slower.architecture.key] > 0.99


def without_images(trial: TrialRecord) -> TrialRecord:
    assert trial.result.accuracy is not None
    return replace(trial, result=replace(trial.result, accuracy=replace(trial.result.accuracy, correct=None)))


def test_old_results_err_independently() -> None:
    trials = [without_images(trial) for trial in two_networks()]
    assert front_probability(trials, None)[trials[1].architecture.key] == pytest.approx(0.71, abs=0.05)


def test_old_and_new_results_are_compared() -> None:
    first, second = two_networks()
    probability = front_probability([without_images(first), second], None)
    assert probability[second.architecture.key] == pytest.approx(0.71, abs=0.05)


def test_the_residual_of_the_check_makes_places_less_sure() -> None:
    _, slower = two_networks()

    def probability(slope: float) -> float:
        return front_probability(two_networks(), replace(CHECKED, residual=0.02, slope=slope))[slower.architecture.key]

    assert probability(1.0) == pytest.approx(0.64, abs=0.05)  # 0.01 over sqrt(2) * 0.02 is 0.35 standard errors
    assert 0.5 < probability(0.5) < probability(1.0) < probability(2.0)


def test_the_name_says_what_is_known() -> None:
    assert probability_name(None) == "on the front by score"
    assert probability_name(CHECKED) == "on the front"


def test_a_study_without_candidates_has_no_probabilities() -> None:
    infeasible = finished(0, 0.8, 1.0)
    assert front_probability([replace(infeasible, result=replace(infeasible.result, feasible=False))], None) == {}
    assert front_probability([], CHECKED) == {}


def test_correctness_has_the_accuracies_asked_for() -> None:
    right = correctness(np.array([0.7, 0.8]), 20_000, np.random.default_rng(0))
    assert right.mean(1) == pytest.approx([0.7, 0.8], abs=0.01)
    assert np.corrcoef(right)[0, 1] > 0.3


def test_gain_over_the_pattern_is_the_mean_difference_at_its_latencies() -> None:
    pattern = [
        finished(n, acc, ms, origin=f"LITv2 pattern, width {n}") for n, (acc, ms) in enumerate([(0.5, 1.0), (0.6, 4.0)])
    ]
    others = [finished(2, 0.7, 2.0), finished(3, 0.4, 0.5), finished(4, 0.9, 8.0)]
    gain = gain_over_pattern([*pattern, *others])
    assert gain is not None
    assert gain.value == pytest.approx(0.1)  # 0.2 in the upper half of the latencies, by their logarithm
    assert "Within latencies of 1 to 4 ms" in str(gain)
    assert "0.1000 more accuracy than the best pattern" in str(gain)
    equal = gain_over_pattern(pattern)
    assert equal is not None
    assert equal.value == 0


def test_one_width_of_the_pattern_says_nothing() -> None:
    assert gain_over_pattern([finished(0, 0.5, 1.0, origin="LITv2 pattern, width 8"), finished(1, 0.7, 2.0)]) is None


def test_several_targets_have_no_gain_over_the_pattern() -> None:
    pattern = [finished(n, 0.5, n + 1.0, origin=f"LITv2 pattern, width {n}", other=n + 2.0) for n in range(2)]
    assert gain_over_pattern(pattern) is None

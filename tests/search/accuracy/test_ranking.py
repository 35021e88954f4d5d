"""Signal-to-noise ratio, Kendall's tau, their intervals and the verdict, of networks with simulated accuracies."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from scipy.stats import kendalltau

from models.architecture import Architecture, StageSpec
from search.accuracy.base import Accuracy
from search.accuracy.bootstrap import Statistic, resample, tau
from search.accuracy.ranking import EvaluatedNetwork, SignalQuality, assess, signal_to_noise, summarise_effects
from search.accuracy.verdict import Answer, Criterion, Verdict, verdict

NETWORK = Architecture(8, (StageSpec(1),) * 4)
SPREAD = 0.03  # standard deviation of the networks' true accuracies
MANY_IMAGES = 10**8


def network(score: float, accuracies: Sequence[float], macs: float = 1e6, params: float = 1e3) -> EvaluatedNetwork:
    trainings = tuple(Accuracy(float(value), MANY_IMAGES, seed, 60.0) for seed, value in enumerate(accuracies))
    return EvaluatedNetwork(NETWORK, int(params), int(macs), Accuracy(float(score), MANY_IMAGES, 0, 1.0), trainings)


def simulate(
    count: int = 24,
    noise: float = 0.003,
    score_error: float = 0.01,
    macs_error: float = 0.03,
    params_error: float = 0.05,
    seed: int = 0,
) -> list[EvaluatedNetwork]:
    """Networks whose scores and costs err by so much, in units of accuracy, from what a long training would give."""
    rng = np.random.default_rng(seed)
    networks = []
    for truth in rng.normal(0, SPREAD, count):
        accuracies = 0.8 + truth + rng.normal(0, noise, 2)
        macs, params = (1e6 * (1 + truth + rng.normal(0, error)) for error in (macs_error, params_error))
        networks.append(network(0.5 + truth + rng.normal(0, score_error), accuracies, macs, params))
    return networks


def true_tau(error: float, noise: float = 0.003) -> float:
    """Kendall's tau of normal variables with these errors, with the mean of two seeds."""
    correlation = SPREAD**2 / math.sqrt((SPREAD**2 + error**2) * (SPREAD**2 + noise**2 / 2))
    return 2 / math.pi * math.asin(correlation)


def test_weighted_tau_is_that_of_resampled_networks() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 6, 12), rng.integers(0, 6, 12)  # with ties
    rows = rng.integers(12, size=12)
    weights = np.bincount(rows, minlength=12)[None].astype(float)
    assert tau(x, y, weights)[0] == pytest.approx(kendalltau(x[rows], y[rows]).statistic)
    assert tau(x, np.zeros(12), weights)[0] == 0


def test_strong_signal_is_meaningful() -> None:
    quality = assess(simulate(count=40))
    assert verdict(quality).answer is Answer.MEANINGFUL
    assert verdict(quality).reasons() == []
    assert quality.spread == pytest.approx(SPREAD, rel=0.3)
    assert quality.seed_noise == pytest.approx(0.003, rel=0.3)
    assert quality.evaluator.low <= quality.evaluator.value <= quality.evaluator.high


def test_spread_does_not_contain_the_noise_of_seeds() -> None:
    rng = np.random.default_rng(0)
    alike = [network(0.5, 0.8 + rng.normal(0, 0.01, 2)) for _ in range(400)]
    assert assess(alike).spread < 0.003
    assert assess(alike).signal_to_noise.value < 0.3


@pytest.mark.parametrize(
    ("networks", "message"),
    [
        (simulate(noise=0.04, score_error=0.0), "accuracies differ little more between networks than between seeds"),
        (simulate(score_error=0.1), "the evaluator does not rank networks as long trainings do"),
        (simulate(score_error=0.02, macs_error=0.001), "multiply-accumulates rank networks better than the evaluator"),
        (simulate(score_error=0.02, params_error=0.001), "the number of parameters ranks networks better"),
    ],
)
def test_weak_signal_names_what_is_wrong(networks: list[EvaluatedNetwork], message: str) -> None:
    answer = verdict(assess(networks))
    assert answer.answer is Answer.NOT_MEANINGFUL
    assert answer.more_networks == 0
    assert any(reason.startswith(message) for reason in answer.reasons())


def test_twelve_networks_with_an_evaluator_little_better_than_costs_decide_nothing() -> None:
    quality = assess(simulate(count=12, score_error=0.014, macs_error=0.016, seed=3))
    assert quality.evaluator.value > 0.6
    assert quality.evaluator.value > quality.macs.value
    answer = verdict(quality)
    assert answer.answer is Answer.UNDECIDED
    assert any("minus that of multiply-accumulates" in reason for reason in answer.reasons())


NUM_CHECKS = 100
EVALUATOR, COST = 0.01, 0.03


@pytest.fixture(scope="module")
def checks() -> list[SignalQuality]:
    """Checks of 24 networks with an evaluator better than counting multiply-accumulates."""
    return [assess(simulate(score_error=EVALUATOR, macs_error=COST, seed=seed)) for seed in range(NUM_CHECKS)]


def coverage(intervals: Sequence[Statistic], truth: float) -> float:
    return float(np.mean([interval.low <= truth <= interval.high for interval in intervals]))


def test_intervals_cover_the_true_values(checks: list[SignalQuality]) -> None:
    difference = true_tau(EVALUATOR) - true_tau(COST)
    assert coverage([check.over_macs for check in checks], difference) >= 0.87
    assert coverage([check.evaluator for check in checks], true_tau(EVALUATOR)) >= 0.87


def test_interval_of_the_signal_to_noise_ratio_covers_the_true_value() -> None:
    intervals = [signal_to_noise(np.array([n.accuracies for n in simulate(seed=seed)])) for seed in range(1000)]
    assert 0.87 <= coverage(intervals, SPREAD / 0.003) <= 0.93


def test_difference_is_surer_than_two_independent_taus(checks: list[SignalQuality]) -> None:
    """With the same networks and trainings for both, much of their errors cancels."""
    close = [assess(simulate(score_error=0.02, macs_error=0.02, seed=seed)) for seed in range(10)]
    paired = np.mean([check.over_macs.high - check.over_macs.low for check in close])
    apart = np.mean([math.hypot(*(tau.high - tau.low for tau in (check.evaluator, check.macs))) for check in close])
    assert paired < 0.95 * apart


@pytest.mark.parametrize(
    ("score_error", "macs_error", "wrong"),
    [
        (0.02, 0.02, (Answer.MEANINGFUL,)),  # at the limit: no better than a cost
        (0.022, 0.02, (Answer.MEANINGFUL,)),
        (0.008, 0.03, (Answer.NOT_MEANINGFUL,)),
        (0.008, 0.009, (Answer.NOT_MEANINGFUL,)),  # hardly better
    ],
)
def test_verdicts_are_seldom_wrong(score_error: float, macs_error: float, wrong: tuple[Answer, ...]) -> None:
    answers = [
        verdict(assess(simulate(score_error=score_error, macs_error=macs_error, seed=seed))).answer for seed in range(40)
    ]
    assert sum(answer in wrong for answer in answers) <= 4  # 2 are expected at the limit


def test_clear_cases_are_decided(checks: list[SignalQuality]) -> None:
    assert sum(verdict(check).answer is Answer.MEANINGFUL for check in checks) > 0.6 * NUM_CHECKS


def test_networks_that_would_decide_are_estimated() -> None:
    """Of checks that are undecided with 16 networks, most are decided with the number that they estimate."""
    decided, tried = 0, 0
    for seed in range(20):
        answer = verdict(assess(simulate(16, score_error=EVALUATOR, macs_error=COST, seed=seed)))
        if answer.answer is Answer.UNDECIDED and answer.more_networks is not None and answer.more_networks < 60:
            tried += 1
            more = simulate(16 + answer.more_networks, score_error=EVALUATOR, macs_error=COST, seed=seed)
            decided += verdict(assess(more)).answer is not Answer.UNDECIDED
    assert tried >= 5
    assert decided > 0.4 * tried


@pytest.mark.parametrize(
    ("statistic", "more"),
    [
        (Statistic(0.7, 0.5, 0.85), 30),  # half the width of the lower side would do: four times as many networks
        (Statistic(0.5, 0.3, 0.7), 30),
        (Statistic(0.6, 0.4, 0.8), None),
        (Statistic(math.inf, 0.0, math.inf), None),
    ],
)
def test_estimate_follows_from_the_width_of_the_interval(statistic: Statistic, more: int | None) -> None:
    criterion = Criterion("tau", statistic, 0.6, ".2f", "", "")
    assert Verdict(10, (criterion,)).answer is Answer.UNDECIDED
    assert Verdict(10, (criterion,)).more_networks == more


def test_tau_within_equal_cost_shows_what_counting_does_not() -> None:
    """Costs that rank all networks well say nothing within a group, nor does an evaluator that only knows the cost."""
    rng = np.random.default_rng(1)
    costs, details = np.repeat(np.arange(1, 13), 4), rng.normal(0, 1, 48)
    networks = [
        (0.3 + 0.02 * (cost + detail), 0.5 + 0.02 * (cost + detail), 1e6 * cost + rng.integers(1000))
        for cost, detail in zip(costs, details, strict=True)
    ]
    knowing = assess([network(score, [accuracy, accuracy + 1e-4], macs) for score, accuracy, macs in networks])
    counting = assess([network(macs / 1e8, [accuracy, accuracy + 1e-4], macs) for _, accuracy, macs in networks])
    assert knowing.macs.value > 0.7
    assert (knowing.equal_cost.num_groups, knowing.equal_cost.num_pairs) == (12, 12 * 6)
    assert knowing.equal_cost.cost_ratio == pytest.approx(1.0, abs=0.01)
    assert knowing.equal_cost.evaluator.value == pytest.approx(1.0)
    assert counting.evaluator.value > 0.7
    assert counting.equal_cost.evaluator.low < 0 < counting.equal_cost.evaluator.high
    assert counting.equal_cost.macs == counting.equal_cost.evaluator


@pytest.mark.parametrize("error", [0.0, 0.012, 0.03])
def test_residual_is_the_error_of_scores_without_noise_and_sampling(error: float) -> None:
    """Accuracies of 1,000 images, scores of 2,000, and seeds all add to what differs; the residual is without them."""
    rng = np.random.default_rng(2)
    networks = []
    for truth in rng.normal(0, SPREAD, 400):
        score = rng.binomial(2000, 0.5 + 0.8 * truth) / 2000
        sampled = rng.binomial(1000, 0.7 + truth + rng.normal(0, error)) / 1000
        trainings = tuple(Accuracy(sampled + rng.normal(0, 0.004), 1000, seed, 1.0) for seed in range(2))
        networks.append(EvaluatedNetwork(NETWORK, 1, 1, Accuracy(score, 2000, 0, 1.0), trainings))
    quality = assess(networks)
    assert quality.slope == pytest.approx(1 / 0.8, rel=0.1)
    assert quality.residual == pytest.approx(error, abs=0.004)


def test_seed_noise_lowers_the_tau_of_seeds() -> None:
    quiet, noisy = (assess(simulate(noise=noise)) for noise in (0.001, 0.02))
    assert quiet.seeds.value > noisy.seeds.value


def test_interval_narrows_with_networks() -> None:
    def width(quality: SignalQuality) -> float:
        return quality.over_macs.high - quality.over_macs.low

    assert width(assess(simulate(40))) < 0.7 * width(assess(simulate(12)))


def test_signal_to_noise_ratio_is_infinite_if_all_seeds_agree() -> None:
    quality = assess([network(value, (value, value)) for value in (0.5, 0.6, 0.7, 0.8, 0.9)])
    assert quality.signal_to_noise.value == math.inf
    assert assess([network(0.5, (0.5, 0.5))] * 4).signal_to_noise == Statistic(0.0, 0.0, 0.0)


def test_resamples_are_repeatable_and_begin_with_the_sample() -> None:
    weights = resample(10)
    assert (weights == resample(10)).all()
    assert (weights[0] == 1).all()
    assert (weights.sum(1) == 10).all()


def test_effects_are_sorted_and_have_errors() -> None:
    dimensions = {"embed_dim": (8, 16, 32), "stage1.depth": (1, 2), "stage2.depth": (1, 2)}
    effects = summarise_effects({"stage1.depth": [0.01], "embed_dim": [0.2, 0.1, 0.3], "stage2.depth": []}, dimensions)
    assert [effect.dimension for effect in effects] == ["embed_dim", "stage1.depth"]
    assert (effects[0].lowest, effects[0].highest, effects[0].num_pairs) == (8, 32, 3)
    assert effects[0].gain == pytest.approx(0.2)
    assert effects[0].standard_error == pytest.approx(0.1 / np.sqrt(3))
    assert effects[1].standard_error is None

"""Spread over noise and Kendall's tau, against networks whose accuracies are made to a plan."""

from __future__ import annotations

import numpy as np
import pytest

from models.architecture import Architecture, StageSpec
from search.accuracy.ranking import Fidelity, Judged, effects, judge

COUNT = 40


def plan(spread: float, noise: float, score_noise: float, cost_noise: float = 10.0) -> list[Judged]:
    """Networks with accuracies around 0.8, two seeds each, and an evaluator that is off by score_noise."""
    rng = np.random.default_rng(0)
    networks = []
    for quality in rng.normal(0, spread, COUNT):
        accuracies = tuple(0.8 + quality + rng.normal(0, noise, 2))
        macs = 1000 + int(1e6 * (1 + quality + rng.normal(0, cost_noise)))
        score = 0.5 + quality + rng.normal(0, score_noise)
        architecture = Architecture(8, (StageSpec(1),) * 4)
        networks.append(Judged(architecture, 1000, macs, score, (float(accuracies[0]), float(accuracies[1]))))
    return networks


def test_strong_signal_is_meaningful() -> None:
    found = judge(plan(spread=0.03, noise=0.003, score_noise=0.003))
    assert found.meaningful
    assert found.spread == pytest.approx(0.03, rel=0.3)
    assert found.seed_noise == pytest.approx(0.003, rel=0.3)
    assert found.evaluator.low <= found.evaluator.value <= found.evaluator.high
    assert found.params.value == 0  # all alike: ranks nothing


@pytest.mark.parametrize(
    ("networks", "complaint"),
    [
        (plan(spread=0.003, noise=0.003, score_noise=0.0), "what a seed moves them by"),
        (plan(spread=0.03, noise=0.003, score_noise=0.1), "the evaluator ranks them unlike long trainings"),
        (plan(spread=0.03, noise=0.003, score_noise=0.02, cost_noise=0.001), "counting multiply-accumulates"),
    ],
)
def test_weak_signal_names_what_is_wrong(networks: list[Judged], complaint: str) -> None:
    found = judge(networks)
    assert not found.meaningful
    assert any(complaint in advice for advice in found.advice())


def test_unlike_seeds_lower_the_ceiling() -> None:
    calm, noisy = (judge(plan(spread=0.03, noise=noise, score_noise=0.0)) for noise in (0.001, 0.02))
    assert calm.seeds.value > noisy.seeds.value


def test_interval_of_tau_narrows_with_networks() -> None:
    networks = plan(spread=0.03, noise=0.01, score_noise=0.02)

    def width(found: Fidelity) -> float:
        return found.evaluator.high - found.evaluator.low

    assert width(judge(networks)) < width(judge(networks[:8]))


def test_seeds_that_agree_entirely_leave_no_noise() -> None:
    networks = [Judged(n.architecture, n.num_params, n.num_macs, n.score, (n.score, n.score)) for n in plan(0.03, 0.0, 0.0)]
    assert judge(networks).spread_over_noise == np.inf


def test_effects_are_sorted_and_have_errors() -> None:
    dimensions = {"embed_dim": (8, 16, 32), "stage1.depth": (1, 2), "stage2.depth": (1, 2)}
    found = effects({"stage1.depth": [0.01], "embed_dim": [0.2, 0.1, 0.3], "stage2.depth": []}, dimensions)
    assert [effect.dimension for effect in found] == ["embed_dim", "stage1.depth"]
    assert (found[0].lowest, found[0].highest, found[0].num_pairs) == (8, 32, 3)
    assert found[0].gain == pytest.approx(0.2)
    assert found[0].standard_error == pytest.approx(0.1 / np.sqrt(3))
    assert found[1].standard_error is None

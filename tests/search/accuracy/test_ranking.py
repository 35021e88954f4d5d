"""Signal-to-noise ratio and Kendall's tau, of networks with simulated accuracies."""

from __future__ import annotations

import numpy as np
import pytest

from models.architecture import Architecture, StageSpec
from search.accuracy.ranking import EvaluatedNetwork, SignalQuality, assess, summarise_effects

COUNT = 40


def simulate(spread: float, noise: float, score_noise: float, cost_noise: float = 10.0) -> list[EvaluatedNetwork]:
    """Networks with accuracies around 0.8, two seeds each, and an evaluator whose scores have an error of score_noise."""
    rng = np.random.default_rng(0)
    networks = []
    for quality in rng.normal(0, spread, COUNT):
        accuracies = tuple(0.8 + quality + rng.normal(0, noise, 2))
        macs = 1000 + int(1e6 * (1 + quality + rng.normal(0, cost_noise)))
        score = 0.5 + quality + rng.normal(0, score_noise)
        architecture = Architecture(8, (StageSpec(1),) * 4)
        networks.append(EvaluatedNetwork(architecture, 1000, macs, score, (float(accuracies[0]), float(accuracies[1]))))
    return networks


def test_strong_signal_is_meaningful() -> None:
    quality = assess(simulate(spread=0.03, noise=0.003, score_noise=0.003))
    assert quality.meaningful
    assert quality.spread == pytest.approx(0.03, rel=0.3)
    assert quality.seed_noise == pytest.approx(0.003, rel=0.3)
    assert quality.evaluator.low <= quality.evaluator.value <= quality.evaluator.high
    assert quality.params.value == 0  # all equal: no ranking


@pytest.mark.parametrize(
    ("networks", "message"),
    [
        (simulate(spread=0.003, noise=0.003, score_noise=0.0), "signal-to-noise ratio of 1."),
        (simulate(spread=0.03, noise=0.003, score_noise=0.1), "the evaluator does not rank networks as long trainings do"),
        (
            simulate(spread=0.03, noise=0.003, score_noise=0.02, cost_noise=0.001),
            "multiply-accumulates rank networks better than the evaluator",
        ),
    ],
)
def test_weak_signal_names_what_is_wrong(networks: list[EvaluatedNetwork], message: str) -> None:
    quality = assess(networks)
    assert not quality.meaningful
    assert any(message in advice for advice in quality.advice())


def test_seed_noise_lowers_the_tau_of_seeds() -> None:
    quiet, noisy = (assess(simulate(spread=0.03, noise=noise, score_noise=0.0)) for noise in (0.001, 0.02))
    assert quiet.seeds.value > noisy.seeds.value


def test_interval_of_tau_narrows_with_networks() -> None:
    networks = simulate(spread=0.03, noise=0.01, score_noise=0.02)

    def width(quality: SignalQuality) -> float:
        return quality.evaluator.high - quality.evaluator.low

    assert width(assess(networks)) < width(assess(networks[:8]))


def test_signal_to_noise_ratio_is_infinite_if_all_seeds_agree() -> None:
    networks = [
        EvaluatedNetwork(n.architecture, n.num_params, n.num_macs, n.score, (n.score, n.score))
        for n in simulate(0.03, 0.0, 0.0)
    ]
    assert assess(networks).signal_to_noise == np.inf


def test_effects_are_sorted_and_have_errors() -> None:
    dimensions = {"embed_dim": (8, 16, 32), "stage1.depth": (1, 2), "stage2.depth": (1, 2)}
    effects = summarise_effects({"stage1.depth": [0.01], "embed_dim": [0.2, 0.1, 0.3], "stage2.depth": []}, dimensions)
    assert [effect.dimension for effect in effects] == ["embed_dim", "stage1.depth"]
    assert (effects[0].lowest, effects[0].highest, effects[0].num_pairs) == (8, 32, 3)
    assert effects[0].gain == pytest.approx(0.2)
    assert effects[0].standard_error == pytest.approx(0.1 / np.sqrt(3))
    assert effects[1].standard_error is None

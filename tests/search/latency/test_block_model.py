"""The block model: it finds additive costs, knows its own error and rules out nothing that keeps the budget."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import numpy as np
import pytest

from models.architecture import Architecture, StageSpec
from search.latency.block_model import (
    CONFIDENCE,
    MIN_ERRORS,
    MIN_NETWORKS,
    BlockModel,
    Prediction,
    columns,
    features,
    fit,
)


def draw(rng: random.Random) -> Architecture:
    def stage(heads: int) -> StageSpec:
        return StageSpec(rng.randint(1, 4), rng.choice([0, 1, 2]), rng.choice([0.0, 0.5, 1.0]), heads)

    return Architecture(rng.choice([8, 16, 32]), tuple(stage(heads) for heads in (2, 4, 8, 8)), downsample="conv")


def true_ms(architecture: Architecture, costs: np.ndarray) -> float:
    return float(features(architecture, 32) @ costs)


@pytest.fixture
def costs() -> np.ndarray:
    rng = random.Random(3)
    typical = np.mean([features(draw(rng), 32) for _ in range(50)], axis=0)
    return np.array([1.0, 0.1, 2.0, 0.7, 0.3, 0.4, 1.5, 0.5, 0.2]) / typical


def test_finds_the_costs_of_an_additive_device(costs: np.ndarray) -> None:
    rng = random.Random(0)
    model = BlockModel(32)
    for _ in range(60):
        architecture = draw(rng)
        model.observe(architecture, true_ms(architecture, costs))
    for _ in range(20):
        architecture = draw(rng)
        prediction = model.predict(architecture)
        assert prediction is not None
        assert prediction.latency_ms == pytest.approx(true_ms(architecture, costs), rel=0.03)


def test_costs_are_those_of_the_image_size_that_a_network_has() -> None:
    rng = random.Random(8)
    stem = columns().index("patch merging")
    for size in (32, 64, 96):
        architecture = draw(rng)
        known, expected = features(replace(architecture, img_size=size), 224), features(architecture, size)
        difference = known - expected  # the patch embedding costs the same in all networks of a width and size
        assert difference[stem] == (size // 4) ** 2 * 48 * architecture.embed_dim
        assert np.count_nonzero(difference) == 1


def test_latencies_at_several_image_sizes_are_predicted(costs: np.ndarray) -> None:
    rng = random.Random(9)
    model = BlockModel(224)
    for number in range(80):
        architecture = replace(draw(rng), img_size=rng.choice([32, 48, 64]))
        prediction = model.predict(architecture)
        if number >= 60:
            assert prediction is not None
            assert prediction.latency_ms == pytest.approx(true_ms(architecture, costs), rel=0.03)
        model.observe(architecture, true_ms(architecture, costs))


def test_costs_are_never_negative() -> None:
    rng = random.Random(1)
    inputs = np.stack([features(draw(rng), 32) for _ in range(12)])
    assert (fit(inputs, np.array([rng.uniform(1, 5) for _ in range(12)])) >= 0).all()


def test_nothing_is_known_of_a_cost_that_no_network_had() -> None:
    """Rounding must not turn it into an enormous one, by which all networks that have it would be left out."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        inputs = rng.random((9, 9))
        inputs[:, 4] = 0.0
        assert fit(inputs, inputs @ rng.random(9))[4] == 0


def test_says_nothing_before_it_has_seen_enough(costs: np.ndarray) -> None:
    rng = random.Random(2)
    model = BlockModel(32)
    while (prediction := model.predict(draw(rng))) is None:
        architecture = draw(rng)
        model.observe(architecture, true_ms(architecture, costs))
    assert len(model._rows) == MIN_NETWORKS
    assert prediction.error is None  # not one prediction has been put to the test
    assert not prediction.above(1e-9, CONFIDENCE)


def test_error_is_that_of_predictions_made_beforehand(costs: np.ndarray) -> None:
    rng, noise = random.Random(4), random.Random(5)
    model = BlockModel(32)
    pairs: list[tuple[float, float]] = []
    for _ in range(40):
        architecture = draw(rng)
        measured = true_ms(architecture, costs) * math.exp(noise.gauss(0, 0.1))
        if (prediction := model.predict(architecture)) is not None and architecture.key not in model._rows:
            pairs.append((prediction.latency_ms, measured))
        model.observe(architecture, measured)
    assert model.errors == pytest.approx([math.log(a / b) for a, b in pairs])
    last = model.predict(draw(rng))
    assert last is not None
    assert last.error == pytest.approx(0.1, rel=0.6)
    assert model.median_error is not None


def test_repeat_of_a_known_network_is_no_test_of_the_model(costs: np.ndarray) -> None:
    rng = random.Random(6)
    model = BlockModel(32)
    architectures = [draw(rng) for _ in range(MIN_NETWORKS + 2)]
    for architecture in architectures * 2:
        model.observe(architecture, true_ms(architecture, costs))
    assert len(model.errors) == 2


def test_rules_out_only_what_its_error_cannot_explain() -> None:
    assert Prediction(2.0, 0.02, 30).above(1.5, CONFIDENCE)
    assert not Prediction(2.0, 0.2, 30).above(1.5, CONFIDENCE)
    assert not Prediction(1.55, 0.02, 30).above(1.5, CONFIDENCE)
    assert not Prediction(2.0, 0.02 * 8, MIN_ERRORS).above(1.5, CONFIDENCE)


def test_interval_of_a_prediction_covers_the_truth_at_its_level(costs: np.ndarray) -> None:
    """On devices whose networks deviate from a sum of costs by 10 %, each in its own way."""
    covered: list[bool] = []
    for seed in range(6):
        rng, noise = random.Random(seed), random.Random(seed + 100)
        model = BlockModel(32)
        for _ in range(70):
            architecture = draw(rng)
            measured = true_ms(architecture, costs) * math.exp(noise.gauss(0, 0.1))
            prediction = model.predict(architecture)
            if prediction is not None and prediction.error is not None:
                latency = prediction.latency()
                covered.append(latency.low_ms <= measured <= latency.high_ms)
                assert latency.standard_error == prediction.error
            model.observe(architecture, measured)
    assert len(covered) > 300
    assert 0.92 <= sum(covered) / len(covered) <= 0.98

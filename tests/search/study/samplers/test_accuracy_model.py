"""The sampler's model of accuracy: how sure it is of itself, and what it says of choices that no network had."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from search.study.samplers.accuracy_model import AccuracyModel

NOISE = 0.02
Vector = NDArray[np.float64]


def data(num_networks: int, num_inputs: int, rng: np.random.Generator, weight: float = 0.02) -> tuple[Vector, Vector]:
    """Inputs of unit scale, and accuracies that are linear in them but for the noise."""
    inputs = rng.normal(size=(num_networks, num_inputs))
    weights = weight * rng.normal(size=num_inputs)
    return inputs, 0.5 + inputs @ weights + NOISE * rng.normal(size=num_networks)


def draws(model: AccuracyModel, inputs: Vector, rng: np.random.Generator) -> Vector:
    """Predictions of 300 draws, (draws, networks)."""
    return np.array([model.draw(rng).predict(inputs) for _ in range(300)])


@pytest.mark.parametrize(("num_networks", "num_inputs"), [(16, 30), (40, 30), (200, 30), (16, 4)])
@pytest.mark.parametrize("weight", [0.0, 0.005, 0.02])
def test_new_networks_are_as_far_from_the_prediction_as_it_says(num_networks: int, num_inputs: int, weight: float) -> None:
    """1 is right. Noise taken from the residuals gives 4 to 13 for 16 networks and 30 inputs."""
    rng = np.random.default_rng(0)
    deviations = []
    for _ in range(20):
        inputs, accuracies = data(num_networks + 50, num_inputs, rng, weight)
        known, new = slice(num_networks), slice(num_networks, None)
        model = AccuracyModel.fit(inputs[known], accuracies[known], np.ones(num_inputs))
        errors = np.sqrt(draws(model, inputs[new], rng).var(0) + model.noise**2)
        deviations.append((model.predict(inputs[new]) - accuracies[new]) / errors)
    assert 0.8 < np.sqrt(np.mean(np.square(deviations))) < 1.4


def test_errors_of_networks_that_are_left_out_need_no_further_fit() -> None:
    inputs, accuracies = data(12, 5, np.random.default_rng(0))
    model = AccuracyModel.fit(inputs, accuracies, np.ones(5), priors=[1.0])
    deviations = []
    for index in range(12):
        others = np.arange(12) != index
        left_out = AccuracyModel.fit(inputs[others], accuracies[others], np.ones(5), priors=[1.0])
        offset = (inputs[index] - left_out.means) @ left_out.root
        error = model.noise * np.sqrt(1 + 1 / 11 + offset @ offset)
        deviations.append((left_out.predict(inputs[[index]])[0] - accuracies[index]) / error)
    assert np.mean(np.square(deviations)) == pytest.approx(1.0)


def test_choice_that_no_network_had_is_unsure_but_no_accuracy_out_of_range() -> None:
    rng = np.random.default_rng(0)
    inputs, accuracies = data(40, 4, rng)
    inputs[:, 3] = 2.0
    model = AccuracyModel.fit(inputs, accuracies, np.ones(4))
    children = np.array([[0.0, 0.0, 0.0, 2.0], [0.0, 0.0, 0.0, 4.0]])
    seen, unseen = draws(model, children, rng).T
    assert unseen.mean() == pytest.approx(seen.mean(), abs=0.02)
    assert unseen.std() > max(0.01, 10 * seen.std())
    assert 0 <= unseen.min() <= unseen.max() <= 1


def test_predictions_are_accuracies() -> None:
    inputs, accuracies = data(40, 4, np.random.default_rng(0))
    predicted = AccuracyModel.fit(inputs, accuracies, np.ones(4)).predict(1000 * inputs)
    assert predicted.min() == 0
    assert predicted.max() == 1

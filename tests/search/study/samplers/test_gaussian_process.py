"""Gaussian processes: as scikit-learn computes them, with the right gradient, as unsure as they are wrong."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import check_grad
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

from search.study.samplers.gaussian_process import GaussianProcess, Kernel, density_loss

NOISE = 0.02
KERNEL = Kernel(np.array([0.7, 1.5, 4.0]), 1.3, 0.1)
Vector = NDArray[np.float64]


def data(num_networks: int, num_inputs: int, rng: np.random.Generator, weight: float = 0.05) -> tuple[Vector, Vector]:
    """Inputs of unit scale, and accuracies that few of them decide, with an interaction, but for the noise."""
    inputs = rng.normal(size=(num_networks, num_inputs))
    function = inputs[:, 0] + np.tanh(inputs[:, 1]) + 0.5 * inputs[:, 0] * inputs[:, 2]
    return inputs, 0.5 + weight * function + NOISE * rng.normal(size=num_networks)


def test_prediction_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    inputs, values = data(30, 3, rng)
    new = rng.normal(size=(20, 3))
    process = GaussianProcess.fit(inputs, values, KERNEL)
    kernel = ConstantKernel(KERNEL.signal**2) * Matern(KERNEL.length_scales, nu=2.5) + WhiteKernel(KERNEL.noise**2)
    theirs = GaussianProcessRegressor(kernel, optimizer=None, normalize_y=True, alpha=1e-8).fit(inputs, values)
    expected, covariance = theirs.predict(new, return_cov=True)
    noise = (KERNEL.noise * values.std()) ** 2 * np.eye(20)  # scikit-learn predicts values, not the function
    np.testing.assert_allclose(process.predict(new), expected, rtol=1e-6)
    drawn = process.draw(new, 100_000, rng)
    np.testing.assert_allclose(drawn.mean(0), expected, atol=1e-3)
    np.testing.assert_allclose(np.cov(drawn.T), covariance - noise, atol=1e-4)


def test_gradient_is_that_of_the_loss() -> None:
    rng = np.random.default_rng(0)
    inputs, values = data(25, 3, rng)
    squares = (inputs[:, None] - inputs[None]) ** 2
    values = (values - values.mean()) / values.std()
    logs = np.log([*KERNEL.length_scales, KERNEL.signal, KERNEL.noise])
    error = check_grad(
        lambda at: density_loss(Kernel.from_logs(at), squares, values)[0],
        lambda at: density_loss(Kernel.from_logs(at), squares, values)[1],
        logs,
    )
    assert error < 1e-4 * np.linalg.norm(density_loss(Kernel.from_logs(logs), squares, values)[1])


@pytest.mark.parametrize(("num_networks", "num_inputs"), [(16, 24), (40, 24), (150, 24), (16, 4)])
def test_new_networks_are_as_far_from_the_prediction_as_it_says(num_networks: int, num_inputs: int) -> None:
    """1 is right. Few networks leave many kernels possible, and the most probable one is too sure of itself."""
    rng = np.random.default_rng(0)
    deviations = []
    for _ in range(10):
        inputs, accuracies = data(num_networks + 50, num_inputs, rng)
        known, new = slice(num_networks), slice(num_networks, None)
        process = GaussianProcess.fit(inputs[known], accuracies[known])
        noise = process.kernel.noise * process.deviation
        errors = np.sqrt(process.draw(inputs[new], 300, rng).var(0) + noise**2)
        deviations.append((process.predict(inputs[new]) - accuracies[new]) / errors)
    assert 0.8 < np.sqrt(np.mean(np.square(deviations))) < (1.3 if num_networks > 100 else 2)


def test_interaction_is_learnt() -> None:
    rng = np.random.default_rng(0)
    inputs, accuracies = data(200, 10, rng)
    process = GaussianProcess.fit(inputs[:100], accuracies[:100])
    linear = np.column_stack([inputs, np.ones(200)])
    weights = np.linalg.lstsq(linear[:100], accuracies[:100], rcond=None)[0]
    error = np.std(process.predict(inputs[100:]) - accuracies[100:])
    assert error < 0.8 * np.std(linear[100:] @ weights - accuracies[100:])
    assert (process.kernel.length_scales[:3] < process.kernel.length_scales[3:].min()).all()


def test_choice_that_no_network_had_is_unsure() -> None:
    rng = np.random.default_rng(0)
    inputs, accuracies = data(60, 4, rng)
    inputs[:, 3] = 2.0
    process = GaussianProcess.fit(inputs, accuracies)
    seen, unseen = process.draw(np.array([[0.0, 0.0, 0.0, 2.0], [0.0, 0.0, 0.0, 8.0]]), 1000, rng).T
    assert unseen.std() > 2 * seen.std()


@pytest.mark.parametrize(
    ("inputs", "values"),
    [
        pytest.param(np.zeros((8, 2)), np.full(8, 0.5), id="equal networks of equal values"),
        pytest.param(np.zeros((8, 2)), np.linspace(0, 1, 8), id="equal networks of other values"),
        pytest.param(np.arange(4.0).reshape(2, 2), np.array([0.1, 0.9]), id="two networks"),
        pytest.param(np.arange(40.0).reshape(20, 2) * 1e3, np.linspace(0, 1, 20), id="inputs far apart"),
        pytest.param(np.repeat(np.eye(3), 40, axis=0), np.repeat([0.1, 0.5, 0.9], 40), id="three networks without noise"),
    ],
)
def test_data_of_any_kind_give_numbers(inputs: Vector, values: Vector) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        process = GaussianProcess.fit(inputs, values)
        drawn = process.draw(np.concatenate([inputs, inputs + 1]), 8, np.random.default_rng(0))
    assert np.isfinite(drawn).all()
    assert abs(process.predict(inputs).mean() - values.mean()) < 0.2

"""Gaussian processes: the sampler's predictions of accuracy and latency, and how uncertain they are.

The kernel is Matérn's with nu = 5/2 and a length scale for each input (Rasmussen and Williams, "Gaussian Processes for
Machine Learning", Sec. 4.2 and 5.4). Its parameters are the most probable ones. Length scales are expected to grow with the
number of inputs (Hvarfner et al., "Vanilla Bayesian Optimization Performs Great in High Dimensions", arXiv 2402.02229; their
inputs are in [0, 1], ours have deviation 1): a few networks are explained by few inputs, and by nearly straight lines.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, cholesky, solve_triangular
from scipy.optimize import minimize

LENGTH_SCALE_MEAN = math.sqrt(2)  # of the logarithm of a length scale, to which half that of the number of inputs is added
LENGTH_SCALE_DEVIATION = math.sqrt(3)
SIGNAL = (0.0, 1.0)  # mean and deviation of the logarithm of a standard deviation, for values of deviation 1
NOISE = (-2.0, 1.0)  # the same; scores have a tenth of the deviation of accuracies
LENGTH_BOUNDS = (-3.0, 9.0)  # of logarithms: beyond, an input decides all or nothing
BOUNDS = (-4.0, 4.0)  # of logarithms of signal and noise: matrices stay regular
MAX_STEPS = 60  # as good as more
JITTER = 1e-8  # relative variance that keeps matrices regular
LEAST_DEVIATION = 1e-6  # values of so many equal digits are equal

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Kernel:
    """How values of two networks are related, for values of mean 0 and deviation 1.

    Attributes:
        length_scales: over which each input matters, (inputs,).
        signal: standard deviation of the function.
        noise: standard deviation of values about it.
    """

    length_scales: Vector
    signal: float
    noise: float

    @classmethod
    def fit(cls, inputs: Vector, values: Vector) -> Self:
        """Find the most probable kernel.

        Args:
            inputs: of unit scale, (networks, inputs).
            values: (networks,).
        """
        values, _, _ = standardised(values)
        squares = (inputs[:, None] - inputs[None]) ** 2
        num_inputs = inputs.shape[1]
        means = np.array([LENGTH_SCALE_MEAN + math.log(num_inputs) / 2] * num_inputs + [SIGNAL[0], NOISE[0]])
        deviations = np.array([LENGTH_SCALE_DEVIATION] * num_inputs + [SIGNAL[1], NOISE[1]])

        def loss(logs: Vector) -> tuple[float, Vector]:
            value, gradient = density_loss(cls.from_logs(logs), squares, values)
            distances = (logs - means) / deviations
            return value + float(distances @ distances) / 2, gradient + distances / deviations

        bounds = [LENGTH_BOUNDS] * num_inputs + [BOUNDS, BOUNDS]
        fitted = minimize(loss, means, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": MAX_STEPS})
        return cls.from_logs(fitted.x)

    @classmethod
    def from_logs(cls, logs: Vector) -> Self:
        """The kernel of logarithms of the length scales, of the signal and of the noise, (inputs + 2,)."""
        return cls(np.exp(logs[:-2]), float(np.exp(logs[-2])), float(np.exp(logs[-1])))

    @property
    def variance(self) -> float:
        """Of values about the function, and a little more, which keeps matrices regular."""
        return self.noise**2 + JITTER * self.signal**2

    def __call__(self, first: Vector, second: Vector) -> Vector:
        """Covariances of the function, (first networks, second networks)."""
        first, second = first / self.length_scales, second / self.length_scales
        squares = (first**2).sum(1)[:, None] + (second**2).sum(1)[None] - 2 * first @ second.T
        return self.signal**2 * _matern(np.maximum(squares, 0.0))[0]


@dataclass(frozen=True)
class GaussianProcess:
    """What is known of a function after some of its values.

    Attributes:
        kernel: of the values less their mean, over their deviation.
        inputs: (networks, inputs).
        mean, deviation: of the values.
        root: of the values' covariance matrix, lower triangular.
        weights: of the kernel with each network, (networks,).
    """

    kernel: Kernel
    inputs: Vector
    mean: float
    deviation: float
    root: Vector
    weights: Vector

    @classmethod
    def fit(cls, inputs: Vector, values: Vector, kernel: Kernel | None = None) -> Self:
        """Learn from values of networks. Arguments: as of `Kernel.fit`, and the kernel; None finds the most probable one."""
        kernel = kernel or fitted_kernel(inputs, values)
        values, mean, deviation = standardised(values)
        root = cholesky(kernel(inputs, inputs) + kernel.variance * np.eye(len(values)), lower=True)
        return cls(kernel, inputs, mean, deviation, root, cho_solve((root, True), values))

    def predict(self, inputs: Vector) -> Vector:
        """Expected values of networks, (networks,)."""
        return self._expected(self.kernel(inputs, self.inputs))

    def draw(self, inputs: Vector, num_draws: int, rng: np.random.Generator) -> Vector:
        """Functions that may be the true one, at networks, (draws, networks)."""
        covariances = self.kernel(inputs, self.inputs)
        known = solve_triangular(self.root, covariances.T, lower=True)
        covariance = self.kernel(inputs, inputs) - known.T @ known
        values, vectors = np.linalg.eigh(covariance)
        normal = rng.normal(size=(num_draws, len(inputs)))
        scatter = normal @ (vectors * np.sqrt(np.maximum(values, 0.0))).T
        drawn: Vector = self._expected(covariances) + self.deviation * scatter
        return drawn

    def _expected(self, covariances: Vector) -> Vector:
        """Expected values by the covariances with the known networks, (networks, known networks)."""
        return self.mean + self.deviation * covariances @ self.weights


def fitted_kernel(inputs: Vector, values: Vector) -> Kernel:
    """The most probable kernel; it is not sought again for what it was fitted to lately. Arguments: as of `Kernel.fit`."""
    return _fitted_kernel(inputs.tobytes(), values.tobytes())


@lru_cache(maxsize=16)  # of accuracy, of latencies on some targets, and in tests of some studies in turn
def _fitted_kernel(inputs: bytes, values: bytes) -> Kernel:
    known = np.frombuffer(values)
    return Kernel.fit(np.frombuffer(inputs).reshape(len(known), -1), known)


def standardised(values: Vector) -> tuple[Vector, float, float]:
    """Values of mean 0 and deviation 1, and their mean and deviation."""
    mean, deviation = float(values.mean()), max(float(values.std()), LEAST_DEVIATION)
    return (values - mean) / deviation, mean, deviation


def _matern(squares: Vector) -> tuple[Vector, Vector]:
    """The kernel, and minus its derivative by the squared distance, both of the shape of the squared distances."""
    distances = np.sqrt(5 * squares)
    decay = np.exp(-distances)
    return (1 + distances + distances**2 / 3) * decay, 5 / 6 * (1 + distances) * decay


def density_loss(kernel: Kernel, squares: Vector, values: Vector) -> tuple[float, Vector]:
    """Negative logarithm of the values' density, but for a constant.

    Args:
        squares: squared differences of inputs, (networks, networks, inputs).
        values: of mean 0 and deviation 1, (networks,).

    Returns:
        The loss, and its gradient by the logarithms of length scales, signal and noise, (inputs + 2,).
    """
    relative = kernel.length_scales**-2
    correlations, slopes = _matern(squares @ relative)
    function = kernel.signal**2 * correlations
    root = cholesky(function + kernel.variance * np.eye(len(values)), lower=True)
    inverse = cho_solve((root, True), np.eye(len(values)))
    weights = inverse @ values
    excess = inverse - np.outer(weights, weights)  # twice the loss's gradient by the covariances
    by_scales = np.tensordot(excess * slopes, squares, 2) * relative * kernel.signal**2
    by_signal = (excess * function).sum() + JITTER * kernel.signal**2 * np.trace(excess)
    by_noise = kernel.noise**2 * np.trace(excess)
    loss = float(values @ weights / 2 + np.log(np.diag(root)).sum())
    return loss, np.concatenate([by_scales, [by_signal, by_noise]])

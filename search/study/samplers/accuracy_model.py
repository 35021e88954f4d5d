"""The sampler's model of accuracy: Bayesian linear regression on what the dimensions of the space declare.

It is trusted as far as it predicts networks that it was not fitted to. With fewer networks than inputs it fits all of them
and knows little, so its residuals say nothing. Errors of networks that are left out do, and ridge regression has them in
closed form: the residual over 1 - leverage (Hastie, Tibshirani, Friedman, "The Elements of Statistical Learning", Sec.
7.10), where noise / sqrt(1 - leverage) is expected. Noise and prior are those under which these errors are most probable.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Self

import numpy as np
from numpy.typing import NDArray

from models.architecture import Architecture
from search.latency.block_model import CACHED
from search.space.dimensions import accuracy_inputs

PRIORS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)  # precisions of the weights of inputs of unit scale, in units of the residual's
LEAST_NOISE = 1e-6  # accuracies of so many equal digits are equal

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class AccuracyModel:
    """A linear model of accuracy, with the posterior of its weights.

    scikit-learn's linear models either have no posterior (Ridge) or also fit the prior (BayesianRidge).

    Attributes:
        means, scales: of the inputs, (inputs,).
        intercept: mean accuracy.
        weights: of the scaled inputs, (inputs,).
        noise: standard deviation of an accuracy about the true linear model.
        root: a square root of the weights' covariance for a noise of 1, (inputs, inputs).
    """

    means: Vector
    scales: Vector
    intercept: float
    weights: Vector
    noise: float
    root: Vector

    @classmethod
    def fit(cls, inputs: Vector, accuracies: Vector, scales: Vector, priors: Sequence[float] = PRIORS) -> Self:
        """Fit the model, with the prior that predicts networks which are left out best.

        Args:
            inputs: `inputs_of` at least two networks, (networks, inputs).
            accuracies: (networks,).
            scales: by how much each input varies in the space, (inputs,). Scales of the networks at hand would make an
                input that they agree on infinitely important to the first network that differs.
            priors: precisions of the weights to choose from, in units of the residual's.
        """
        means, intercept = inputs.mean(0), float(accuracies.mean())
        design = (inputs - means) / scales
        residuals = accuracies - intercept
        values, vectors = np.linalg.eigh(design.T @ design)
        rotated = design @ vectors
        fits = []
        for prior in priors:
            precisions = np.maximum(values, 0.0) + prior
            rotated_weights = rotated.T @ residuals / precisions
            unexplained = 1 - 1 / len(design) - rotated**2 @ (1 / precisions)  # 1 - leverage
            noise = float(np.sqrt(((residuals - rotated @ rotated_weights) ** 2 / unexplained).mean()))
            surprise = 2 * np.log(max(noise, LEAST_NOISE)) - np.log(unexplained).mean()
            fits.append((surprise, noise, vectors @ rotated_weights, vectors / np.sqrt(precisions)))
        _, noise, weights, root = min(fits, key=lambda fit: fit[0])
        return cls(means, scales, intercept, weights, noise, root)

    def draw(self, rng: np.random.Generator) -> Self:
        """This model with weights drawn from their posterior: as far from the mean as what is not known allows."""
        drawn = self.weights + self.noise * self.root @ rng.normal(size=len(self.weights))
        return type(self)(self.means, self.scales, self.intercept, drawn, self.noise, self.root)

    def predict(self, inputs: Vector) -> Vector:
        """Accuracies in [0, 1] of networks by their inputs, (networks, inputs)."""
        return np.clip(self.intercept + (inputs - self.means) / self.scales @ self.weights, 0.0, 1.0)


@lru_cache(maxsize=CACHED)
def inputs_of(architecture: Architecture) -> Vector:
    """Inputs of the model of accuracy, (inputs,): what accuracy is approximately linear in."""
    return np.array(accuracy_inputs(architecture))

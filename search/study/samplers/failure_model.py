"""The sampler's model of failure: which networks can probably not be built, converted, measured or trained.

Logistic regression on what a network contains, in all and in each stage: a runtime that lacks an operator refuses every
network with one kind of attention, a small device those that are too large. Networks that exceed a latency limit do not
belong here: the block model knows better how slow they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit

from models.architecture import Architecture
from search.latency import block_model
from search.space.dimensions import accuracy_inputs

PRIOR = 1.0  # precision of the weights of inputs of unit scale
CERTAIN = 1 - 1e-9  # no network is: one that could succeed has to be drawn among others that could not

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class FailureModel:
    """Probabilities of failure by the most probable weights under a normal prior, which keeps them below certainty.

    Attributes:
        means, scales: of the inputs, (inputs,).
        weights: of the intercept, then of the scaled inputs, (1 + inputs,).
    """

    means: Vector
    scales: Vector
    weights: Vector

    @classmethod
    def fit(cls, inputs: Vector, failed: NDArray[np.bool_], scales: Vector) -> Self:
        """Fit the model.

        Args:
            inputs: `inputs_of` networks, (networks, inputs).
            failed: which of them failed, (networks,).
            scales: by how much each input varies in the space, (inputs,).
        """
        means = inputs.mean(0)
        design = _design(inputs, means, scales)

        def loss(weights: Vector) -> tuple[float, Vector]:
            logits = design @ weights
            value = (np.logaddexp(0.0, logits) - failed * logits).sum() + PRIOR * (weights @ weights) / 2
            return float(value), design.T @ (expit(logits) - failed) + PRIOR * weights

        result = minimize(loss, np.zeros(design.shape[1]), jac=True, method="L-BFGS-B")
        return cls(means, scales, result.x)

    def predict(self, inputs: Vector) -> Vector:
        """Probabilities that networks fail, by their inputs, (networks, inputs); always below 1."""
        probabilities: Vector = np.minimum(expit(_design(inputs, self.means, self.scales) @ self.weights), CERTAIN)
        return probabilities


def _design(inputs: Vector, means: Vector, scales: Vector) -> Vector:
    return np.column_stack((np.ones(len(inputs)), (inputs - means) / scales))


@lru_cache(maxsize=block_model.CACHED)
def inputs_of(architecture: Architecture, img_size: int) -> Vector:
    """Inputs of the model, (inputs,): which costs of the block model a network has, how high, and the choices by stage."""
    costs = block_model.features(architecture, img_size)
    return np.concatenate([costs > 0, np.log1p(costs), accuracy_inputs(architecture)])

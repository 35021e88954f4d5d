"""The sampler's models of accuracy and latency: Gaussian processes that learn from every score and measurement.

A kernel takes longer to fit than a process with a given kernel, so it is fitted to the first networks of a study only, and
again whenever there are a fifth more of them. It depends on these networks alone, so that an interrupted study goes on as it
would have; with trainings that stop early, on the accuracies that are expected of them by then, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from search.latency import block_model
from search.study.samplers.gaussian_process import GaussianProcess, fitted_kernel
from search.study.samplers.row import Features, Row

GROWTH = 1.2  # a kernel is fitted again once there are more networks by this factor
MAX_KERNEL_ROWS = 200  # then it is good enough, and takes 0.1 s to fit
MAX_LATEST_ROWS = 300  # that a model learns from, beside those of the kernel: these are about the front
MIN_ROWS = 16  # of a process of latency: from fewer, the block model alone predicts as well
LEAST_MS = 1e-6  # of the block model's predictions, whose logarithm is taken

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class AccuracyModel:
    """Accuracy, by what is known of a network."""

    process: GaussianProcess
    scales: Vector

    @classmethod
    def fit(cls, rows: Sequence[Row], scales: Vector) -> Self:
        """Fit the model to at least two networks, in the order in which their trials were finished.

        Args:
            scales: by how much each input varies in the space, (inputs,).
        """

        def data(rows: Sequence[Row]) -> tuple[Vector, Vector]:
            return _inputs([row.features for row in rows], scales), np.array([row.accuracy for row in rows])

        kernel = fitted_kernel(*data(_of_kernel(rows)))
        return cls(GaussianProcess.fit(*data(_of_process(rows)), kernel), scales)

    def predict(self, networks: Sequence[Features]) -> Vector:
        """Accuracies in [0, 1], (networks,)."""
        return np.clip(self.process.predict(_inputs(networks, self.scales)), 0.0, 1.0)

    def draw(self, networks: Sequence[Features], num_draws: int, rng: np.random.Generator) -> Vector:
        """Accuracies in [0, 1], (draws, networks)."""
        return np.clip(self.process.draw(_inputs(networks, self.scales), num_draws, rng), 0.0, 1.0)


@dataclass(frozen=True)
class LatencyModel:
    """Latency, by what is known of a network and what the block model predicts, which is a sum of costs.

    Attributes:
        process: of the logarithm of latency; None where so few networks were measured that it is the block model's alone.
        scales: as of `AccuracyModel.fit`.
        costs: of the block model.
    """

    process: GaussianProcess | None
    scales: Vector
    costs: Vector

    @classmethod
    def fit(cls, rows: Sequence[Row], scales: Vector, target: str) -> Self:
        """Fit the model to networks that were measured on a target, at least one, in the order of their trials' ends."""

        def data(rows: Sequence[Row]) -> tuple[Vector, Vector, Vector]:
            latencies = np.array([row.trial.result.latencies[target].latency_ms for row in rows])
            features = [row.features for row in rows]
            costs = block_model.fit(np.stack([network.blocks for network in features]), latencies)
            return _latency_inputs(features, scales, costs), np.log(latencies), costs

        inputs, log_latencies, costs = data(_of_process(rows))
        if len(rows) < MIN_ROWS:
            return cls(None, scales, costs)
        kernel = fitted_kernel(*data(_of_kernel(rows))[:2])
        return cls(GaussianProcess.fit(inputs, log_latencies, kernel), scales, costs)

    def predict(self, networks: Sequence[Features]) -> Vector:
        """Latencies in ms, (networks,)."""
        inputs = _latency_inputs(networks, self.scales, self.costs)
        return np.exp(inputs[:, -1] if self.process is None else self.process.predict(inputs))

    def draw(self, networks: Sequence[Features], num_draws: int, rng: np.random.Generator) -> Vector:
        """Latencies in ms, (draws, networks)."""
        if self.process is None:
            return np.tile(self.predict(networks), (num_draws, 1))
        return np.exp(self.process.draw(_latency_inputs(networks, self.scales, self.costs), num_draws, rng))


def _inputs(networks: Sequence[Features], scales: Vector) -> Vector:
    """Inputs of unit scale, (networks, inputs)."""
    return np.stack([network.inputs for network in networks]) / scales


def _latency_inputs(networks: Sequence[Features], scales: Vector, costs: Vector) -> Vector:
    """The same and the logarithm of the block model's prediction, (networks, inputs + 1)."""
    predicted_ms = np.stack([network.blocks for network in networks]) @ costs
    return np.column_stack([_inputs(networks, scales), np.log(np.maximum(predicted_ms, LEAST_MS))])


def _of_kernel(rows: Sequence[Row]) -> Sequence[Row]:
    """The networks that a kernel is fitted to."""
    count, most = 2, min(len(rows), MAX_KERNEL_ROWS)
    while (larger := int(count * GROWTH) + 1) <= most:
        count = larger
    return rows[:count]


def _of_process(rows: Sequence[Row]) -> Sequence[Row]:
    """The networks that a process learns from: those of its kernel, and the latest of the others."""
    count = len(_of_kernel(rows))
    return [*rows[:count], *rows[count:][-MAX_LATEST_ROWS:]]

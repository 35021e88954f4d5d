"""What a network should take, block by block, from the networks measured so far.

Latency is modelled as a sum over blocks: each costs something for being there, for each kind of attention it has, and for
the work it does at its stage's width and map. The costs are fitted to a study's own measurements, so they are this device's.
A prediction tells how regular the device is, and spares the search measuring networks that surely break the budget, or that
are probably slower than one of no lower accuracy. Nothing predicted is ever on a front.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from models.architecture import Architecture, StageSpec, count_hidden
from search.latency.base import Latency
from search.latency.protocol import student

MIN_NETWORKS = 8  # measured before anything is predicted
MIN_ERRORS = 8  # predictions put to the test before one may rule a network out
RECENT = 30  # errors that count: the model gets better as it sees more
CONFIDENCE = 0.99  # one-sided, of breaking a budget
NUM_FEATURES = 9
KEPT = 2**12  # networks whose features are kept: those that a search proposes come again and again
RIDGE = 1e-3
MAX_STEPS = 1000  # far more than 9 costs need: SciPy raises an error beyond

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Prediction:
    """latency_ms: expected. error: standard deviation of its logarithm, from num_errors predictions put to the test."""

    latency_ms: float
    error: float | None
    num_errors: int

    def above(self, limit_ms: float, confidence: float) -> bool:
        """Whether the network is slower than a limit with such confidence, for all that is known."""
        return self.error is not None and self.latency_ms / self._factor(confidence) > limit_ms

    def latency(self) -> Latency:
        """The prediction as a latency that was not measured; 98 % interval. Only where its error is known."""
        factor = self._factor(CONFIDENCE)
        low_ms, high_ms = self.latency_ms / factor, self.latency_ms * factor
        return Latency(self.latency_ms, low_ms, high_ms, repetitions=0, warmup_runs=0, converged=False, seconds=0.0)

    def _factor(self, confidence: float) -> float:
        """How far off a prediction is at most, one-sided."""
        assert self.error is not None
        return math.exp(student(confidence, self.num_errors) * self.error)


@dataclass
class BlockModel:
    """The model and its record. img_size: of the deployed network, in pixels.

    errors: logarithm of predicted over measured latency, each predicted before its network was measured.
    """

    img_size: int
    errors: list[float] = field(default_factory=list)
    _rows: dict[str, tuple[Vector, float]] = field(default_factory=dict)
    _costs: Vector | None = None

    def observe(self, architecture: Architecture, latency_ms: float, predicted_ms: float | None = None) -> None:
        """Learn a measured latency, after noting how far off the prediction was if the network is new.

        predicted_ms: what was predicted when the network came up; None to predict it now.
        """
        if architecture.key not in self._rows:
            if predicted_ms is None and (predicted := self.predict(architecture)) is not None:
                predicted_ms = predicted.latency_ms
            if predicted_ms is not None:
                self.errors.append(math.log(predicted_ms / latency_ms))
        self._rows[architecture.key] = (features(architecture, self.img_size), latency_ms)
        self._costs = None

    def predict(self, architecture: Architecture) -> Prediction | None:
        """None until enough networks have been measured."""
        if len(self._rows) < MIN_NETWORKS:
            return None
        if self._costs is None:
            inputs, latencies = zip(*self._rows.values(), strict=True)
            self._costs = fit(np.stack(inputs), np.array(latencies))
        recent = self.errors[-RECENT:]
        error = math.sqrt(sum(e * e for e in recent) / len(recent)) if len(recent) >= MIN_ERRORS else None
        return Prediction(float(features(architecture, self.img_size) @ self._costs), error, len(recent))

    @property
    def median_error(self) -> float | None:
        """Median relative error of the predictions put to the test, or None without any."""
        recent = self.errors[-RECENT:]
        return float(np.median(np.abs(np.expm1(recent)))) if recent else None


@lru_cache(maxsize=KEPT)
def features(architecture: Architecture, img_size: int) -> Vector:
    """What the costs multiply: counts of blocks and of their work, summed over the network."""
    total = np.zeros(NUM_FEATURES)
    total[0] = 1.0
    return total + sum(by_stage(architecture, img_size))


def by_stage(architecture: Architecture, img_size: int) -> list[Vector]:
    """The same for each stage, with the patch merging before it; without what the network costs as a whole."""
    found = []
    for index, (stage, dim) in enumerate(zip(architecture.stages, architecture.dims, strict=True)):
        side = max(1, img_size // architecture.patch_size // 2**index)
        own = stage.depth * _block(stage, dim, side)
        if index:
            own[1] += side**2 * dim * (dim // 2) * 4  # patch merging
        found.append(own)
    return found


def _block(stage: StageSpec, dim: int, side: int) -> Vector:
    tokens, hidden, window = side**2, count_hidden(dim, stage.mlp_ratio), stage.window_size
    lo = stage.lo_heads / stage.num_heads if window else 0.0
    hi = 1.0 - lo if window else 0.0
    windows = math.ceil(side / window) ** 2 if window else 0
    projections = dim * dim * (tokens * (3 * hi + hi + lo + lo) + 2 * windows * lo)
    scores = stage.num_heads * tokens * (hi * window**2 + lo * windows)
    return np.array(
        [
            0.0,
            0.0,
            1.0,  # norms, feed-forward
            float(window == 1),
            float(window > 1 and hi > 0),
            float(window > 1 and lo > 0),
            2.0 * tokens * dim * hidden + projections,
            float(tokens * hidden),  # depthwise convolution, activation
            scores,
        ]
    )


def fit(inputs: Vector, latencies_ms: Vector) -> Vector:
    """Non-negative costs that fit relative latencies best, by ridge regression. inputs: `features`, (networks, features)."""
    relative = inputs / latencies_ms[:, None]
    scale = np.maximum(relative.mean(axis=0), 1e-30)
    design = relative / scale
    root = np.linalg.cholesky(design.T @ design / len(design) + RIDGE * np.eye(design.shape[1]))
    # Of the normal equations: 9 rows, not one for each network.
    costs, _ = nnls(root.T, np.linalg.solve(root, design.mean(axis=0)), maxiter=MAX_STEPS)
    solution: Vector = costs / scale
    return solution

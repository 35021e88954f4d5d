"""Predicted latency: a sum of costs over blocks, fitted to the networks that a study has measured.

Each block has a constant cost, a cost for each kind of attention it contains, and costs for the work it does at its
stage's width and map: what multiplies the costs is declared with the dimensions of the space. A prediction shows how
regular the device is, and spares the search measuring networks that surely exceed a limit, or that are probably slower
than one of no lower accuracy. Predicted latencies never put a network on a front.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from models.architecture import NUM_STAGES, Architecture, StageSpec
from search.latency.base import Latency
from search.latency.estimate import Estimate
from search.space import dimensions
from search.space.dimensions import Dimension, Spec

MIN_NETWORKS = 8  # measured before anything is predicted
MIN_ERRORS = 8  # predictions compared with measurements before one may rule a network out
RECENT = 30  # latest errors that count: the model improves with every measurement
CONFIDENCE = 0.99  # one-sided, of exceeding a limit
CACHED = 2**12  # networks whose features are cached: those that a search proposes come again and again
RIDGE = 1e-3
MAX_STEPS = 1000  # far more than a dozen costs need: SciPy raises an error beyond

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Prediction:
    """A predicted latency.

    Attributes:
        latency_ms: the expected latency.
        error: standard error of its logarithm, the root mean square of the latest errors; None before enough predictions
            were compared with measurements.
        num_errors: the number of predictions that `error` comes from, which are its degrees of freedom.
    """

    latency_ms: float
    error: float | None
    num_errors: int

    @property
    def estimate(self) -> Estimate | None:
        """The prediction with its error; None while that is unknown."""
        return None if self.error is None else Estimate(self.latency_ms, self.error, float(self.num_errors))

    def above(self, limit_ms: float, confidence: float) -> bool:
        """Whether the network is slower than a limit with this one-sided confidence; False while the error is unknown."""
        return self.estimate is not None and self.estimate.is_above(limit_ms, confidence)

    def latency(self) -> Latency:
        """The prediction as a latency without repetitions; only where the error is known."""
        assert self.estimate is not None
        return Latency(self.estimate, repetitions=0, warmup_runs=0, converged=False, seconds=0.0)


@dataclass
class BlockModel:
    """The block model of one target, and how far off its predictions were.

    Attributes:
        img_size: side of the deployed network's input, in pixels, where a network has none of its own.
        errors: logarithms of predicted over measured latency, each predicted before its network was measured.
    """

    img_size: int
    errors: list[float] = field(default_factory=list)
    _rows: dict[str, tuple[Vector, float]] = field(default_factory=dict)
    _costs: Vector | None = None

    def observe(self, architecture: Architecture, latency_ms: float, predicted_ms: float | None = None) -> None:
        """Learn from a measured latency, after recording the error of its prediction if the network is new.

        Args:
            latency_ms: as measured.
            predicted_ms: what was predicted before the measurement; None predicts it now.
        """
        if architecture.key not in self._rows:
            if predicted_ms is None and (predicted := self.predict(architecture)) is not None:
                predicted_ms = predicted.latency_ms
            if predicted_ms is not None:
                self.errors.append(math.log(predicted_ms / latency_ms))
        self._rows[architecture.key] = (features(architecture, self.img_size), latency_ms)
        self._costs = None

    def predict(self, architecture: Architecture) -> Prediction | None:
        """Predict a latency; None until enough networks have been measured."""
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
        """Median relative error of the latest predictions that were compared with measurements, or None without any."""
        recent = self.errors[-RECENT:]
        return float(np.median(np.abs(np.expm1(recent)))) if recent else None


@lru_cache(maxsize=CACHED)
def features(architecture: Architecture, img_size: int) -> Vector:
    """What the costs multiply: counts of blocks and of their work, summed over the network, (features,)."""
    side = architecture.side(img_size)
    network = _summed(dimensions.NETWORK_DIMENSIONS, architecture, architecture.embed_dim, side)
    return _vector({"network": 1.0, **network}) + sum(features_by_stage(architecture, img_size))


def product_macs(architecture: Architecture, img_size: int) -> float:
    """Multiply-accumulates of the matrix products in and between blocks.

    Those of stem, head, depthwise convolutions and norms are left out; `models.complexity.cost` counts them, but builds
    blocks.
    """
    macs = 0.0
    for stage, dim, features in zip(
        architecture.stages, architecture.dims, features_by_stage(architecture, img_size), strict=True
    ):
        amounts = dict(zip(columns(), features, strict=True))
        macs += amounts["patch merging"] + amounts["products"] + 2 * dim / stage.num_heads * amounts["scores"]
    return macs


def features_by_stage(architecture: Architecture, img_size: int) -> list[Vector]:
    """The same for each stage, with the patch merging before it; without what the network costs as a whole."""
    stages = []
    for index, (stage, dim) in enumerate(zip(architecture.stages, architecture.dims, strict=True)):
        side = max(1, architecture.side(img_size) // architecture.patch_size // 2**index)
        features = stage.depth * _vector(_summed(dimensions.STAGE_DIMENSIONS, stage, dim, side))
        if index:
            features[1] += side**2 * dim * (dim // 2) * 4  # patch merging: a 2x2 convolution
        stages.append(features)
    return stages


def columns() -> tuple[str, ...]:
    """Names of the costs: of a network, of patch merging, and those that the dimensions declare."""
    return _columns(dimensions.STAGE_DIMENSIONS, dimensions.NETWORK_DIMENSIONS)


@lru_cache
def _columns(
    of_stages: tuple[Dimension[StageSpec], ...], of_network: tuple[Dimension[Architecture], ...]
) -> tuple[str, ...]:
    stage = StageSpec(depth=1)
    names = [name for dimension in of_stages if dimension.costs for name in dimension.costs(stage, 1, 1)]
    network = Architecture(1, (stage,) * NUM_STAGES)
    names += [name for dimension in of_network if dimension.costs for name in dimension.costs(network, 1, 1)]
    return ("network", "patch merging", *dict.fromkeys(names))


def _summed(declared: Sequence[Dimension[Spec]], spec: Spec, dim: int, side: int) -> dict[str, float]:
    """What the dimensions of a stage or network add to each cost, by its name."""
    total: dict[str, float] = {}
    for dimension in declared:
        if dimension.costs is not None:
            for name, amount in dimension.costs(spec, dim, side).items():
                total[name] = total.get(name, 0.0) + amount
    return total


def _vector(amounts: Mapping[str, float]) -> Vector:
    return np.array([amounts.get(name, 0.0) for name in columns()])


def fit(inputs: Vector, latencies_ms: Vector) -> Vector:
    """Fit non-negative costs to relative latencies by ridge regression.

    Args:
        inputs: `features` of networks, (networks, features).
        latencies_ms: as measured, (networks,).

    Returns:
        The costs in milliseconds, (features,); 0 of what no network contains.
    """
    relative = inputs / latencies_ms[:, None]
    scale = relative.mean(axis=0)
    is_known = scale > 0
    design = relative / np.where(is_known, scale, 1.0)
    root = np.linalg.cholesky(design.T @ design / len(design) + RIDGE * np.eye(design.shape[1]))
    # The normal equations have one row per cost, not one per network.
    costs, _ = nnls(root.T, np.linalg.solve(root, design.mean(axis=0)), maxiter=MAX_STEPS)
    solution: Vector = np.divide(costs, scale, out=np.zeros_like(costs), where=is_known)
    return solution

"""Recorded tables: the scores and latencies of many networks of a space, so that samplers are compared in minutes.

A space has too many networks to record all of them. Accuracy and latency of the others are interpolated by Gaussian
processes, as in surrogate benchmarks (Eggensperger et al., AAAI 2015). The sampler's models are Gaussian processes too, of
other inputs, which may favour it. The interpolation is the truth of comparisons; a score differs from it by an error that is
the same whenever a search scores the network. `TableError` says how far the interpolation is off for networks that it was
not fitted to.
"""

from __future__ import annotations

import gzip
import json
import math
import warnings
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from omegaconf import OmegaConf
from scipy.optimize import nnls
from scipy.stats import kendalltau
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel
from sklearn.model_selection import KFold, cross_val_predict

from models.architecture import Architecture
from models.complexity import cost
from search import UserError, one_line
from search.commands.cli import build
from search.files import replacing
from search.space.space import PATTERN, Parameters, Space
from search.study.pareto import front_indices, mean_accuracy

FORMAT = 1  # raise it with every change of the files or of the inputs of the interpolation
LATENCY_ERROR = 0.01  # standard error of a measurement's logarithm, as searches ask for
NUM_FOLDS = 10
POPULATION, GENERATIONS = 400, 60  # of the search for the best front; it takes a minute

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Network:
    """A recorded network.

    Attributes:
        parameters: in the space of the table.
        accuracy: score on validation images, in [0, 1].
        score_seconds: duration of scoring.
        latency_ms: measured latency; None if the search did not measure it.
        measure_seconds: duration of converting and measuring; 0 without a measurement.
    """

    parameters: Parameters
    accuracy: float
    score_seconds: float
    latency_ms: float | None
    measure_seconds: float


@dataclass(frozen=True)
class TableError:
    """Error of the interpolation, for networks that were left out.

    Attributes:
        deviation: root mean square of accuracies, or of logarithms of latencies.
        tau: Kendall's tau of interpolated and recorded values.
        num_networks: how many networks were left out, in turns.
    """

    deviation: float
    tau: float
    num_networks: int

    @classmethod
    def of(cls, interpolated: Vector, recorded: Vector) -> Self:
        deviation = float(np.sqrt(np.mean((interpolated - recorded) ** 2)))
        return cls(deviation, float(kendalltau(interpolated, recorded).statistic), len(recorded))


class Table:
    """A recorded space.

    Args:
        provenance: the commands that recorded it, the machine and the versions.
        config: section `space` of the configuration, and `in_chans`, `num_classes` and `img_size` of the images.
        networks: what was recorded.
        kernels: parameters of the kernels of "accuracy" and "latency"; those that are missing are fitted.
        best: parameters of the best front that is known; searched for if there are none.

    Raises:
        UserError: if the table cannot compare searches.
    """

    def __init__(
        self,
        provenance: dict[str, Any],
        config: dict[str, Any],
        networks: Sequence[Network],
        kernels: Mapping[str, list[float]],
        best: Sequence[Parameters],
    ) -> None:
        self.provenance, self.config, self.networks = provenance, config, list(networks)
        self.space: Space = build(OmegaConf.create(config["space"]))
        self._values: dict[str, tuple[float, float]] = {}
        architectures = [self.space.architecture(network.parameters) for network in self.networks]
        described = np.stack([self._describe(architecture) for architecture in architectures])
        deviations = described.std(axis=0)
        self._means, self._scales = described.mean(axis=0), np.where(deviations > 1e-9, deviations, 1.0)
        self._inputs = (described - self._means) / self._scales
        self._accuracies = np.array([network.accuracy for network in self.networks])
        self._is_measured = np.array([network.latency_ms is not None for network in self.networks])
        self._logs = np.log([network.latency_ms for network in self.networks if network.latency_ms is not None])
        self._accuracy = fit(self._inputs, self._accuracies, kernels.get("accuracy"))
        self._latency = fit(self._inputs[self._is_measured], self._logs, kernels.get("latency"))
        if self._fastest_ms == self.slowest_ms:
            raise UserError(
                "the space has one width; a comparison goes over the latencies of LITv2 patterns of several widths"
            )
        self._best = list(best) or self._search()

    @classmethod
    def fitted(cls, provenance: dict[str, Any], config: dict[str, Any], networks: Sequence[Network]) -> Self:
        """Make a table of what was recorded. It takes minutes. Arguments and errors: as of the class."""
        return cls(provenance, config, networks, kernels={}, best=())

    @classmethod
    def read(cls, file: Path) -> Self:
        """Read a table that `write` wrote. Raises: UserError if the file is not such a table."""
        try:
            with gzip.open(file, "rt", encoding="utf-8") as text:
                body = json.load(text)
            if body["format"] != FORMAT:
                raise ValueError(f"format {body['format']} instead of {FORMAT}")
            networks = [Network(**network) for network in body["networks"]]
            table = cls(body["provenance"], body["config"], networks, body["kernels"], body["best"])
            for network in networks:
                table.space.check(network.parameters)
        except (OSError, EOFError, ValueError, KeyError, TypeError, UserError) as error:
            raise UserError(f"{file} is not a table of this version ({one_line(error)}); record it again") from error
        return table

    def write(self, path: Path) -> None:
        """Write the table, and what was fitted to it."""
        body = {
            "format": FORMAT,
            "provenance": self.provenance,
            "config": self.config,
            "kernels": {
                "accuracy": list(self._accuracy.kernel_.theta),
                "latency": list(self._latency.kernel_.theta),
            },
            "best": self._best,
            "networks": [asdict(network) for network in self.networks],
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as new, new.open("wb") as file, gzip.GzipFile("", "wb", fileobj=file, mtime=0) as out:
            out.write(json.dumps(body).encode())

    def errors(self) -> dict[str, TableError]:
        """Interpolate networks that are left out, a tenth at a time. The kernels are those of all networks."""
        folds = KFold(NUM_FOLDS, shuffle=True, random_state=0)
        accuracies = cross_val_predict(fixed(self._accuracy), self._inputs, self._accuracies, cv=folds)
        logs = cross_val_predict(fixed(self._latency), self._inputs[self._is_measured], self._logs, cv=folds)
        return {"accuracy": TableError.of(accuracies, self._accuracies), "latency": TableError.of(logs, self._logs)}

    def values(self, architectures: Sequence[Architecture]) -> tuple[Vector, Vector]:
        """Interpolate. Returns accuracies and latencies in ms, (networks,) each: the truth of comparisons."""
        unknown = list({each.key: each for each in architectures if each.key not in self._values}.values())
        if unknown:
            inputs = (np.stack([self._describe(each) for each in unknown]) - self._means) / self._scales
            accuracies, logs = self._accuracy.predict(inputs), self._latency.predict(inputs)
            for architecture, accuracy, log in zip(unknown, accuracies, logs, strict=True):
                self._values[architecture.key] = (float(np.clip(accuracy, 0, 1)), math.exp(log))
        rows = np.array([self._values[architecture.key] for architecture in architectures]).reshape(-1, 2)
        return rows[:, 0], rows[:, 1]

    def score(self, architecture: Architecture, seed: int) -> float:
        """The accuracy that a search sees. seed: of the search; others have other supernets, and so other errors."""
        (accuracy,), _ = self.values([architecture])
        return float(np.clip(accuracy + self.score_deviation * normal_of(architecture, seed), 0, 1))

    def measured_ms(self, architecture: Architecture, rng: np.random.Generator) -> float:
        """The latency that a search sees: each measurement has an error."""
        _, (latency_ms,) = self.values([architecture])
        return float(latency_ms * math.exp(LATENCY_ERROR * rng.normal()))

    @property
    def score_deviation(self) -> float:
        """Standard deviation of recorded scores about the interpolation."""
        return float(np.sqrt(self._accuracy.kernel_.k2.noise_level) * self._accuracies.std())

    def seconds(self, architecture: Architecture) -> tuple[float, float]:
        """Seconds that scoring and measuring the network take: lines in multiply-accumulates, fitted to the recorded."""
        inputs = np.array([1.0, self.cost(architecture)[1]])
        return float(inputs @ self._seconds[0]), float(inputs @ self._seconds[1])

    def cost(self, architecture: Architecture) -> tuple[int, int]:
        """Parameters and multiply-accumulates."""
        return cost(architecture, **self.config["images"])

    def gain(self, architectures: Sequence[Architecture]) -> float:
        """How far networks reach from what the LITv2 pattern at all widths reaches (0) to the best known front (1).

        Both are mean accuracies over latencies at equal ratios, within those of the pattern, of the interpolated values.
        """
        pattern, best = self._ends
        return (self._mean_accuracy(architectures) - pattern) / (best - pattern)

    @cached_property
    def best(self) -> list[Architecture]:
        """The best front that is known."""
        return [self.space.architecture(parameters) for parameters in self._best]

    @cached_property
    def pattern(self) -> list[Architecture]:
        """The LITv2 pattern at every width."""
        baselines = self.space.baselines()
        return [self.space.architecture(p) for name, p in baselines.items() if name.startswith(PATTERN)]

    @cached_property
    def _ends(self) -> tuple[float, float]:
        pattern, best = self._mean_accuracy(self.pattern), self._mean_accuracy(self.best)
        if not best > pattern:
            raise UserError("no network of the table is better than the LITv2 pattern: there is nothing to find in it")
        return pattern, best

    @cached_property
    def _fastest_ms(self) -> float:
        return float(self.values(self.pattern)[1].min())

    @cached_property
    def slowest_ms(self) -> float:
        """Latency of the slowest pattern, where the comparison ends."""
        return float(self.values(self.pattern)[1].max())

    def _mean_accuracy(self, architectures: Sequence[Architecture]) -> float:
        accuracies, latencies = self.values(architectures)
        return mean_accuracy(list(accuracies), list(latencies), [self._fastest_ms], [self.slowest_ms])

    @cached_property
    def _seconds(self) -> tuple[Vector, Vector]:
        macs = np.array([self.cost(self.space.architecture(network.parameters))[1] for network in self.networks])
        design = np.column_stack((np.ones(len(macs)), macs))
        score = np.array([network.score_seconds for network in self.networks])
        measure = np.array([network.measure_seconds for network in self.networks])[self._is_measured]
        return robust_line(design, score), robust_line(design[self._is_measured], measure)

    def _describe(self, architecture: Architecture) -> Vector:
        """Plain numbers about the network: logarithms of its size, and of each stage what it is built of."""
        num_params, num_macs = self.cost(architecture)
        numbers = [math.log(architecture.embed_dim), math.log(num_params), math.log(num_macs)]
        numbers.append(math.log(architecture.side(self.config["images"]["img_size"])))
        for stage in architecture.stages:
            window, heads = stage.window_size, stage.num_heads
            share = stage.lo_heads / heads if window > 1 else 0.0
            kinds = [float(window == 1), float(window > 1), math.log2(window) if window > 1 else 0.0, share]
            numbers += [float(stage.depth), *kinds, float(share == 1.0), math.log(heads), stage.mlp_ratio]
        return np.array(numbers)

    def _search(self) -> list[Parameters]:
        """Search the interpolation for its front, by evolution. Returns the parameters of its members."""
        rng = np.random.default_rng(0)
        parents = [network.parameters for network in self.networks] + list(self.space.baselines().values())
        for _ in range(GENERATIONS):
            children = [
                self.space.child([parents[index] for index in rng.integers(len(parents), size=2)], 0.1, rng)
                for _ in range(POPULATION)
            ]
            candidates = {self.space.architecture(parameters): parameters for parameters in [*children, *parents]}
            accuracies, latencies = self.values(list(candidates))
            listed = list(candidates.values())
            parents = [listed[index] for index in front_indices(accuracies, latencies)]
        return parents


def fit(inputs: Vector, values: Vector, theta: Sequence[float] | None) -> GaussianProcessRegressor:
    """Fit a Gaussian process with a length scale for each input. theta: the kernel's parameters, if they are known."""
    scales = np.ones(inputs.shape[1])
    kernel = ConstantKernel(1.0) * Matern(scales, (0.1, 1e3), nu=2.5) + WhiteKernel(1e-2, (1e-6, 1.0))
    if theta is not None:
        kernel = kernel.clone_with_theta(np.array(theta))
    optimizer = "fmin_l_bfgs_b" if theta is None else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # inputs that do not matter end at the longest scale
        return GaussianProcessRegressor(kernel, optimizer=optimizer, normalize_y=True).fit(inputs, values)


def fixed(model: GaussianProcessRegressor) -> GaussianProcessRegressor:
    """A Gaussian process with the kernel of a fitted one, to be fitted to other networks."""
    return GaussianProcessRegressor(model.kernel_, optimizer=None, normalize_y=True)


def robust_line(design: Vector, seconds: Vector) -> Vector:
    """Non-negative line through times, without the tenth that took longest: other processes had the machine."""
    usual = seconds <= np.quantile(seconds, 0.9)
    line: Vector = nnls(design[usual], seconds[usual])[0]
    return line


def normal_of(architecture: Architecture, seed: int) -> float:
    """A standard normal number that depends on the network and a seed alone."""
    return float(np.random.default_rng([zlib.crc32(architecture.key.encode()), seed]).normal())

"""How far accuracies can be trusted to rank networks: their spread over their noise, and whose ranking agrees with whose."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import kendalltau

from models.architecture import Architecture
from search.space.dimensions import Value

SPREAD_WANTED = 3.0  # times the noise of seeds
TAU_WANTED = 0.6
RESAMPLES = 1000
COVERAGE = 0.9  # of the intervals of tau


@dataclass(frozen=True)
class Judged:
    """A network. score: what the search's evaluator says. accuracies: of long trainings of it alone, one for each seed."""

    architecture: Architecture
    num_params: int
    num_macs: int
    score: float
    accuracies: tuple[float, ...]

    @property
    def accuracy(self) -> float:
        return statistics.fmean(self.accuracies)


@dataclass(frozen=True)
class Tau:
    """Kendall's tau of two rankings, with the 90 % interval that drawing the networks anew would give."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


@dataclass(frozen=True)
class Effect:
    """What the evaluator's score gains from the lowest to the highest value of a dimension, the rest being equal.

    standard_error: over pairs of networks; None for fewer than two.
    """

    dimension: str
    lowest: Value
    highest: Value
    num_pairs: int
    gain: float
    standard_error: float | None


@dataclass(frozen=True)
class Fidelity:
    """spread: standard deviation of the networks' accuracies. seed_noise: what seeds move one of them by, alike."""

    num_networks: int
    num_seeds: int
    spread: float
    seed_noise: float
    seeds: Tau
    evaluator: Tau
    macs: Tau
    params: Tau

    @property
    def spread_over_noise(self) -> float:
        return self.spread / self.seed_noise if self.seed_noise else math.inf

    @property
    def meaningful(self) -> bool:
        return not self.advice()

    def advice(self) -> list[str]:
        """What is wrong, and what to do about it."""
        found = []
        if self.spread_over_noise < SPREAD_WANTED:
            found.append(
                f"networks differ by only {self.spread_over_noise:.1f} times what a seed moves them by ({SPREAD_WANTED:g} "
                "is wanted): widen the space (width moves accuracy most), take harder data, or train longer"
            )
        if self.evaluator.value < TAU_WANTED:
            found.append(
                f"the evaluator ranks them unlike long trainings (tau {self.evaluator}, {TAU_WANTED:g} is wanted): take "
                "accuracy=supernet unless it is that, a larger data.val_size, or more train.max_epochs"
            )
        if self.evaluator.value < self.macs.value:
            found.append(
                f"counting multiply-accumulates ranks them as well (tau {self.macs}): take more train.max_epochs, or a "
                "space in which unlike networks cost alike"
            )
        return found


def judge(networks: Sequence[Judged]) -> Fidelity:
    """networks: at least two, each trained with the same number of seeds, two or more."""
    by_seed = np.array([one.accuracies for one in networks])  # (networks, seeds)
    means = by_seed.mean(1)
    pairs = list(itertools.combinations(range(by_seed.shape[1]), 2))

    def against_long(values: Sequence[float]) -> Tau:
        array = np.array(values)
        return resampled(lambda rows: tau(array[rows], means[rows]), len(networks))

    return Fidelity(
        num_networks=len(networks),
        num_seeds=by_seed.shape[1],
        spread=float(means.std(ddof=1)),
        seed_noise=float(np.sqrt(by_seed.var(1, ddof=1).mean())),
        seeds=resampled(
            lambda rows: statistics.fmean(tau(by_seed[rows, a], by_seed[rows, b]) for a, b in pairs), len(networks)
        ),
        evaluator=against_long([one.score for one in networks]),
        macs=against_long([one.num_macs for one in networks]),
        params=against_long([one.num_params for one in networks]),
    )


def tau(x: np.ndarray, y: np.ndarray) -> float:
    """Kendall's tau-b; 0 where one of them ranks nothing."""
    value = float(kendalltau(x, y).statistic)
    return 0.0 if math.isnan(value) else value


def resampled(statistic: Callable[[np.ndarray], float], count: int) -> Tau:
    """A statistic of rows, and its interval over rows drawn with replacement."""
    rng = np.random.default_rng(0)
    values = [statistic(rng.integers(count, size=count)) for _ in range(RESAMPLES)]
    low, high = np.quantile(values, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    return Tau(statistic(np.arange(count)), float(low), float(high))


def effects(gains: Mapping[str, Sequence[float]], dimensions: Mapping[str, Sequence[Value]]) -> list[Effect]:
    """gains: of each dimension, from pairs of networks; those without any are left out. The greatest effect first."""
    found = []
    for dimension, values in gains.items():
        if not values:
            continue
        error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
        lowest, *_, highest = dimensions[dimension]
        found.append(Effect(dimension, lowest, highest, len(values), statistics.fmean(values), error))
    return sorted(found, key=lambda effect: -abs(effect.gain))

"""Statistics of how far accuracies can be trusted to rank networks.

The signal is the spread of accuracies over networks, the noise that over seeds. Kendall's tau says how well scores, or costs
such as multiply-accumulates, rank networks compared with long standalone trainings. `search.check` reports these figures.
"""

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

MIN_SIGNAL_TO_NOISE = 3.0
MIN_TAU = 0.6
NUM_RESAMPLES = 1000
CONFIDENCE = 0.9  # of the intervals of tau


@dataclass(frozen=True)
class EvaluatedNetwork:
    """A network with its score and its accuracies.

    Args:
        architecture: The network.
        num_params: Number of parameters.
        num_macs: Number of multiply-accumulates.
        score: Accuracy that the search's evaluator gives it, in [0, 1].
        accuracies: Accuracies of long standalone trainings, one per seed, in [0, 1].
    """

    architecture: Architecture
    num_params: int
    num_macs: int
    score: float
    accuracies: tuple[float, ...]

    @property
    def accuracy(self) -> float:
        """Mean accuracy over seeds."""
        return statistics.fmean(self.accuracies)


@dataclass(frozen=True)
class Tau:
    """Kendall's tau of two rankings, with the 90 % bootstrap interval over networks."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


@dataclass(frozen=True)
class Effect:
    """Change of the score from the lowest to the highest value of one dimension, all others being equal.

    Args:
        dimension: Name of the dimension.
        lowest: Its lowest value.
        highest: Its highest value.
        num_pairs: Number of pairs of networks that were compared.
        gain: Mean change of the score.
        standard_error: Standard error of the gain over pairs; None for fewer than two.
    """

    dimension: str
    lowest: Value
    highest: Value
    num_pairs: int
    gain: float
    standard_error: float | None


@dataclass(frozen=True)
class SignalQuality:
    """How well accuracies tell networks apart, and what ranks them as long trainings do.

    Args:
        num_networks: Number of networks.
        num_seeds: Number of standalone trainings per network.
        spread: Standard deviation over networks of their mean accuracy.
        seed_noise: Standard deviation over seeds of one network's accuracy, pooled over networks.
        seeds: Tau of the accuracies of one seed with those of another.
        evaluator: Tau of scores with mean accuracies.
        macs: Tau of multiply-accumulates with mean accuracies.
        params: Tau of numbers of parameters with mean accuracies.
    """

    num_networks: int
    num_seeds: int
    spread: float
    seed_noise: float
    seeds: Tau
    evaluator: Tau
    macs: Tau
    params: Tau

    @property
    def signal_to_noise(self) -> float:
        """Spread over seed noise; infinite if all seeds agree."""
        return self.spread / self.seed_noise if self.seed_noise else math.inf

    @property
    def meaningful(self) -> bool:
        """Whether a search can rely on the scores."""
        return not self.advice()

    def advice(self) -> list[str]:
        """Return one message per problem: what is wrong and what to do."""
        messages = []
        if self.signal_to_noise < MIN_SIGNAL_TO_NOISE:
            messages.append(
                f"accuracies have a signal-to-noise ratio of {self.signal_to_noise:.1f} (at least {MIN_SIGNAL_TO_NOISE:g} "
                "is needed): widen the space (width changes accuracy most), choose harder data, or train longer"
            )
        if self.evaluator.value < MIN_TAU:
            messages.append(
                f"the evaluator does not rank networks as long trainings do (tau {self.evaluator}, at least {MIN_TAU:g} is "
                "needed): choose accuracy=supernet if you have not, a larger data.val_size, or more train.max_epochs"
            )
        if self.evaluator.value < self.macs.value:
            messages.append(
                f"multiply-accumulates rank networks better than the evaluator (tau {self.macs}): choose more "
                "train.max_epochs, or a space in which different networks cost the same"
            )
        return messages


def assess(networks: Sequence[EvaluatedNetwork]) -> SignalQuality:
    """Compute the statistics of evaluated networks.

    Args:
        networks: At least two, all with the same number of accuracies, which is two or more.
    """
    accuracies = np.array([network.accuracies for network in networks])  # (networks, seeds)
    means = accuracies.mean(1)
    pairs = list(itertools.combinations(range(accuracies.shape[1]), 2))

    def tau_with_means(values: Sequence[float]) -> Tau:
        array = np.array(values)
        return bootstrap(lambda rows: tau(array[rows], means[rows]), len(networks))

    def tau_of_seeds(rows: np.ndarray) -> float:
        return statistics.fmean(tau(accuracies[rows, first], accuracies[rows, second]) for first, second in pairs)

    return SignalQuality(
        num_networks=len(networks),
        num_seeds=accuracies.shape[1],
        spread=float(means.std(ddof=1)),
        seed_noise=float(np.sqrt(accuracies.var(1, ddof=1).mean())),
        seeds=bootstrap(tau_of_seeds, len(networks)),
        evaluator=tau_with_means([network.score for network in networks]),
        macs=tau_with_means([network.num_macs for network in networks]),
        params=tau_with_means([network.num_params for network in networks]),
    )


def tau(x: np.ndarray, y: np.ndarray) -> float:
    """Return Kendall's tau-b of two rankings, (networks,) each; 0 if all values of one are equal."""
    value = float(kendalltau(x, y).statistic)
    return 0.0 if math.isnan(value) else value


def bootstrap(statistic: Callable[[np.ndarray], float], count: int) -> Tau:
    """Return a statistic of the row numbers 0 to count - 1, with its percentile interval over resampled rows."""
    rng = np.random.default_rng(0)
    values = [statistic(rng.integers(count, size=count)) for _ in range(NUM_RESAMPLES)]
    low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Tau(statistic(np.arange(count)), float(low), float(high))


def summarise_effects(gains: Mapping[str, Sequence[float]], dimensions: Mapping[str, Sequence[Value]]) -> list[Effect]:
    """Summarise the gains of each dimension, the largest effect first.

    Args:
        gains: For each dimension, the differences of score of pairs of networks; a dimension without any is left out.
        dimensions: The values of each dimension, in ascending order.
    """
    effects = []
    for dimension, values in gains.items():
        if not values:
            continue
        error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
        lowest, *_, highest = dimensions[dimension]
        effects.append(Effect(dimension, lowest, highest, len(values), statistics.fmean(values), error))
    return sorted(effects, key=lambda effect: -abs(effect.gain))

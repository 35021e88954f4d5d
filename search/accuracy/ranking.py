"""Statistics of how far accuracies can be trusted to rank networks.

The signal is the spread of accuracies over networks, the noise that over seeds. Kendall's tau says how well scores, or costs
such as multiply-accumulates, rank networks compared with long standalone trainings. `search.check` reports these figures,
and verdict.py says what follows from them.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.stats

from models.architecture import Architecture
from search.accuracy.base import Accuracy
from search.accuracy.bootstrap import CONFIDENCE, Array, Statistic, resample, tau
from search.accuracy.paired import paired_difference
from search.space.dimensions import Value

GROUP_SIZE = 4  # networks of about equal cost; groups of 3 have too few pairs, those of 8 differ too much in cost
MAX_SAMPLING_SHARE = 0.5  # of the variance of scores: that more of it is sampling error does not make their prediction surer


@dataclass(frozen=True)
class EvaluatedNetwork:
    """A network with its score and its accuracies.

    Args:
        architecture: The network.
        num_params: Number of parameters.
        num_macs: Number of multiply-accumulates.
        score: Accuracy that the search's evaluator gives it.
        trainings: Accuracies of long standalone trainings, one per seed.
    """

    architecture: Architecture
    num_params: int
    num_macs: int
    score: Accuracy
    trainings: tuple[Accuracy, ...]

    @property
    def accuracies(self) -> tuple[float, ...]:
        """Accuracies of the long trainings, in [0, 1]."""
        return tuple(training.accuracy for training in self.trainings)

    @property
    def accuracy(self) -> float:
        """Mean accuracy over seeds."""
        return statistics.fmean(self.accuracies)


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
class EqualCost:
    """Taus over pairs of networks of about equal cost, where counting multiply-accumulates says little.

    Args:
        num_groups: Number of groups, by multiply-accumulates; only pairs within a group count.
        num_pairs: Number of these pairs.
        cost_ratio: Most multiply-accumulates of a group over its fewest, median over groups.
        evaluator: Tau of scores with mean accuracies.
        macs: Tau of multiply-accumulates with mean accuracies.
    """

    num_groups: int
    num_pairs: int
    cost_ratio: float
    evaluator: Statistic
    macs: Statistic


@dataclass(frozen=True)
class SignalQuality:
    """How well accuracies tell networks apart, and what ranks them as long trainings do.

    Args:
        num_networks: Number of networks.
        num_seeds: Number of standalone trainings per network.
        spread: Standard deviation over networks of their accuracy, without the noise of seeds.
        seed_noise: Standard deviation over seeds of one network's accuracy, pooled over networks.
        signal_to_noise: Spread over seed noise.
        seeds: Tau of the accuracies of one seed with those of another.
        evaluator: Tau of scores with mean accuracies.
        macs: Tau of multiply-accumulates with mean accuracies.
        params: Tau of numbers of parameters with mean accuracies.
        over_macs: Tau of scores minus tau of multiply-accumulates, over the same networks.
        over_params: Tau of scores minus tau of numbers of parameters, over the same networks.
        equal_cost: Taus within groups of about equal cost.
        slope: Change of accuracy with score, of the best linear prediction.
        residual: Standard deviation of accuracies around this prediction, beyond the noise of seeds and the sampling error
            of validation images: what scores do not tell about long trainings.
    """

    num_networks: int
    num_seeds: int
    spread: float
    seed_noise: float
    signal_to_noise: Statistic
    seeds: Statistic
    evaluator: Statistic
    macs: Statistic
    params: Statistic
    over_macs: Statistic
    over_params: Statistic
    equal_cost: EqualCost
    slope: float
    residual: float


def assess(networks: Sequence[EvaluatedNetwork]) -> SignalQuality:
    """Compute the statistics of evaluated networks.

    Args:
        networks: At least three, all with the same number of accuracies, which is two or more.
    """
    accuracies = np.array([network.accuracies for network in networks])  # (networks, seeds)
    count, num_seeds = accuracies.shape
    means, variances = accuracies.mean(1), accuracies.var(1, ddof=1)
    scores, macs, params = (
        np.array(values, float)
        for values in zip(*((n.score.accuracy, n.num_macs, n.num_params) for n in networks), strict=True)
    )
    weights = resample(count)

    def tau_with_means(values: Array) -> Array:
        return tau(values, means, weights)

    of_scores, of_macs, of_params = map(tau_with_means, (scores, macs, params))
    of_seeds = [tau(first, second, weights) for first, second in itertools.combinations(accuracies.T, 2)]
    slope, residual = unexplained(networks)
    return SignalQuality(
        num_networks=count,
        num_seeds=num_seeds,
        spread=math.sqrt(max(0.0, means.var(ddof=1) - variances.mean() / num_seeds)),
        seed_noise=math.sqrt(variances.mean()),
        signal_to_noise=signal_to_noise(accuracies),
        seeds=Statistic.of(np.mean(of_seeds, axis=0)),
        evaluator=Statistic.of(of_scores),
        macs=Statistic.of(of_macs),
        params=Statistic.of(of_params),
        over_macs=Statistic.of(of_scores - of_macs),
        over_params=Statistic.of(of_scores - of_params),
        equal_cost=within_groups(scores, macs, means, weights),
        slope=slope,
        residual=residual,
    )


def signal_to_noise(accuracies: Array) -> Statistic:
    """Divide the spread of networks by the noise of seeds, with the interval that follows from the F distribution.

    A bootstrap would contain the truth in 83 % of samples of 12 networks, in 87 % of those of 24.

    Args:
        accuracies: (networks, seeds).
    """
    count, num_seeds = accuracies.shape
    between, within = num_seeds * accuracies.mean(1).var(ddof=1), accuracies.var(1, ddof=1).mean()
    if within == 0:
        return Statistic(*[math.inf if between > 0 else 0.0] * 3)
    quantiles = scipy.stats.f.ppf([(1 + CONFIDENCE) / 2, (1 - CONFIDENCE) / 2], count - 1, count * (num_seeds - 1))
    ratios = (
        between / within / np.array([1.0, *quantiles])
    )  # 1 + num_seeds * (spread / noise) ** 2: value, low end, high end
    return Statistic(*(float(value) for value in np.sqrt(np.maximum(ratios - 1, 0) / num_seeds)))


def within_groups(scores: Array, macs: Array, accuracies: Array, weights: Array) -> EqualCost:
    """Compute taus over pairs within groups of about equal cost.

    Args:
        scores: (networks,).
        macs: (networks,).
        accuracies: Of long trainings, (networks,).
        weights: (resamples, networks).
    """
    groups = np.array_split(np.argsort(macs, kind="stable"), max(1, round(len(macs) / GROUP_SIZE)))
    pairs = np.zeros((len(macs), len(macs)))
    for group in groups:
        pairs[np.ix_(group, group)] = 1.0
    return EqualCost(
        num_groups=len(groups),
        num_pairs=sum(math.comb(len(group), 2) for group in groups),
        cost_ratio=statistics.median(float(macs[group].max() / macs[group].min()) for group in groups),
        evaluator=Statistic.of(tau(scores, accuracies, weights, pairs)),
        macs=Statistic.of(tau(macs, accuracies, weights, pairs)),
    )


def unexplained(networks: Sequence[EvaluatedNetwork]) -> tuple[float, float]:
    """Predict accuracies from scores.

    Returns:
        The slope if scores had no sampling error, and the standard deviation of accuracies around the prediction beyond the
        noise of seeds and the sampling error of validation images.
    """
    scores = np.array([network.score.accuracy for network in networks])
    accuracies = np.array([network.accuracies for network in networks])  # (networks, seeds)
    (of_scores, covariance), (_, of_means) = np.cov(scores, accuracies.mean(1))
    if of_scores == 0:
        return 0.0, math.sqrt(of_means)
    count, num_seeds = accuracies.shape
    by_seed = zip(*(network.trainings for network in networks), strict=True)
    noise = accuracies.var(1, ddof=1).mean() / num_seeds + statistics.fmean(map(image_variance, by_seed))
    sampling = min(image_variance([network.score for network in networks]), MAX_SAMPLING_SHARE * of_scores)
    slope = covariance / (of_scores - sampling)
    variance = (of_means - covariance**2 / of_scores) * (count - 1) / (count - 2)
    return float(slope), math.sqrt(max(0.0, variance - noise - slope * covariance / of_scores * sampling))


def image_variance(accuracies: Sequence[Accuracy]) -> float:
    """Estimate the variance of an accuracy over validation images, without what all networks share on the same images.

    It is half the variance of the difference of two networks, averaged over neighbours in accuracy.
    """
    ordered = sorted(accuracies, key=lambda accuracy: accuracy.accuracy)
    if len(ordered) < 2:
        return sum(accuracy.standard_error**2 for accuracy in ordered)
    return statistics.fmean(paired_difference(high, low)[1] ** 2 / 2 for low, high in itertools.pairwise(ordered))


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

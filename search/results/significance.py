"""How much of what a search reports is more than noise: members of its front, and its gain over the known networks.

Noise here is that of the search's own values: sampling of validation images, and timing. A study whose networks all score
alike has a front too, of networks that were lucky; this module says so.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from search.accuracy.base import Accuracy
from search.accuracy.paired import paired_difference
from search.study.front import evaluated, front
from search.study.pareto import hypervolume
from search.study.trial import SAMPLED, TrialRecord

Z_95 = NormalDist().inv_cdf(0.975)
NUM_DRAWS = 200  # of a search without any gain; their mean is known within 1/14 of their standard deviation
MIN_SCORED = 30  # networks, before a running search can warn that it tells nothing apart
LOOK_FACTOR = 1.5  # between the numbers of trials at which a running search is looked at

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Significance:
    """What a study has told apart.

    Attributes:
        num_scored: different networks with an accuracy.
        num_members: networks of the front.
        num_told_apart: members whose accuracy differs from the next one's by more than their paired error, at 95 %.
        num_known: networks that the search started with, and measured.
        surely_improves: whether the most accurate member is more accurate than the least accurate one, at 95 %. It is the
            best of all networks that were scored, by their errors too; the test allows for that (Bonferroni).
        gain: hypervolume of the front less that of the known networks.
        noise: what `gain` would be in the mean if no network were better than the known ones.
        noise_limit: what it would exceed in one of 20 such searches.
    """

    num_scored: int
    num_members: int
    num_told_apart: int
    num_known: int
    surely_improves: bool
    gain: float
    noise: float
    noise_limit: float

    @property
    def share_beyond_noise(self) -> float:
        """Share of the gain that noise does not explain; 0 if noise alone may explain all of it."""
        return 1 - self.noise / self.gain if self.num_known and self.gain > self.noise_limit else 0.0

    @property
    def tells_nothing_apart(self) -> bool:
        """Whether neither the front's accuracies nor its gain are more than noise."""
        return not self.surely_improves and self.share_beyond_noise == 0


def significance(trials: Sequence[TrialRecord], references_ms: Sequence[float]) -> Significance | None:
    """Find out what the finished trials of a study have told apart; None as long as there is no front."""
    members = sorted(front(trials), key=lambda member: member.accuracy)
    if not members:
        return None
    scored = evaluated(trials)
    steps = itertools.pairwise(members)
    difference, error = paired_difference(_accuracy(members[-1]), _accuracy(members[0]))
    known = np.array([trial.origin != SAMPLED and trial.result.measured for trial in scored])
    gain, noise, limit = _gain_and_noise(scored, known, references_ms)
    return Significance(
        num_scored=len(scored),
        num_members=len(members),
        num_told_apart=sum(surely_more_accurate(high, low) for low, high in steps),
        num_known=int(known.sum()),
        surely_improves=difference > NormalDist().inv_cdf(1 - 0.05 / max(2, len(scored))) * error,
        gain=gain,
        noise=noise,
        noise_limit=limit,
    )


def surely_more_accurate(first: TrialRecord, second: TrialRecord) -> bool:
    """Whether a network's accuracy exceeds another one's by more than the paired error of the difference, at 95 %."""
    difference, error = paired_difference(_accuracy(first), _accuracy(second))
    return difference > Z_95 * error


def _gain_and_noise(
    scored: Sequence[TrialRecord], known: NDArray[np.bool_], references_ms: Sequence[float]
) -> tuple[float, float, float]:
    """The gain in hypervolume over the known networks; its mean and 95th percentile if all of it were noise.

    Of 300 simulated searches among equally good networks, 5 % exceed that percentile.
    """
    measured = np.array([trial.result.measured for trial in scored])
    accuracies = np.array([trial.accuracy for trial in scored])
    logs = np.log([trial.result.latencies_ms for trial in scored])  # (networks, targets)

    def gain(accuracies: Array, logs: Array, counted: NDArray[np.bool_]) -> float:
        latencies = np.exp(logs)
        of_all, of_known = (
            hypervolume(accuracies[rows].tolist(), latencies[rows], references_ms) for rows in (counted, known)
        )
        return of_all - of_known

    if not known.any():
        return gain(accuracies, logs, measured), 0.0, 0.0
    errors = np.array([_accuracy(trial).standard_error for trial in scored]) * _pairing(scored)
    log_errors = np.array([[latency.standard_error for latency in trial.result.objectives.values()] for trial in scored])
    log_errors[~measured] = np.median(log_errors[measured], axis=0)  # they would be measured before they are on a front
    true_accuracies, true_logs = _without_gain(known, accuracies, errors, logs)
    everything, rng = np.ones(len(scored), bool), np.random.default_rng(0)
    noises = [
        gain(
            np.clip(true_accuracies + rng.normal(size=errors.shape) * errors, 0, 1),
            true_logs + rng.normal(size=logs.shape) * log_errors,
            everything,
        )
        for _ in range(NUM_DRAWS)
    ]
    return gain(accuracies, logs, measured), float(np.mean(noises)), float(np.quantile(noises, 0.95))


def _without_gain(known: NDArray[np.bool_], accuracies: Array, errors: Array, logs: Array) -> tuple[Array, Array]:
    """True accuracies and latencies that explain the scores without any network that is better than the known ones.

    Each network's rival is the most accurate known one that is no slower, or the nearest if all are slower. Networks above
    it, or within their error below it, are exactly as good.

    Args:
        known: whether a network is known, (networks,).
        accuracies: (networks,).
        errors: standard errors of the accuracies, (networks,).
        logs: logarithms of latencies, (networks, targets).
    """
    levels = _levels(accuracies[known], errors[known])
    lead = np.maximum(logs[known] - logs[:, None], 0).max(2)  # how much faster than each known one, (networks, known)
    rivals = np.where(lead <= lead.min(1, keepdims=True), levels, -math.inf).argmax(1)
    reach = Z_95 * np.hypot(errors, errors[known][rivals])
    true_accuracies = np.where(accuracies > levels[rivals] - reach, levels[rivals], accuracies)
    true_accuracies[known] = levels
    return true_accuracies, np.maximum(logs, logs[known][rivals])


def _levels(accuracies: Array, errors: Array) -> Array:
    """Mean accuracies of groups whose networks are not told apart from the least accurate of the group."""
    levels = accuracies.copy()
    group: list[int] = []
    for index in (int(index) for index in np.argsort(accuracies)):
        if group and accuracies[index] - accuracies[group[0]] > Z_95 * math.hypot(errors[index], errors[group[0]]):
            group = []
        group.append(index)
        levels[group] = accuracies[group].mean()
    return levels


def _pairing(scored: Sequence[TrialRecord]) -> float:
    """Errors of differences of accuracies over those of independent ones: on the same images networks err alike."""
    ordered = sorted(map(_accuracy, scored), key=lambda accuracy: accuracy.accuracy)
    pairs = list(itertools.pairwise(ordered))
    independent = sum(low.standard_error**2 + high.standard_error**2 for low, high in pairs)
    return math.sqrt(sum(paired_difference(high, low)[1] ** 2 for low, high in pairs) / independent) if independent else 1.0


def _accuracy(trial: TrialRecord) -> Accuracy:
    assert trial.result.accuracy is not None
    return trial.result.accuracy


REMEDY = (
    "more validation images (data.val_size, accuracy.num_images; four times as many halve the errors), more or harder data, "
    "larger images (data.img_size), or a wider space (space.embed_dim)"
)


def significance_text(trials: Sequence[TrialRecord], references_ms: Sequence[float]) -> list[str]:
    """What the finished trials of a study have told apart, in sentences."""
    return in_words(significance(trials, references_ms))


def in_words(result: Significance | None) -> list[str]:
    """What a study has told apart, in sentences, and what to do where that is little; empty if nothing is known of that."""
    if result is None:
        return []
    lines = []
    num_steps = result.num_members - 1
    if num_steps:
        lines.append(
            f"The front has {result.num_members} members: {result.num_told_apart} of the {num_steps} steps in accuracy from "
            "one to the next exceed their paired error (95 %)."
        )
    if result.num_known:
        text = f"The gain in hypervolume over the {result.num_known} known networks is {result.gain:.4f}"
        if share := result.share_beyond_noise:
            lines.append(f"{text}; {share:.0%} of it is beyond noise.")
        else:
            lines.append(f"{text}: no more than noise gives in one of 20 searches ({result.noise_limit:.4f}).")
    if result.tells_nothing_apart:
        lines.append(
            "This search has told nothing apart: no network is surely more accurate than the fastest one of the front. Take "
            f"that one, or give the search more to tell networks apart by: {REMEDY}."
        )
    elif result.num_told_apart < num_steps / 2:
        lines.append(f"To tell more members apart: {REMEDY}; search.confirm trains those whose place is uncertain.")
    return lines


@dataclass
class Monitor:
    """Watches a running search, and warns once if it tells nothing apart.

    Attributes:
        references_ms: bounds of the hypervolume.
        trials: all that are finished.
    """

    references_ms: Sequence[float]
    trials: list[TrialRecord] = field(default_factory=list)
    _next_look: float = MIN_SCORED
    _has_warned: bool = False

    def warning(self, trial: TrialRecord) -> str | None:
        """Take a finished trial, and return what there is to warn of after it."""
        self.trials.append(trial)
        if self._has_warned or len(self.trials) < self._next_look:
            return None
        self._next_look = LOOK_FACTOR * len(self.trials)
        result = significance(self.trials, self.references_ms)
        if result is None or result.num_scored < MIN_SCORED or not result.tells_nothing_apart:
            return None
        self._has_warned = True
        return f"after {result.num_scored} networks: {' '.join(in_words(result))}"

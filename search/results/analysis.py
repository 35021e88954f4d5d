"""Analyses of the trials of a study: growth of the front, influence of the dimensions, latency by stage.

The influence of a dimension is the share of variance that it explains. Optuna's importances do not give that: fANOVA leaves
out dimensions that are not always asked, such as alpha; PED-ANOVA, which the dashboard shows, compares the best tenth of the
trials with all, in shares that add up to 1 even where nothing matters, and has no direction.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.architecture import Architecture
from search.latency import block_model
from search.latency.block_model import MIN_NETWORKS
from search.study.front import front, front_hypervolume, latest_of_each
from search.study.trial import TrialRecord

MIN_EVALUATED = 8  # networks before anything is reported about what mattered
PARTS = ("stem and head", "stage 1", "stage 2", "stage 3", "stage 4")


@dataclass(frozen=True)
class Effect:
    """The effect of a dimension on one objective.

    Attributes:
        share: of the objective's variance that lies between networks with different values of the dimension, in [0, 1].
        gain: mean at the highest value less mean at the lowest one; relative if the objective is a latency.
    """

    share: float
    gain: float


@dataclass(frozen=True)
class Influence:
    """The effects of a dimension by itself: on accuracy, and on the latency of each target that is an objective."""

    dimension: str
    accuracy: Effect
    latencies: Mapping[str, Effect]


def hypervolumes(trials: Sequence[TrialRecord], references_ms: Sequence[float]) -> list[float]:
    """The hypervolume of the front after each trial."""
    members: list[TrialRecord] = []
    seen: set[str] = set()
    volumes = []
    for count, trial in enumerate(trials, start=1):
        is_repeat = trial.architecture.key in seen  # measured again, it may leave the front to what it dominated
        members = front(trials[:count]) if is_repeat else front([*members, trial])
        seen.add(trial.architecture.key)
        volumes.append(front_hypervolume(members, references_ms))
    return volumes


def influences(evaluated: Sequence[TrialRecord]) -> list[Influence]:
    """The influence of every dimension that took several values, the largest share of accuracy first.

    Args:
        evaluated: different networks that have an accuracy.
    """
    accuracies = np.array([trial.accuracy for trial in evaluated])
    targets = list(evaluated[0].result.objectives) if evaluated else []
    logs = {name: np.log([trial.result.latencies[name].latency_ms for trial in evaluated]) for name in targets}
    result = []
    for dimension in sorted({name for trial in evaluated for name in trial.parameters}):
        values = [trial.parameters.get(dimension) for trial in evaluated]
        if len({value for value in values if value is not None}) > 1:
            latencies = {name: _relative(_effect(values, logs[name])) for name in targets}
            result.append(Influence(dimension, _effect(values, accuracies), latencies))
    return sorted(result, key=lambda influence: -influence.accuracy.share)


def _effect(values: Sequence[bool | int | float | None], objective: NDArray[np.float64]) -> Effect:
    ordered = sorted({value for value in values if value is not None})
    low, high = ([value == end for value in values] for end in (ordered[0], ordered[-1]))
    return Effect(explained_share(values, objective), float(objective[high].mean() - objective[low].mean()))


def _relative(effect: Effect) -> Effect:
    """The effect on a quantity, from that on its logarithm."""
    return Effect(effect.share, math.expm1(effect.gain))


def explained_share(values: Sequence[object], objective: NDArray[np.float64]) -> float:
    """Share of an objective's variance that lies between the groups of equal values."""
    total = float(((objective - objective.mean()) ** 2).sum())
    groups = [objective[[value == of_group for value in values]] for of_group in set(values)]
    between = sum(len(group) * (group.mean() - objective.mean()) ** 2 for group in groups)
    return float(between / total) if total else 0.0


def latency_by_stage(
    networks: Sequence[TrialRecord], trials: Sequence[TrialRecord], target: str, img_size: int
) -> list[list[float]]:
    """Milliseconds of each network in each of PARTS, by a block model of what was measured on a target.

    Args:
        trials: all finished trials.
        img_size: side of the deployed network's input, in pixels.

    Returns:
        A row for each network; no rows if too few networks were measured.
    """
    latest = [trial for trial in latest_of_each(trials) if target in trial.result.latencies]
    measured = [trial for trial in latest if trial.result.latencies[target].measured]
    if len(measured) < MIN_NETWORKS:
        return []
    inputs = np.stack([block_model.features(trial.architecture, img_size) for trial in measured])
    costs = block_model.fit(inputs, np.array([trial.result.latencies[target].latency_ms for trial in measured]))
    return [_costs_of_parts(network.architecture, img_size, costs) for network in networks]


def _costs_of_parts(architecture: Architecture, img_size: int, costs: NDArray[np.float64]) -> list[float]:
    stages = block_model.features_by_stage(architecture, img_size)
    rest = block_model.features(architecture, img_size) - sum(stages)
    return [float(part @ costs) for part in (rest, *stages)]

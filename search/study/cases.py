"""The networks of a study with the search's values and those confirmed since, compared with each other.

Trained networks are compared by their accuracies, which are on the same images, so their errors are paired. Networks that
have only a score are compared by the accuracy that a line through the trained ones predicts (`accuracy/prediction.py`).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from search.accuracy.base import Accuracy
from search.accuracy.checked import Checked
from search.accuracy.paired import draw_accuracies, image_error, mean_accuracy
from search.accuracy.prediction import Expected, draw_predictions
from search.latency.base import Latency
from search.study.front import DRAWS, evaluated
from search.study.pareto import front_indices, front_probabilities
from search.study.trial import TrialRecord

SMALLEST_ERROR = 1e-4  # of a score: that of a network which is right on all images is not 0


@dataclass(frozen=True)
class Case:
    """A network: the search's values, and those confirmed since.

    Attributes:
        front_probability: of being on the front, by the search's values.
        latencies: measured again, by target; empty before that.
        accuracies: of standalone trainings, one for each seed, on images that no score was computed with.
    """

    trial: TrialRecord
    front_probability: float
    latencies: Mapping[str, Latency] = field(default_factory=dict)
    accuracies: tuple[Accuracy, ...] = ()

    @property
    def score(self) -> Accuracy:
        """The search's accuracy."""
        assert self.trial.result.accuracy is not None
        return self.trial.result.accuracy

    @property
    def accuracy(self) -> float:
        """Mean over seeds, of a network that was trained."""
        return mean_accuracy(self.accuracies)

    @property
    def is_confirmed(self) -> bool:
        """Whether it has new values."""
        return bool(self.latencies or self.accuracies)

    @property
    def objectives(self) -> dict[str, Latency]:
        """The newest latency on each target that is an objective."""
        return {name: self.latencies.get(name, latency) for name, latency in self.trial.result.objectives.items()}

    @property
    def latencies_ms(self) -> list[float]:
        """The newest latencies that are minimised."""
        return [latency.latency_ms for latency in self.objectives.values()]


def all_cases(trials: Sequence[TrialRecord], checked: Checked | None) -> list[Case]:
    """Every network of a study that has an accuracy and keeps the limits, the most probable members of the front first.

    Predicted latencies count too, with the errors of predictions.
    """
    cases = [Case(trial, 0.0) for trial in evaluated(trials)]
    probabilities = case_probabilities(cases, checked)
    cases = [replace(case, front_probability=share) for case, share in zip(cases, probabilities, strict=True)]
    return sorted(cases, key=lambda case: -case.front_probability)


def case_probabilities(cases: Sequence[Case], checked: Checked | None) -> list[float]:
    """The probability of each case to be on the front of all, by the newest values."""
    rng = np.random.default_rng(0)
    return front_probabilities(
        _draw_accuracies(cases, checked, rng),
        [case.latencies_ms for case in cases],
        [[latency.standard_error for latency in case.objectives.values()] for case in cases],
        rng,
    )


def confirmed_probabilities(cases: Sequence[Case], checked: Checked | None) -> dict[int, float]:
    """The same, of the cases that were trained, by trial number."""
    if not any(case.accuracies for case in cases):
        return {}
    probabilities = zip(cases, case_probabilities(cases, checked), strict=True)
    return {case.trial.number: share for case, share in probabilities if case.accuracies}


def confirmed_front(cases: Sequence[Case]) -> list[Case]:
    """The cases that no other one dominates, of those with confirmed values, by rising latency."""
    compared = [case for case in cases if case.accuracies and case.latencies]
    indices = front_indices([case.accuracy for case in compared], [case.latencies_ms for case in compared])
    return [compared[index] for index in indices]


def seed_noise(cases: Sequence[Case], checked: Checked | None) -> float | None:
    """Standard deviation over seeds of a network's accuracy, pooled over networks and with what `search.check` measured.

    None as long as no network has two seeds and there is no check.
    """
    squares, freedom = 0.0, 0
    if checked is not None:
        freedom = checked.num_networks * (checked.num_seeds - 1)
        squares = freedom * checked.seed_noise**2
    for case in cases:
        if len(case.accuracies) > 1:
            squares += (len(case.accuracies) - 1) * statistics.variance(seed.accuracy for seed in case.accuracies)
            freedom += len(case.accuracies) - 1
    return math.sqrt(squares / freedom) if freedom else None


def standard_error(case: Case, noise: float | None) -> float:
    """The error of a trained case's accuracy: that from the images, which all seeds share, and that from the seeds."""
    return math.hypot(image_error(case.accuracies), (noise or 0.0) / math.sqrt(len(case.accuracies)))


def _draw_accuracies(cases: Sequence[Case], checked: Checked | None, rng: np.random.Generator) -> NDArray[np.float64]:
    """Accuracies that could be the true ones, (draws, cases)."""
    trained = [index for index, case in enumerate(cases) if case.accuracies]
    if not trained:
        return draw_accuracies([[case.score] for case in cases], checked.score_error if checked else 0.0, DRAWS, rng)
    noise = seed_noise(cases, checked) or 0.0
    accuracies = np.array([cases[index].accuracy for index in trained])
    of_seeds = [noise / math.sqrt(len(cases[index].accuracies)) for index in trained]
    draws = np.empty((DRAWS, len(cases)))
    draws[:, trained] = draw_accuracies([cases[index].accuracies for index in trained], of_seeds, DRAWS, rng)
    scores = np.array([case.score.accuracy for case in cases])
    others = np.array([not case.accuracies for case in cases])
    predicted = draw_predictions(scores[trained], accuracies, scores[others], _expected(cases, noise, checked), DRAWS, rng)
    common = draws[:, trained].mean(1, keepdims=True) - accuracies.mean()  # an error of all trained ones moves the line
    draws[:, others] = predicted + common
    return draws


def _expected(cases: Sequence[Case], noise: float, checked: Checked | None) -> Expected:
    """The relation between scores and accuracies before anything was trained here."""
    of_images = max(statistics.fmean(case.score.standard_error for case in cases), SMALLEST_ERROR)
    if checked is None:
        return Expected(slope=1.0, residual=math.hypot(of_images, noise), num_networks=1)
    residual = math.hypot(checked.residual, checked.slope * of_images, noise)
    return Expected(checked.slope, residual, checked.num_networks)

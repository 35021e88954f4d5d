"""Confirming a front: networks whose place is uncertain are measured again and trained standalone, within a time.

The values of a search are quick estimates, and the best of many estimates are too good on average. Networks that may or may
not be on the front, given the errors of their values, get a new measurement and long trainings with several seeds; the
results are stored beside the search's values.
"""

from __future__ import annotations

import json
import logging
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from search.accuracy.base import Accuracy
from search.accuracy.cache import AccuracyCache
from search.engine.base import Engine
from search.files import write_text
from search.latency.base import Latency
from search.space.dimensions import describe
from search.study.front import evaluated
from search.study.pareto import front_indices, front_probabilities
from search.study.targets import Target
from search.study.trial import TrialRecord

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Case:
    """A network to be confirmed: the search's values, and those confirmed since.

    Attributes:
        front_probability: of being on the front, by the search's values.
        latencies: measured again, by target; empty before that.
        accuracies: of standalone trainings, one for each seed.
    """

    trial: TrialRecord
    front_probability: float
    latencies: Mapping[str, Latency] = field(default_factory=dict)
    accuracies: tuple[Accuracy, ...] = ()

    @property
    def accuracy(self) -> float:
        """Mean over seeds, or the search's accuracy as long as nothing was trained."""
        if not self.accuracies:
            return self.trial.accuracy
        return statistics.fmean(accuracy.accuracy for accuracy in self.accuracies)

    @property
    def objectives(self) -> dict[str, Latency]:
        """The newest latency on each target that is an objective."""
        return {name: self.latencies.get(name, latency) for name, latency in self.trial.result.objectives.items()}

    @property
    def latencies_ms(self) -> list[float]:
        """The newest latencies that are minimised."""
        return [latency.latency_ms for latency in self.objectives.values()]


def uncertain_cases(trials: Sequence[TrialRecord], low: float, high: float) -> list[Case]:
    """Find the networks whose probability of being on the front is between two limits, the most probable first.

    Predicted latencies count too, with the errors of predictions.
    """
    cases = [Case(trial, 0.0) for trial in evaluated(trials)]
    probabilities = case_probabilities(cases)
    cases = [replace(case, front_probability=share) for case, share in zip(cases, probabilities, strict=True)]
    return sorted(
        (case for case in cases if low <= case.front_probability <= high), key=lambda case: -case.front_probability
    )


def case_probabilities(cases: Sequence[Case]) -> list[float]:
    """The probability of each case to be on the front of all, by the newest values."""
    noise = seed_noise(cases)
    return front_probabilities(
        [case.accuracy for case in cases],
        [standard_error(case, noise) for case in cases],
        [case.latencies_ms for case in cases],
        [[latency.standard_error for latency in case.objectives.values()] for case in cases],
    )


def confirmed_probabilities(cases: Sequence[Case]) -> dict[int, float]:
    """The same by confirmed values, of the cases that were trained, by trial number."""
    trained = [case for case in cases if case.accuracies]
    return {case.trial.number: share for case, share in zip(trained, case_probabilities(trained), strict=True)}


def confirmed_front(cases: Sequence[Case]) -> list[Case]:
    """The cases that no other one dominates, of those with confirmed values, by rising latency."""
    compared = [case for case in cases if case.accuracies and case.latencies]
    indices = front_indices([case.accuracy for case in compared], [case.latencies_ms for case in compared])
    return [compared[index] for index in indices]


def seed_noise(cases: Sequence[Case]) -> float:
    """Standard deviation over seeds of a network's accuracy, pooled over networks; 0 as long as none has two seeds."""
    variances = [
        statistics.variance(accuracy.accuracy for accuracy in case.accuracies) for case in cases if len(case.accuracies) > 1
    ]
    return math.sqrt(statistics.fmean(variances)) if variances else 0.0


def standard_error(case: Case, noise: float) -> float:
    """The error of a case's accuracy: that from the validation images, which all seeds share, and that from the seeds."""
    if not case.accuracies:
        assert case.trial.result.accuracy is not None
        return case.trial.result.accuracy.standard_error
    from_images = replace(case.accuracies[0], accuracy=case.accuracy).standard_error
    return math.hypot(from_images, noise / math.sqrt(len(case.accuracies)))


@dataclass(frozen=True)
class Confirmation:
    """Measures and trains cases.

    Attributes:
        trainings: standalone trainings.
        file: the cases are stored here after each step.
        low, high: as for `uncertain_cases`.
        clock: in seconds.
    """

    engine: Engine
    targets: Mapping[str, Target]
    trainings: AccuracyCache
    file: Path
    low: float
    high: float
    clock: Callable[[], float] = time.monotonic

    async def run(
        self, cases: Sequence[Case], num_seeds: int, seconds: float, progress: Callable[[float], None]
    ) -> list[Case]:
        """Measure all, then train with one seed after the other those that are still uncertain, until the time is up."""
        end = self.clock() + seconds
        stored = read_latencies(self.file)
        current = {case.trial.number: replace(case, latencies=stored.get(case.trial.architecture.key, {})) for case in cases}

        def update(case: Case, share: float) -> None:
            current[case.trial.number] = case
            save(self.file, list(current.values()))
            progress(share / (1 + num_seeds))

        for count, case in enumerate(list(current.values()), start=1):
            is_due = not case.latencies and self.clock() <= end
            update(await self._measure(case) if is_due else case, count / len(cases))
        for seed in range(num_seeds):
            remaining = self._still_uncertain(list(current.values()), seed)
            for count, case in enumerate(remaining, start=1):
                if self.clock() > end and self.trainings.get(case.trial.architecture, seed) is None:
                    log.info("time is up; run the same command again to continue, or with a larger confirm.minutes")
                    return list(current.values())
                update(self._train(case, seed), 1 + seed + count / len(remaining))
        return list(current.values())

    async def _measure(self, case: Case) -> Case:
        architecture = case.trial.architecture
        latencies = {
            name: await self.engine.measure(name, architecture, target.calibration) for name, target in self.targets.items()
        }
        return replace(case, latencies=latencies)

    def _train(self, case: Case, seed: int) -> Case:
        accuracy = self.trainings.evaluate(case.trial.architecture, seed)
        log.info("%s, seed %d: %.4f", describe(case.trial.architecture), seed, accuracy.accuracy)
        return replace(case, accuracies=(*case.accuracies, accuracy))

    def _still_uncertain(self, cases: Sequence[Case], num_trained: int) -> list[Case]:
        """Cases with this number of trainings whose place is still uncertain by the newest values."""
        compared = [case for case in cases if case.latencies and len(case.accuracies) == num_trained]
        if len(compared) < 2:
            return compared if num_trained == 0 else []
        probabilities = case_probabilities(compared)
        return [case for case, share in zip(compared, probabilities, strict=True) if self.low <= share <= self.high]


def case_facts(case: Case, noise: float, front_probability: float | None) -> dict[str, Any]:
    """The search's values of a network, and those confirmed since, as plain data.

    Args:
        noise: of seeds.
        front_probability: by confirmed values.
    """
    confirmed: dict[str, Any] = {"latencies": _summaries(case.latencies)}
    if case.accuracies:
        confirmed |= {
            "accuracy": case.accuracy,
            "standard_error": standard_error(case, noise),
            "accuracies": [accuracy.to_dict() for accuracy in case.accuracies],
            "front_probability": front_probability,
        }
    search = {
        "accuracy": case.trial.accuracy,
        "standard_error": standard_error(replace(case, accuracies=()), noise),
        "latencies": _summaries(case.trial.result.latencies),
        "front_probability": case.front_probability,
    }
    return {"search": search, "confirmed": confirmed}


def _summaries(latencies: Mapping[str, Latency]) -> dict[str, Any]:
    return {name: latency.summary() for name, latency in latencies.items()}


def save(file: Path, cases: Sequence[Case]) -> None:
    """Store all cases, whole or not at all."""
    noise, probabilities = seed_noise(cases), confirmed_probabilities(cases)
    networks = [
        {
            "trial": case.trial.number,
            "key": case.trial.architecture.key,
            "architecture": case.trial.architecture.to_dict(),
            **case_facts(case, noise, probabilities.get(case.trial.number)),
        }
        for case in cases
    ]
    write_text(file, json.dumps({"seed_noise": noise, "networks": networks}, indent=2) + "\n")


def read_latencies(file: Path) -> dict[str, dict[str, Latency]]:
    """Latencies that an earlier run measured, by network and target."""
    if not file.exists():
        return {}
    try:
        networks = json.loads(file.read_text(encoding="utf-8"))["networks"]
        return {
            network["key"]: {name: Latency(**latency) for name, latency in network["confirmed"]["latencies"].items()}
            for network in networks
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        log.warning("%s cannot be read; its networks are measured again", file)
        return {}

"""Confirming a front: networks that are or may be on it are measured again and trained standalone, within a time.

The values of a search are quick estimates, and the best of many estimates are too good on average. Networks that may or
may not be on the front, given the errors of their values, get a new measurement and long trainings with several seeds; those
that are surely on it get one training, since the others are compared with them. What is surely not on the front stays in the
comparison with its score. Results are stored beside the search's values.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from search.accuracy.cache import AccuracyCache
from search.accuracy.checked import Checked
from search.engine.base import Engine
from search.files import write_text
from search.latency.base import Calibration, Latency
from search.space.dimensions import describe
from search.study.cases import Case, case_probabilities, confirmed_probabilities, seed_noise, standard_error
from search.study.targets import Target

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Confirmation:
    """Measures and trains cases.

    Attributes:
        trainings: standalone trainings.
        checked: what `search.check` has measured of scores and seeds, if it has.
        file: the cases are stored here after each step.
        low: a network whose probability of being on the front is below it counts as off the front.
        high: one above it counts as on the front.
        num_seeds: trainings of a network whose place stays uncertain.
        clock: in seconds.
    """

    engine: Engine
    targets: Mapping[str, Target]
    trainings: AccuracyCache
    checked: Checked | None
    file: Path
    low: float
    high: float
    num_seeds: int
    clock: Callable[[], float] = time.monotonic
    _calibrations: dict[str, Calibration] = field(default_factory=dict)  # with the kernels of all networks so far

    async def run(self, cases: Sequence[Case], seconds: float, progress: Callable[[float], None]) -> list[Case]:
        """Measure and train until every place is settled or has its trainings, or the time is up.

        Each round does the same to all networks that need it: measure them, or train them with one more seed. Then all
        probabilities are computed anew, by which a network may come into question that was not before.

        Args:
            cases: all networks of the study, the most probable members of the front first.
        """
        end = self.clock() + seconds
        stored = read_latencies(self.file)
        self._calibrations.update({name: target.calibration for name, target in self.targets.items()})
        for case in cases:
            self._use_kernels(case.trial.result.latencies)
            self._use_kernels(stored.get(case.trial.architecture.key, {}))
        current = {case.trial.number: replace(case, latencies=stored.get(case.trial.architecture.key, {})) for case in cases}
        while due := self._due(list(current.values())):
            for count, case in enumerate(due, start=1):
                if not self._was_trained(case) and self.clock() > end:
                    log.info("time is up; run the same command again to continue, or with a larger confirm.minutes")
                    return list(current.values())
                current[case.trial.number] = self._train(case) if case.latencies else await self._measure(case)
                save(self.file, list(current.values()), self.checked)
                num_rounds = len(case.accuracies) + bool(case.latencies)
                progress((num_rounds + count / len(due)) / (1 + self.num_seeds))
        return list(current.values())

    def _due(self, cases: Sequence[Case]) -> list[Case]:
        """The cases of the next round: those to measure or, if there are none, those to train with the next seed."""
        is_noise_known = seed_noise(cases, self.checked) is not None
        shares = zip(cases, case_probabilities(cases, self.checked), strict=True)
        ranked = sorted(shares, key=lambda pair: -pair[1])
        wanted = [(case, self._num_wanted(case, share, is_noise_known)) for case, share in ranked]
        unmeasured = [case for case, number in wanted if number and not case.latencies]
        untrained = [case for case, number in wanted if len(case.accuracies) < number]
        fewest = min((len(case.accuracies) for case in untrained), default=0)
        return unmeasured or [case for case in untrained if len(case.accuracies) == fewest]

    def _num_wanted(self, case: Case, share: float, is_noise_known: bool) -> int:
        """How many trainings a case needs, given its probability of being on the front."""
        was_uncertain = self.low <= case.front_probability <= self.high
        if not is_noise_known and case.accuracies and was_uncertain:
            return min(2, self.num_seeds)  # a single training settles nothing whose error is not known
        if share < self.low:
            return 0
        return 1 if share > self.high else self.num_seeds

    def _was_trained(self, case: Case) -> bool:
        """Whether what is next for a case is a training that an earlier run has done."""
        is_known = self.trainings.get(case.trial.architecture, len(case.accuracies)) is not None
        return bool(case.latencies) and is_known

    async def _measure(self, case: Case) -> Case:
        architecture = case.trial.architecture
        latencies = {
            name: await self.engine.measure(name, architecture, calibration)
            for name, calibration in self._calibrations.items()
        }
        self._use_kernels(latencies)
        return replace(case, latencies=latencies)

    def _use_kernels(self, latencies: Mapping[str, Latency]) -> None:
        """Measure the next networks on the kernels of this one."""
        for name in latencies.keys() & self._calibrations.keys():
            self._calibrations[name] = self._calibrations[name].with_kernels_of(latencies[name])

    def _train(self, case: Case) -> Case:
        seed = len(case.accuracies)
        accuracy = self.trainings.evaluate(case.trial.architecture, seed)
        log.info("%s, seed %d: %.4f", describe(case.trial.architecture), seed, accuracy.accuracy)
        return replace(case, accuracies=(*case.accuracies, accuracy))


def case_facts(case: Case, noise: float | None, front_probability: float | None) -> dict[str, Any]:
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
            "accuracies": [accuracy.summary() for accuracy in case.accuracies],
            "front_probability": front_probability,
        }
    search = {
        "accuracy": case.score.accuracy,
        "standard_error": case.score.standard_error,
        "latencies": _summaries(case.trial.result.latencies),
        "front_probability": case.front_probability,
    }
    return {"search": search, "confirmed": confirmed}


def _summaries(latencies: Mapping[str, Latency]) -> dict[str, Any]:
    return {name: latency.summary() for name, latency in latencies.items()}


def save(file: Path, cases: Sequence[Case], checked: Checked | None) -> None:
    """Store the cases that have new values, whole or not at all."""
    noise, probabilities = seed_noise(cases, checked), confirmed_probabilities(cases, checked)
    networks = [
        {
            "trial": case.trial.number,
            "key": case.trial.architecture.key,
            "architecture": case.trial.architecture.to_dict(),
            **case_facts(case, noise, probabilities.get(case.trial.number)),
        }
        for case in cases
        if case.is_confirmed
    ]
    body = {"seed_noise": noise, "by_score": checked is None, "networks": networks}
    write_text(file, json.dumps(body, indent=2) + "\n")


def read_latencies(file: Path) -> dict[str, dict[str, Latency]]:
    """Latencies that an earlier run measured, by network and target."""
    if not file.exists():
        return {}
    try:
        networks = json.loads(file.read_text(encoding="utf-8"))["networks"]
        return {
            network["key"]: {
                name: Latency.from_summary(latency) for name, latency in network["confirmed"]["latencies"].items()
            }
            for network in networks
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        log.warning("%s cannot be read; its networks are measured again", file)
        return {}

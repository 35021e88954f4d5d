"""Confirming a front: which networks are uncertain, the errors of their values, and a run within a time."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from models.architecture import Architecture
from search.accuracy.base import Accuracy, AccuracyEvaluator, Progress
from search.accuracy.cache import AccuracyCache
from search.accuracy.checked import Checked
from search.latency.base import Calibration, Latency
from search.latency.estimate import Estimate
from search.study.cases import (
    Case,
    all_cases,
    case_probabilities,
    confirmed_front,
    confirmed_probabilities,
    seed_noise,
    standard_error,
)
from search.study.confirmation import Confirmation
from search.study.targets import FIRST
from search.study.trial import TrialRecord
from tests.support.known_engine import CALIBRATION, KnownEngine, finished, known_targets
from tests.support.known_truth import latency, record

CHECKED = Checked(0.005, 0.004, 24)


class Evaluator:
    """Trains nothing: the accuracy is that of the known engine, and depends on the seed a little."""

    scores_before_measuring = False

    def __init__(self) -> None:
        self.trained: list[tuple[str, int]] = []

    def fingerprint(self) -> dict[str, str | int]:
        return {}

    def evaluate(self, architecture: Architecture, seed: int, progress: Progress) -> Accuracy:
        self.trained.append((architecture.key, seed))
        accuracy = KnownEngine().accuracy(architecture, seed)
        return replace(accuracy, accuracy=accuracy.accuracy - 0.001 * seed)


def similar_trials() -> list[TrialRecord]:
    """Networks of which each might dominate any other one."""
    return [finished(number, 0.80 + 0.001 * number, 2.0 + 0.01 * number) for number in range(4)]


def confirm(
    folder: Path,
    cases: Sequence[Case],
    evaluator: AccuracyEvaluator,
    engine: KnownEngine | None = None,
    clock: Callable[[], float] = lambda: 0.0,
    low: float = 0.0,
    high: float = 1.0,
    num_seeds: int = 2,
    checked: Checked | None = None,
) -> list[Case]:
    engine = engine or KnownEngine()
    trainings = AccuracyCache(evaluator, {}, folder / "confirm.jsonl")
    confirmation = Confirmation(
        engine, known_targets(engine), trainings, checked, folder / "confirmed.json", low, high, num_seeds, clock
    )
    return asyncio.run(confirmation.run(cases, seconds=10.0, progress=lambda share: None))


class Truth(KnownEngine):
    """Measures what the search has measured, and trains to accuracies that are given.

    Args:
        accuracies: of each trial's network, for every seed.
    """

    scores_before_measuring = False

    def __init__(self, trials: Sequence[TrialRecord], accuracies: Mapping[int, Sequence[float]]) -> None:
        super().__init__()
        self.known = {trial.architecture.key: trial for trial in trials}
        self.accuracies = accuracies
        self.numbers: list[int] = []

    def latency(self, architecture: Architecture, factor: int = 1) -> Latency:
        return self.known[architecture.key].result.latencies[FIRST]

    def fingerprint(self) -> dict[str, str | int]:  # type: ignore[override]
        return {}

    def evaluate(self, architecture: Architecture, seed: int, progress: Progress) -> Accuracy:
        number = self.known[architecture.key].number
        self.numbers.append(number)
        rng = np.random.default_rng(number)
        return Accuracy.of(rng.permutation(2000) < 2000 * self.accuracies[number][seed], seed, 1.0)


def against_sure_members() -> list[TrialRecord]:
    """Networks 0 and 2 are surely on the front, 1 and 3 only if they are more accurate than these; 4 is hopeless."""
    return [
        record(0, Accuracy(0.800, 2000, 0, 1.0), latency(1.0)),
        record(1, Accuracy(0.7927, 2000, 0, 1.0), latency(1.5)),
        record(2, Accuracy(0.900, 2000, 0, 1.0), latency(3.0)),
        record(3, Accuracy(0.8944, 2000, 0, 1.0), latency(4.0)),
        record(4, Accuracy(0.60, 2000, 0, 1.0), latency(2.0)),
    ]


def test_networks_that_sure_members_may_dominate_are_trained_and_stay_in_question(tmp_path: Path) -> None:
    """Compared with each other alone they would be on the front for certain, settled, and never trained."""
    trials = against_sure_members()
    cases = all_cases(trials, None)
    before = {case.trial.number: case.front_probability for case in cases}
    assert min(before[0], before[2]) > 0.99
    assert before[1] == pytest.approx(0.28, abs=0.04)
    assert before[3] == pytest.approx(0.28, abs=0.04)
    assert before[4] < 0.01
    trained = {0: [0.850, 0.852], 1: [0.847, 0.845], 2: [0.940, 0.941], 3: [0.936, 0.937], 4: [0.6, 0.6]}
    truth = Truth(trials, trained)
    confirmed = confirm(tmp_path, cases, truth, truth, low=0.05, high=0.95)
    assert sorted(truth.numbers) == [0, 1, 1, 2, 3, 3]
    after = confirmed_probabilities(confirmed, None)
    assert set(after) == {0, 1, 2, 3}
    assert min(after[0], after[2]) > 0.99
    assert max(after[1], after[3]) < 0.6


def test_a_network_that_turns_out_better_comes_into_question(tmp_path: Path) -> None:
    """The sure members are far less accurate when trained than their scores promised: a third one may be on the front."""
    trials = [
        record(number, Accuracy(score, 2000, 0, 1.0), latency(ms))
        for number, (score, ms) in enumerate([(0.70, 1.0), (0.75, 1.1), (0.80, 1.2), (0.85, 1.3), (0.80, 1.5), (0.3, 1.6)])
    ]
    cases = all_cases(trials, None)
    assert {case.trial.number: case.front_probability for case in cases}[4] < 0.05
    trained = {0: 0.70, 1: 0.69, 2: 0.71, 3: 0.70, 4: 0.75, 5: 0.5}
    truth = Truth(trials, {number: [value] * 2 for number, value in trained.items()})
    confirmed = confirm(tmp_path, cases, truth, truth, low=0.05, high=0.95)
    assert 4 in truth.numbers
    assert confirmed_probabilities(confirmed, None)[4] > 0.95


def test_sure_members_are_trained_once_and_sure_others_are_not(tmp_path: Path) -> None:
    trials = [finished(0, 0.6, 1.0), finished(1, 0.80, 2.0), finished(2, 0.3, 3.0)]
    truth = Truth(trials, {0: [0.62], 1: [0.82]})
    confirmed = confirm(tmp_path, all_cases(trials, CHECKED), truth, truth, low=0.05, high=0.95, checked=CHECKED)
    assert sorted(truth.numbers) == [0, 1]
    assert [case.trial.number for case in confirmed if case.is_confirmed] == [0, 1]
    stored = json.loads((tmp_path / "confirmed.json").read_text(encoding="utf-8"))
    assert [network["trial"] for network in stored["networks"]] == [0, 1]
    assert stored["by_score"] is False
    assert "correct" not in json.dumps(stored)


def test_places_are_compared_with_all_networks() -> None:
    """The most probable first, with the networks that surely are on the front and those that surely are not."""
    sure, close, beaten, hopeless = (
        finished(0, 0.6, 1.0), finished(1, 0.80, 2.0), finished(2, 0.799, 2.01), finished(3, 0.3, 3.0),
    )  # fmt: skip
    cases = all_cases([hopeless, beaten, close, sure], None)
    assert [case.trial.number for case in cases] == [0, 1, 2, 3]
    assert case_probabilities(cases, None) == pytest.approx([case.front_probability for case in cases], abs=0.06)
    assert cases[0].front_probability > 0.99
    assert cases[3].front_probability < 0.01
    assert 0.05 < cases[2].front_probability < 0.95


def test_seeds_are_part_of_the_error() -> None:
    trial = finished(0, 0.8, 1.0)
    case = Case(trial, 0.5, accuracies=(Accuracy(0.78, 1000, 0, 1.0), Accuracy(0.82, 1000, 1, 1.0)))
    assert case.accuracy == pytest.approx(0.8)
    noise = seed_noise([case], None)
    assert noise == pytest.approx(0.02 * 2**0.5)
    assert standard_error(case, noise) == pytest.approx((0.8 * 0.2 / 1000 + 0.0008 / 2) ** 0.5)


def test_the_noise_of_seeds_is_the_check_s_while_no_network_has_two() -> None:
    trial = finished(0, 0.8, 1.0)
    single = Case(trial, 0.5, accuracies=(Accuracy(0.78, 1000, 0, 1.0),))
    assert seed_noise([single], None) is None
    assert seed_noise([single], CHECKED) == pytest.approx(0.004)
    double = replace(single, accuracies=(*single.accuracies, Accuracy(0.82, 1000, 1, 1.0)))
    pooled = ((24 * 0.004**2 + 0.0008) / 25) ** 0.5
    assert seed_noise([single, double], CHECKED) == pytest.approx(pooled)
    assert standard_error(single, 0.004) == pytest.approx((0.78 * 0.22 / 1000 + 0.004**2) ** 0.5)


def test_new_values_settle_a_place() -> None:
    cases = [Case(finished(0, 0.80, 2.0), 0.6), Case(finished(1, 0.799, 2.01), 0.4)]
    better = Accuracy(0.95, 1000, 0, 1.0)
    settled = [replace(cases[0], accuracies=(replace(better, accuracy=0.5),)), replace(cases[1], accuracies=(better,))]
    assert case_probabilities(settled, None)[1] > 0.99 > case_probabilities(cases, None)[1]


def test_networks_that_were_not_trained_are_compared_on_the_scale_of_trainings() -> None:
    """Trainings reach 0.2 more than scores: a score of 0.75 beside a training of 0.90 is behind no training of 0.92."""
    scores, ms = (0.60, 0.65, 0.70, 0.72, 0.75), (1.0, 2.0, 3.0, 4.0, 5.0)
    cases = [
        Case(record(number, Accuracy(score, 4000, 0, 1.0), latency(ms[number])), 0.5) for number, score in enumerate(scores)
    ]
    trained = [replace(case, accuracies=(Accuracy(case.score.accuracy + 0.2, 4000, 0, 1.0),)) for case in cases[:4]]
    assert case_probabilities([*trained, cases[4]], CHECKED)[4] > 0.85
    behind = replace(cases[0], trial=record(5, Accuracy(0.5, 4000, 0, 1.0), latency(6.0)))
    assert case_probabilities([*trained, behind], CHECKED)[4] < 0.02


def test_a_new_latency_replaces_that_of_the_search() -> None:
    trial = finished(0, 0.8, 2.0)
    measured = {FIRST: replace(trial.result.latencies[FIRST], estimate=Estimate(3.0, 0.01, 7.0))}
    assert Case(trial, 0.5).latencies_ms == [2.0]
    assert Case(trial, 0.5, measured).latencies_ms == [3.0]


def test_all_cases_are_measured_and_trained(tmp_path: Path) -> None:
    engine, evaluator = KnownEngine(), Evaluator()
    cases = confirm(tmp_path, all_cases(similar_trials(), None), evaluator, engine)
    assert len(cases) == 4
    assert sorted(engine.measured) == sorted(case.trial.architecture.key for case in cases)
    assert all(len(case.accuracies) == 2 for case in cases)
    assert len(evaluator.trained) == len(set(evaluator.trained)) == 8
    stored = json.loads((tmp_path / "confirmed.json").read_text(encoding="utf-8"))
    assert {network["trial"] for network in stored["networks"]} == {0, 1, 2, 3}
    latencies = {case.trial.number: case.latencies[FIRST].summary() for case in cases}
    assert {network["trial"]: network["confirmed"]["latencies"][FIRST] for network in stored["networks"]} == latencies
    members = confirmed_front(cases)
    assert members == sorted(members, key=lambda case: case.latencies_ms)


class Tuned(KnownEngine):
    """Keeps the kernels that it is asked to measure with."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: list[Mapping[str, str]] = []

    async def measure(self, target: str, architecture: Architecture, calibration: Calibration) -> Latency:
        assert calibration.kernels is not None
        self.kernels.append(calibration.kernels)
        chosen = {f"layer of run {len(self.kernels)}": "whole"}
        return replace(await super().measure(target, architecture, calibration), kernels=chosen)


def test_networks_are_measured_on_the_kernels_of_the_study(tmp_path: Path) -> None:
    trials = similar_trials()
    searched = {FIRST: replace(trials[0].result.latencies[FIRST], kernels={"layer": "default"})}
    trials[0] = replace(trials[0], result=replace(trials[0].result, latencies=searched))
    engine = Tuned()
    tuned = replace(known_targets(engine)[FIRST], calibration=replace(CALIBRATION, kernels={"anchor": "oneDNN"}))
    trainings = AccuracyCache(Evaluator(), {}, tmp_path / "confirm.jsonl")
    confirmation = Confirmation(engine, {FIRST: tuned}, trainings, None, tmp_path / "confirmed.json", 0.0, 1.0, 2)
    asyncio.run(confirmation.run(all_cases(trials, None), seconds=10.0, progress=lambda share: None))
    assert engine.kernels[0] == {"anchor": "oneDNN", "layer": "default"}
    assert engine.kernels[-1].keys() == {"anchor", "layer", *(f"layer of run {n}" for n in range(1, len(engine.kernels)))}


def test_a_network_whose_place_is_settled_is_not_trained_again(tmp_path: Path) -> None:
    evaluator = Evaluator()
    cases = confirm(tmp_path, all_cases(similar_trials(), None), evaluator, high=0.9, checked=CHECKED)
    numbers = [len(case.accuracies) for case in cases]
    assert min(numbers) < 2
    assert len(evaluator.trained) == sum(numbers)


def test_nothing_is_begun_when_the_time_is_up(tmp_path: Path) -> None:
    engine, evaluator = KnownEngine(), Evaluator()
    clock = partial(next, itertools.count(step=4.0))  # the third question is past the limit of 10 seconds
    cases = confirm(tmp_path, all_cases(similar_trials(), None), evaluator, engine, clock)
    assert len(engine.measured) == 2
    assert not evaluator.trained
    assert sum(case.is_confirmed for case in cases) == 2


def test_a_confirmation_that_was_stopped_continues(tmp_path: Path) -> None:
    cases = all_cases(similar_trials(), None)
    confirm(tmp_path, cases, Evaluator(), clock=partial(next, itertools.count(step=1.0)))
    engine, evaluator = KnownEngine(), Evaluator()
    confirm(tmp_path, cases, evaluator, engine)
    assert not engine.measured
    assert 0 < len(evaluator.trained) < 8
    whole = tmp_path / "whole"
    whole.mkdir()
    confirm(whole, cases, Evaluator())
    assert (tmp_path / "confirmed.json").read_bytes() == (whole / "confirmed.json").read_bytes()


def test_a_file_that_cannot_be_read_is_measured_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "confirmed.json").write_text('{"networks": [{"key": "a", "confirmed": {"latency": {}}}]}')
    engine = KnownEngine()
    confirm(tmp_path, all_cases(similar_trials(), None), Evaluator(), engine)
    assert len(engine.measured) == 4
    assert "its networks are measured again" in caplog.text

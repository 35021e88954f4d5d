"""Confirming a front: which networks are uncertain, the errors of their values, and a run within a time."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from models.architecture import Architecture
from search.accuracy.base import Accuracy, Progress
from search.accuracy.cache import AccuracyCache
from search.latency.estimate import Estimate
from search.study.confirmation import (
    Case,
    Confirmation,
    case_probabilities,
    confirmed_front,
    seed_noise,
    standard_error,
    uncertain_cases,
)
from search.study.targets import FIRST
from search.study.trial import TrialRecord
from tests.support.known_engine import KnownEngine, finished, known_targets


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
    evaluator: Evaluator,
    engine: KnownEngine | None = None,
    clock: Callable[[], float] = lambda: 0.0,
    max_probability: float = 1.0,
) -> list[Case]:
    engine = engine or KnownEngine()
    trainings = AccuracyCache(evaluator, {}, folder / "confirm.jsonl")
    confirmation = Confirmation(
        engine, known_targets(engine), trainings, folder / "confirmed.json", 0.0, max_probability, clock
    )
    return asyncio.run(confirmation.run(cases, num_seeds=2, seconds=10.0, progress=lambda share: None))


def test_only_networks_whose_place_is_uncertain_are_taken() -> None:
    sure, close, beaten, hopeless = (
        finished(0, 0.6, 1.0), finished(1, 0.80, 2.0), finished(2, 0.799, 2.01), finished(3, 0.3, 3.0),
    )  # fmt: skip
    cases = uncertain_cases([sure, close, beaten, hopeless], 0.05, 0.95)
    assert [case.trial.number for case in cases] == [1, 2]
    assert cases[0].front_probability > cases[1].front_probability


def test_seeds_are_part_of_the_error() -> None:
    trial = finished(0, 0.8, 1.0)
    case = Case(trial, 0.5, accuracies=(Accuracy(0.78, 1000, 0, 1.0), Accuracy(0.82, 1000, 1, 1.0)))
    assert case.accuracy == pytest.approx(0.8)
    noise = seed_noise([case])
    assert noise == pytest.approx(0.02 * 2**0.5)
    assert standard_error(case, noise) == pytest.approx((0.8 * 0.2 / 1000 + noise**2 / 2) ** 0.5)
    assert standard_error(Case(trial, 0.5), noise) == pytest.approx((0.8 * 0.2 / 1000) ** 0.5)


def test_new_values_settle_a_place() -> None:
    cases = [Case(finished(0, 0.80, 2.0), 0.6), Case(finished(1, 0.799, 2.01), 0.4)]
    better = Accuracy(0.95, 1000, 0, 1.0)
    settled = [replace(cases[0], accuracies=(replace(better, accuracy=0.5),)), replace(cases[1], accuracies=(better,))]
    assert case_probabilities(settled)[1] > 0.99 > case_probabilities(cases)[1]


def test_a_new_latency_replaces_that_of_the_search() -> None:
    trial = finished(0, 0.8, 2.0)
    measured = {FIRST: replace(trial.result.latencies[FIRST], estimate=Estimate(3.0, 0.01, 7.0))}
    assert Case(trial, 0.5).latencies_ms == [2.0]
    assert Case(trial, 0.5, measured).latencies_ms == [3.0]


def test_all_cases_are_measured_and_trained(tmp_path: Path) -> None:
    engine, evaluator = KnownEngine(), Evaluator()
    cases = confirm(tmp_path, uncertain_cases(similar_trials(), 0.0, 1.0), evaluator, engine)
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


def test_a_network_whose_place_is_settled_is_not_trained_again(tmp_path: Path) -> None:
    evaluator = Evaluator()
    cases = confirm(tmp_path, uncertain_cases(similar_trials(), 0.0, 1.0), evaluator, max_probability=0.9)
    numbers = [len(case.accuracies) for case in cases]
    assert min(numbers) < 2
    assert len(evaluator.trained) == sum(numbers)


def test_nothing_is_begun_when_the_time_is_up(tmp_path: Path) -> None:
    engine, evaluator = KnownEngine(), Evaluator()
    clock = partial(next, itertools.count(step=4.0))  # the third question is past the limit of 10 seconds
    cases = confirm(tmp_path, uncertain_cases(similar_trials(), 0.0, 1.0), evaluator, engine, clock)
    assert len(engine.measured) == 2
    assert not evaluator.trained
    assert len(cases) == 4


def test_a_confirmation_that_was_stopped_continues(tmp_path: Path) -> None:
    cases = uncertain_cases(similar_trials(), 0.0, 1.0)
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
    confirm(tmp_path, uncertain_cases(similar_trials(), 0.0, 1.0), Evaluator(), engine)
    assert len(engine.measured) == 4
    assert "its networks are measured again" in caplog.text

"""Analyses of the trials of a study, against values that are known."""

from __future__ import annotations

from pathlib import Path

import pytest

from search.results.analysis import hypervolumes, influences, latency_by_stage
from search.study.front import front, front_hypervolume
from search.study.targets import FIRST
from search.study.trial import TrialRecord, finished_trials
from tests.support.known_engine import finished, run, studied


def expected_volumes(trials: list[TrialRecord]) -> list[float]:
    return [front_hypervolume(front(trials[: count + 1]), [10.0]) for count in range(len(trials))]


def test_hypervolumes_are_those_of_the_front_after_each_trial(tmp_path: Path) -> None:
    trials = finished_trials(studied(f"sqlite:///{tmp_path / 'study.db'}", 20, limit_ms=2.0))
    assert hypervolumes(trials, [10.0]) == expected_volumes(trials)


def test_a_member_that_gets_worse_leaves_the_front_to_what_it_dominated() -> None:
    first, second = finished(0, 0.8, 1.0), finished(1, 0.7, 2.0)
    again = finished(2, 0.8, 3.0, architecture=first.architecture)
    trials = [first, second, again]
    assert hypervolumes(trials, [10.0]) == expected_volumes(trials)
    assert len(front(trials)) == 2


def test_influence_is_the_share_of_variance_between_values() -> None:
    trials = [
        finished(
            number,
            0.5 + 0.1 * (number % 2),
            1.0 + number // 2,
            parameters={"a": number % 2, "b": number // 2},
            phone=3.0 + 3.0 * (number % 2),
        )
        for number in range(4)
    ]
    by_dimension = {influence.dimension: influence for influence in influences(trials)}
    a, b = by_dimension["a"], by_dimension["b"]
    assert a.accuracy.share == pytest.approx(1.0)
    assert a.accuracy.gain == pytest.approx(0.1)
    assert a.latencies["phone"].share == pytest.approx(1.0)
    assert a.latencies["phone"].gain == pytest.approx(1.0)
    assert b.accuracy.share == pytest.approx(0.0)
    assert b.latencies[FIRST].share == pytest.approx(1.0)
    assert b.latencies[FIRST].gain == pytest.approx(1.0)
    assert b.latencies["phone"].share == pytest.approx(0.0)


def test_a_dimension_that_is_not_always_asked_has_an_influence() -> None:
    trials = [
        finished(0, 0.5, 1.0, parameters={"window": 0}),
        finished(1, 0.6, 1.0, parameters={"window": 2, "alpha": 0.0}),
        finished(2, 0.8, 1.0, parameters={"window": 2, "alpha": 1.0}),
    ]
    by_dimension = {influence.dimension: influence for influence in influences(trials)}
    assert by_dimension["alpha"].accuracy.gain == pytest.approx(0.2)
    assert by_dimension["alpha"].accuracy.share > by_dimension["window"].accuracy.share


def test_latency_by_stage_adds_up_to_the_latency(tmp_path: Path) -> None:
    trials = run(f"sqlite:///{tmp_path / 'study.db'}", 30)
    members = front(trials)
    rows = latency_by_stage(members, trials, FIRST, 32)
    assert len(rows) == len(members)
    for member, row in zip(members, rows, strict=True):
        assert sum(row) == pytest.approx(member.result.latencies[FIRST].latency_ms, rel=0.1)
    assert latency_by_stage(members, trials[:7], FIRST, 32) == []

"""Successive halving: which trainings go on, what a search stores of the others, and what its sampler learns from them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from optuna.trial import TrialState

from search.results.tables import accuracy_text, note_text
from search.study.evaluate import Rules
from search.study.front import front
from search.study.halving import Halving
from search.study.samplers.row import Row, with_expected_accuracies
from search.study.samplers.surrogate import SurrogateSampler
from search.study.storage import open_study
from search.study.trial import STATUS, TrialRecord
from tests.support.known_engine import SPACE, KnownEngine, ShuffledEngine, finished, interrupting, run, sampler

RUNGS = (1, 3)


def rules() -> Rules:
    return Rules(seed=0, halving=Halving(RUNGS, 3))


@pytest.fixture
def storage(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'study.db'}"


def test_first_trainings_go_on() -> None:
    halving = Halving(RUNGS, 3)
    for number in range(4):  # each worse than the one before
        halving.add(1, str(number), 0.5 - 0.1 * number, [1.0 + number])
        assert halving.should_continue(1, str(number)) == (number < 2)
    assert halving.should_continue(1, "0")


def test_whole_fronts_go_on_and_nothing_below_the_share() -> None:
    rng, halving = np.random.default_rng(0), Halving(RUNGS, 3)
    points = {str(number): (rng.random(), rng.random()) for number in range(60)}
    for key, (accuracy, latency_ms) in points.items():
        halving.add(3, key, accuracy, [latency_ms])
    going = {key for key in points if halving.should_continue(3, key)}
    assert 20 <= len(going) <= 40
    for key in points.keys() - going:
        accuracy, latency_ms = points[key]
        assert any(points[other][0] >= accuracy and points[other][1] <= latency_ms for other in going)


def test_network_that_comes_to_a_rung_again_counts_once() -> None:
    halving = Halving(RUNGS, 2)
    for _ in range(5):
        halving.add(1, "good", 0.5, [1.0])
    halving.add(1, "bad", 0.4, [2.0])
    assert not halving.should_continue(1, "bad")
    assert halving.should_continue(1, "good")


def test_search_stops_trainings_early_and_stores_why(storage: str) -> None:
    engine = KnownEngine()
    trials = run(storage, 40, engine, rules=rules())
    stopped = [trial for trial in trials if trial.result.stopped_after is not None]
    assert len(trials) == 40
    assert 10 < len(stopped) < 40
    assert len(engine.trained) == len(set(engine.trained)) < 40
    assert {trial.origin for trial in stopped} == {"sampled"}
    assert all(trial.result.stopped_seconds == 0.1 for trial in stopped)
    assert not {trial.architecture.key for trial in stopped} & {trial.architecture.key for trial in front(trials)}
    study = open_study("test", storage, create=False)
    for trial in stopped:
        stored = study.trials[trial.number]
        assert stored.state == TrialState.PRUNED
        assert trial.result.accuracy is None
        assert trial.result.feasible
        (*_, last) = trial.result.rungs.items()
        epochs = "1 epoch" if last[0] == 1 else "3 epochs"
        expected = f"accuracy {last[1]:.4f} after {epochs}, dominated by other networks there"
        assert stored.user_attrs[STATUS] == f"stopped early: {expected}"
        assert (accuracy_text(trial), note_text(trial)) == ("stopped early", expected)
    assert all(tuple(trial.result.rungs) == RUNGS for trial in front(trials) if not trial.result.reused_accuracy)


def test_front_is_that_of_whole_trainings(tmp_path: Path) -> None:
    """The known engine ranks networks alike after any number of epochs."""
    fronts = [
        {trial.architecture.key for trial in front(run(f"sqlite:///{tmp_path}/{name}.db", 40, **settings))}
        for name, settings in {"halving": {"rules": rules()}, "whole": {}}.items()
    ]
    assert fronts[0] == fronts[1]


@pytest.mark.parametrize(
    "make",
    [
        None,
        sampler(
            SurrogateSampler, space=SPACE, img_size=32, n_startup_trials=8, population_size=8, num_children=16, mutation=0.25
        ),
    ],
)
def test_interrupted_search_goes_on_as_if_it_had_not_been(tmp_path: Path, make: object) -> None:
    changed = {} if make is None else {"make_sampler": make}
    whole = run(f"sqlite:///{tmp_path}/whole.db", 30, rules=rules(), **changed)
    storage = f"sqlite:///{tmp_path}/parts.db"
    with pytest.raises(KeyboardInterrupt):
        run(storage, 30, KnownEngine(interrupting(37)), rules=rules(), **changed)
    parts = run(storage, 30, rules=rules(), **changed)
    assert [(t.architecture.key, dict(t.result.rungs)) for t in parts] == [
        (t.architecture.key, dict(t.result.rungs)) for t in whole
    ]


def test_several_trials_at_a_time_are_compared(storage: str) -> None:
    trials = run(storage, 40, ShuffledEngine(), rules=rules())
    assert len(trials) == 40
    assert any(trial.result.stopped_after for trial in trials)


def with_rungs(trial: TrialRecord, *accuracies: float, is_complete: bool = True) -> TrialRecord:
    rungs = dict(zip(RUNGS, accuracies, strict=False))
    accuracy = trial.result.accuracy if is_complete else None
    return replace(trial, result=replace(trial.result, accuracy=accuracy, rungs=rungs))


def test_sampler_expects_what_complete_trainings_gained() -> None:
    complete = [with_rungs(finished(number, 0.6 + 0.1 * number, 1.0), 0.2, 0.5) for number in range(3)]
    stopped = with_rungs(finished(3, 0.0, 1.0), 0.15, is_complete=False)
    later = with_rungs(finished(4, 0.0, 1.0), 0.2, 0.4, is_complete=False)
    rows = [Row.of(trial, 32) for trial in [*complete, stopped, later]]
    assert not rows[3].is_scored
    assert [row.accuracy for row in with_expected_accuracies(rows)] == pytest.approx([0.6, 0.7, 0.8, 0.65, 0.6])
    assert [row.accuracy for row in with_expected_accuracies(rows[3:4])] == [0.15]  # nothing is known of its gain

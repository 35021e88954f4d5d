"""A search knows what it can still gain: predictions of the sampler, and how much of them came true."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from search.latency.estimate import Estimate
from search.study.convergence import HORIZON, MIN_PROPOSALS, Convergence
from search.study.samplers.surrogate import SurrogateSampler
from search.study.storage import open_study
from search.study.trial import SAMPLED, TrialRecord, finished_trials
from tests.support.known_engine import SPACE, KnownEngine, coordinator, fill, run

SURROGATE = partial(SurrogateSampler, SPACE, 32, n_startup_trials=10, population_size=8, num_children=24, mutation=0.15)


@pytest.fixture
def storage(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'study.db'}"


@pytest.fixture
def trial(storage: str) -> TrialRecord:
    return run(storage, 1)[0]


def with_values(trial: TrialRecord, number: int, accuracy: float, ms: float, expected_gain: float | None) -> TrialRecord:
    """Another network, measured without an error."""
    latencies = {
        name: replace(latency, estimate=Estimate(ms, 1e-6, 100.0)) for name, latency in trial.result.latencies.items()
    }
    assert trial.result.accuracy is not None
    result = replace(trial.result, latencies=latencies, accuracy=replace(trial.result.accuracy, accuracy=accuracy))
    stage = replace(trial.architecture.stages[0], depth=number + 1)
    architecture = replace(trial.architecture, stages=(stage, *trial.architecture.stages[1:]))
    origin = "known" if expected_gain is None else SAMPLED
    return replace(
        trial, number=number, architecture=architecture, result=result, origin=origin, expected_gain=expected_gain
    )


def test_predictions_are_scaled_by_what_came_true(trial: TrialRecord) -> None:
    """Each network adds 0.001 of the box of 10 ms, twice as much is predicted, and half of it is expected to go on."""
    convergence = Convergence([10.0])
    convergence.observe(with_values(trial, 0, accuracy=0.2, ms=5.0, expected_gain=None))
    num_proposals = MIN_PROPOSALS + 4
    for number in range(1, num_proposals + 1):
        assert convergence.outlook() is None or number > MIN_PROPOSALS
        convergence.observe(with_values(trial, number, accuracy=0.2 + 0.002 * number, ms=5.0, expected_gain=0.002))
    outlook = convergence.outlook()
    assert outlook is not None
    assert outlook.share == pytest.approx(HORIZON * 0.001 / (num_proposals * 0.001))
    assert f"next {HORIZON} networks" in str(outlook)


def test_nothing_is_expected_of_proposals_that_add_nothing(trial: TrialRecord) -> None:
    convergence = Convergence([10.0])
    convergence.observe(with_values(trial, 0, accuracy=0.2, ms=5.0, expected_gain=None))
    convergence.observe(with_values(trial, 1, accuracy=0.9, ms=5.0, expected_gain=0.3))
    for number in range(2, MIN_PROPOSALS + HORIZON):
        convergence.observe(with_values(trial, number, accuracy=0.1, ms=6.0, expected_gain=0.0))
    outlook = convergence.outlook()
    assert outlook is not None
    assert outlook.share == 0


def test_without_predictions_there_is_no_outlook(storage: str) -> None:
    trials = run(storage, MIN_PROPOSALS + 20)  # random ones
    assert all(trial.expected_gain is None for trial in trials)
    assert Convergence.of(trials, [10.0]).outlook() is None


def test_predictions_are_stored_with_the_trials(storage: str) -> None:
    trials = run(storage, 30, make_sampler=SURROGATE(seed=0).seeded)
    predicted = [trial.expected_gain for trial in trials]
    assert predicted[:10] == [None] * 10
    assert all(gain is not None and gain >= 0 for gain in predicted[10:])
    assert any(gain for gain in predicted[10:])


def test_search_ends_when_little_is_expected(storage: str) -> None:
    """It then has found most of what a search of three times its length finds; repeated, it ends again at once."""
    make_sampler = SURROGATE(seed=0).seeded
    study = open_study("test", storage, create=True)
    first_run = coordinator(study, KnownEngine(), make_sampler=make_sampler, convergence=Convergence([10.0], 0.05))
    assert fill(first_run, 400)
    ended = finished_trials(study)
    assert 10 + MIN_PROPOSALS <= len(ended) < 400
    again = coordinator(study, KnownEngine(), make_sampler=make_sampler, convergence=Convergence([10.0], 0.05))
    assert fill(again, 400)
    assert len(finished_trials(study)) == len(ended)
    longer = open_study("longer", storage, create=True)
    fill(coordinator(longer, KnownEngine(), make_sampler=SURROGATE(seed=0).seeded), 3 * len(ended))
    first, last = (Convergence.of(finished_trials(each), [10.0]) for each in (study, longer))
    assert first._hypervolume - first._known > 0.9 * (last._hypervolume - last._known)

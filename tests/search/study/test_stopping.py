"""A search says why it is over, and by what settings it goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import optuna
import pytest

from search.study.convergence import HORIZON, MIN_PROPOSALS
from search.study.samplers.surrogate import SurrogateSampler
from search.study.stopping import StoppingCriteria, stop_reason
from search.study.storage import SEARCH_SECONDS, open_study
from tests.support.known_engine import SPACE, KnownEngine, coordinator, fill

OPEN = StoppingCriteria(n_trials=400, timeout_minutes=2.0, min_expected_gain=1e-9)
NUM_TRIALS = 10 + MIN_PROPOSALS  # ten that nothing is predicted of
COMPLETE = StoppingCriteria(n_trials=40)
CONVERGED = replace(OPEN, min_expected_gain=1.0)
LATE = replace(OPEN, timeout_minutes=1.0)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> optuna.Study:
    """A study that has run for a minute."""
    study = open_study("test", f"sqlite:///{tmp_path_factory.mktemp('study') / 'study.db'}", create=True)
    sampler = SurrogateSampler(SPACE, 32, n_startup_trials=10, population_size=8, num_children=24, mutation=0.15, seed=0)
    fill(coordinator(study, KnownEngine(), make_sampler=sampler.seeded), NUM_TRIALS)
    study.set_user_attr(SEARCH_SECONDS, 60.0)
    return study


@pytest.mark.parametrize("criteria", [OPEN, StoppingCriteria(n_trials=400)], ids=["all", "trials"])
def test_search_is_not_over_before_a_limit(study: optuna.Study, criteria: StoppingCriteria) -> None:
    assert stop_reason(study, SPACE, criteria) is None


@pytest.mark.parametrize(
    ("criteria", "text", "remedy"),
    [
        (COMPLETE, f"is complete: {NUM_TRIALS} of 40 trials are finished", "study.n_trials above 40"),
        (
            CONVERGED,
            f"has converged after {NUM_TRIALS} trials: the next {HORIZON} networks are expected to add ",
            "study.min_expected_gain=null, or a smaller one",
        ),
        (LATE, "has reached its time limit, study.timeout_minutes=1", "study.timeout_minutes above 1"),
    ],
    ids=["complete", "converged", "late"],
)
def test_search_is_over_at_a_limit(study: optuna.Study, criteria: StoppingCriteria, text: str, remedy: str) -> None:
    reason = stop_reason(study, SPACE, criteria)
    assert reason is not None
    assert reason.text.startswith(text)
    assert reason.remedy == remedy


def test_all_limits_that_are_reached_are_named(study: optuna.Study) -> None:
    """Raising one of them is not enough to go on."""
    reason = stop_reason(study, SPACE, replace(COMPLETE, timeout_minutes=1.0))
    assert reason is not None
    assert "40 of 40 trials are finished and has reached its time limit" in reason.text
    assert reason.remedy == "study.n_trials above 40 and study.timeout_minutes above 1"


def test_before_the_first_trial_time_alone_ends_a_search(tmp_path: Path) -> None:
    empty = open_study("empty", f"sqlite:///{tmp_path / 'study.db'}", create=True)
    assert stop_reason(empty, SPACE, OPEN) is None
    empty.set_user_attr(SEARCH_SECONDS, 120.0)
    reason = stop_reason(empty, SPACE, OPEN)
    assert reason is not None
    assert reason.text.endswith("study.timeout_minutes=2")

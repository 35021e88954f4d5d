"""Trials that something else has enqueued, and what they leave as it was."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from search.study.storage import open_study
from search.study.trial import finished_trials
from tests.support.known_engine import SPACE, run

SMALLEST = SPACE.baselines()["smallest"]


@pytest.fixture
def storage(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'study.db'}"


def enqueue(storage: str, parameters: dict[str, Any]) -> None:
    """Enqueue a trial as another process does."""
    open_study("test", storage, create=True).enqueue_trial(parameters)


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({**SMALLEST, "stage1.depth": 5}, "stage1.depth=5 is not in the space; choose from 1, 2"),
        ({**SMALLEST, "stage1.depth": "deep"}, "stage1.depth='deep' is not in the space"),
        ({**SMALLEST, "stage1.window_size": 7}, "stage1.window_size=7 is not in the space"),
        ({**SMALLEST, "stage1.size": 1}, "stage1.size is not a parameter of the space"),
        ({"stage1.depth": 1}, "embed_dim is missing"),
    ],
)
def test_enqueued_trial_outside_the_space_fails_with_its_reason(
    storage: str, parameters: dict[str, Any], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    enqueue(storage, parameters)
    trials = run(storage, 8, max_consecutive_failures=1)
    assert len(trials) == 8
    assert all(trial.number > 0 for trial in trials)
    failed = open_study("test", storage, create=False).trials[0]
    assert failed.state == TrialState.FAIL
    assert failed.user_attrs["status"].startswith(f"enqueued with parameters that cannot be evaluated: {reason}")
    assert reason in caplog.text
    assert [trial.state for trial in open_study("test", storage, create=False).trials].count(TrialState.FAIL) == 1


def test_trial_that_is_enqueued_while_a_search_is_stopped_changes_no_other(storage: str, tmp_path: Path) -> None:
    other = f"sqlite:///{tmp_path / 'other.db'}"
    for url in (storage, other):
        run(url, 7)
    enqueue(storage, {**SMALLEST, "stage1.depth": 5})
    keys = [[trial.architecture.key for trial in run(url, 15)] for url in (storage, other)]
    assert keys[0] == keys[1]


def test_enqueued_network_of_the_space_is_evaluated(storage: str) -> None:
    parameters = {**SMALLEST, "stage1.window_size": 2, "stage1.alpha": 0.5, "stage3.num_heads": 1}
    enqueue(storage, parameters)
    trials = run(storage, 8)
    assert trials[0].architecture == SPACE.architecture(parameters)


def test_baselines_are_tried_once_beside_enqueued_trials(storage: str) -> None:
    enqueue(storage, dict(SMALLEST))
    enqueue(storage, {"embed_dim": 0})
    run(storage, 2)
    enqueue(storage, dict(SMALLEST))
    run(storage, 12)
    origins = Counter(trial.origin for trial in finished_trials(open_study("test", storage, create=False)))
    assert origins == {**dict.fromkeys(SPACE.baselines(), 1), "sampled": 12 - len(SPACE.baselines())}

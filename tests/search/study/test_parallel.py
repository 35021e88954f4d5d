"""Many trials at a time, on several targets: as many as asked for, nothing twice, whatever ends first."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from models.architecture import Architecture
from search import UserError
from search.accuracy.base import Accuracy, Progress
from search.latency.block_model import Prediction
from search.results.picking import pick
from search.results.tables import front_table
from search.study.evaluate import Rules, evaluate
from search.study.front import front
from search.study.known import Known
from search.study.samplers.surrogate import SurrogateSampler
from search.study.storage import open_study
from search.study.targets import FIRST, Role, targets_of
from search.study.trial import INTERRUPTED, TrialResult
from tests.search.study.samplers.test_surrogate import SETTINGS
from tests.support.known_engine import (
    SPACE,
    KnownEngine,
    ShuffledEngine,
    constraint,
    finished,
    interrupting,
    known_targets,
    run,
    sampler,
)


@pytest.fixture
def storage(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'study.db'}"


@pytest.mark.parametrize("seed", range(3))
def test_exactly_as_many_as_asked_for(storage: str, seed: int) -> None:
    engine = ShuffledEngine(seed)
    assert len(run(storage, 21, engine)) == 21
    study = open_study("test", storage, create=False)
    assert Counter(trial.state for trial in study.trials) == {TrialState.COMPLETE: 21}
    assert engine.most > 1
    assert not engine.waiting


def test_nothing_is_trained_twice(storage: str) -> None:
    """800 networks, drawn at random: some come up again while they are being evaluated."""
    engine = ShuffledEngine()
    trials = run(storage, 150, engine)
    assert len(engine.trained) == len(set(engine.trained))
    repeated = [trial for trial in trials if trial.result.reused_accuracy]
    assert len(repeated) == 150 - len(engine.trained) > 0
    counts = Counter(engine.measured)
    last = {trial.architecture.key: trial.result.latencies[FIRST].repetitions for trial in trials}
    assert all(last[key] == 20 * counts[key] for key in last)


def test_trials_of_one_network_wait_for_each_other(storage: str) -> None:
    """One network, enqueued six times: every trial but the first waits for the one before."""
    engine = ShuffledEngine()
    study = open_study("test", storage, create=True)
    for _ in range(6):
        study.enqueue_trial(dict(SPACE.baselines()["smallest"]))
    trials = run(storage, 6, engine)
    assert len(engine.trained) == 1
    assert [trial.result.latencies[FIRST].repetitions for trial in trials] == [20, 40, 60, 80, 100, 120]


def test_failed_trials_are_made_up_for(storage: str) -> None:
    def fail(part: str, architecture: Architecture) -> None:
        if part == "train" and architecture.embed_dim == 16:
            raise RuntimeError("loss is nan")

    trials = run(storage, 20, ShuffledEngine(fault=fail), max_consecutive_failures=100)
    assert len(trials) == 20
    assert all(trial.architecture.embed_dim == 8 for trial in trials)


def test_interrupted_trials_are_closed_and_the_study_ends_exactly(storage: str) -> None:
    interrupt = interrupting(9, 30)
    engine = ShuffledEngine(fault=interrupt)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run(storage, 20, engine)
        engine = ShuffledEngine(fault=interrupt)
    assert len(run(storage, 20, engine)) == 20
    trials = open_study("test", storage, create=False).trials
    assert not [trial for trial in trials if trial.state == TrialState.RUNNING]
    assert {trial.user_attrs["status"] for trial in trials if trial.state == TrialState.FAIL} == {INTERRUPTED}


def test_same_order_gives_the_same_trials(storage: str, tmp_path: Path) -> None:
    def keys(url: str, engine: KnownEngine) -> list[str]:
        make = sampler(SurrogateSampler, **SETTINGS)
        return [trial.architecture.key for trial in run(url, 30, engine, make_sampler=make)]

    urls = [storage, *(f"sqlite:///{tmp_path / name}.db" for name in "abc")]
    assert keys(urls[0], KnownEngine()) == keys(urls[1], KnownEngine())
    assert keys(urls[2], ShuffledEngine(5)) == keys(urls[3], ShuffledEngine(5))


def test_running_networks_are_not_proposed(storage: str) -> None:
    engine = ShuffledEngine()
    trials = run(storage, 60, engine, make_sampler=sampler(SurrogateSampler, **SETTINGS))
    assert len({trial.architecture.key for trial in trials}) == 60


def test_sampler_that_remembers_proposes_what_a_new_one_does(storage: str, tmp_path: Path) -> None:
    remembering = SurrogateSampler(**SETTINGS)
    new = sampler(SurrogateSampler, **SETTINGS)
    proposed = [
        [trial.architecture.key for trial in run(url, 30, make_sampler=make)]
        for url, make in ((storage, remembering.seeded), (f"sqlite:///{tmp_path / 'other.db'}", new))
    ]
    assert proposed[0] == proposed[1]


def test_lost_turns_are_made_up_for(storage: str, tmp_path: Path) -> None:
    """What is drawn follows from the turn alone here: every turn comes once, in whatever order."""
    interrupt = interrupting(11, 25)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run(storage, 20, ShuffledEngine(fault=interrupt))
    resumed = run(storage, 20, ShuffledEngine())
    whole = run(f"sqlite:///{tmp_path / 'other.db'}", 20)
    assert sorted(trial.architecture.key for trial in resumed) == sorted(trial.architecture.key for trial in whole)


TWO = (FIRST, "phone")


@pytest.mark.parametrize("kind", [KnownEngine, ShuffledEngine])
def test_latency_on_each_target_is_an_objective(storage: str, kind: Any) -> None:
    trials = run(storage, 40, kind(targets=TWO), make_sampler=sampler(SurrogateSampler, **SETTINGS))
    assert len(trials) == 40
    assert all(set(trial.result.objectives) == set(TWO) for trial in trials)
    study = open_study("test", storage, create=False)
    assert {name: target.role for name, target in targets_of(study).items()} == dict.fromkeys(TWO, Role.OBJECTIVE)
    assert all(len(trial.values) == 3 for trial in study.trials)
    best = {trial.number for trial in study.best_trials}
    assert {trial.number for trial in front(trials)} <= best  # which contains repeats too
    assert any("phone" in str(column.header) for column in front_table("front", trials, None).columns)


def test_a_target_may_be_a_constraint(storage: str) -> None:
    engine = KnownEngine(targets=TWO)
    trials = run(storage, 40, engine, targets=known_targets(engine, phone=constraint(6.0)))
    over = [trial for trial in trials if not trial.result.feasible]
    assert over
    for trial in over:
        assert trial.result.latencies["phone"].latency_ms > 6.0
        assert trial.result.accuracy is None
        assert set(trial.result.objectives) == {FIRST}
    study = open_study("test", storage, create=False)
    statuses = {study.trials[trial.number].user_attrs["status"] for trial in over}
    assert all("on phone is over the budget of 6 ms" in status for status in statuses)
    assert all(trial.result.latencies["phone"].latency_ms <= 6.0 for trial in front(trials))


def test_a_target_after_an_exceeded_limit_is_not_measured(storage: str) -> None:
    engine = KnownEngine(targets=TWO)
    trials = run(storage, 30, engine, targets=known_targets(engine, 1.8, phone=constraint(9.0)))
    over = [trial for trial in trials if trial.result.latencies[FIRST].latency_ms > 1.8]
    assert over
    assert not any("phone" in trial.result.latencies for trial in over)
    for trial in open_study("test", storage, create=False).trials:
        assert len(trial.system_attrs["constraints"]) == 2  # samplers refuse to compare lists of different lengths


def test_a_target_whose_block_model_has_no_record_yet_is_left_out() -> None:
    class Scoring(KnownEngine):
        async def train(
            self, architecture: Architecture, seed: int, progress: Progress, num_epochs: int | None = None
        ) -> Accuracy:
            return Accuracy(0.5, 1000, seed, 0.1)

    engine = Scoring(targets=TWO)
    targets = known_targets(engine, phone=constraint(9.0))
    known = Known(
        predictions={FIRST: Prediction(5.0, 0.05, 20), "phone": Prediction(8.0, None, 3)},
        front=[finished(0, 0.9, 1.0).result],
    )
    rules = Rules(seed=0, scores_before_measuring=True)
    result = asyncio.run(evaluate(SPACE.largest(), known, engine, targets, rules))
    assert isinstance(result, TrialResult)
    assert result.latencies[FIRST].latency_ms == 5.0
    assert not result.measured
    assert set(result.latencies) == {FIRST}
    assert not engine.measured


def test_picking_knows_the_targets() -> None:
    values = [(0.7, 1.0, 9.0), (0.8, 2.0, 3.0), (0.9, 4.0, 12.0)]
    members = [finished(number, accuracy, ms, phone=phone) for number, (accuracy, ms, phone) in enumerate(values)]
    assert [member.number for member in pick(members, "latency.phone<=10ms")] == [1]
    assert [member.number for member in pick(members, "latency<=1.5")] == [0]
    assert [member.number for member in pick(members, "knee")] == [1]
    with pytest.raises(UserError, match=r"tablet.*phone"):
        pick(members, "latency.tablet<=10ms")


def test_a_result_without_roles_has_objectives_only() -> None:
    result = replace(finished(0, 0.7, 1.0, phone=2.0).result, roles={"phone": Role.CONSTRAINT})
    assert list(result.objectives) == [FIRST]
    assert result.latencies_ms == [1.0]

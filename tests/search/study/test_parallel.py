"""Many trials under way at once, on several devices: as many as asked for, nothing twice, whatever ends first."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from models.architecture import Architecture
from search import UserError
from search.accuracy.base import Accuracy
from search.engine.base import Job
from search.engine.work import Measure, Train
from search.latency.block_model import Prediction
from search.results.picking import pick
from search.results.view import front_table
from search.study.evaluate import Budgeted, Context, Objective
from search.study.samplers.surrogate import SurrogateSampler
from search.study.storage import open_study
from search.study.trial import INTERRUPTED, finished_trials, front, further_objectives
from tests.search.study.samplers.test_surrogate import SETTINGS
from tests.support.known_engine import SPACE, KnownEngine, coordinator, finished, interrupting, run, sampler


class ShuffledEngine(KnownEngine):
    """Several trainings at once, which end in a random order."""

    def __init__(self, seed: int = 0, **kwargs: Any) -> None:
        super().__init__(num_parallel=4, holds_back=True, **kwargs)
        self.rng = random.Random(seed)
        self.most = 0

    def wait(self, seconds: float) -> list[Job]:
        self.most = max(self.most, len(self.pending))
        if self.pending and seconds:
            self.finish(self.rng.randrange(len(self.pending)))
        return super().wait(0.0)


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
    assert not engine.pending


def test_nothing_is_trained_twice(storage: str) -> None:
    """800 networks, drawn at random: some come up again while they are being judged."""
    engine = ShuffledEngine()
    trials = run(storage, 150, engine)
    assert len(engine.trained) == len(set(engine.trained))
    repeated = [trial for trial in trials if trial.outcome.reused_accuracy]
    assert len(repeated) == 150 - len(engine.trained) > 0
    counts = Counter(engine.measured)
    last = {trial.architecture.key: trial.outcome.latency.repetitions for trial in trials}
    assert all(last[key] == 20 * counts[key] for key in last)


def test_one_network_at_once_waits_for_itself(storage: str) -> None:
    """A space of one network: every trial but the first waits for the one before."""
    space = type(SPACE)(
        8, [{"depth": 1, "window_size": 0, "alpha": 0.0, "num_heads": 1}] * 4, patch_size=2, downsample="conv"
    )
    engine = ShuffledEngine()
    trials = run(storage, 6, engine, space=space)
    assert len(engine.trained) == 1
    assert [trial.outcome.latency.repetitions for trial in trials] == [20, 40, 60, 80, 100, 120]


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


def test_networks_that_are_under_way_are_not_proposed(storage: str) -> None:
    engine = ShuffledEngine()
    trials = run(storage, 60, engine, make_sampler=sampler(SurrogateSampler, **SETTINGS))
    assert len({trial.architecture.key for trial in trials}) == 60


def test_sampler_that_remembers_proposes_what_a_new_one_does(storage: str, tmp_path: Path) -> None:
    remembering = SurrogateSampler(**SETTINGS)
    new = sampler(SurrogateSampler, **SETTINGS)
    found = [
        [trial.architecture.key for trial in run(url, 30, make_sampler=make)]
        for url, make in ((storage, remembering.seeded), (f"sqlite:///{tmp_path / 'other.db'}", new))
    ]
    assert found[0] == found[1]


def test_lost_turns_are_made_up_for(storage: str, tmp_path: Path) -> None:
    """What is drawn follows from the turn alone here: every turn comes once, in whatever order."""
    interrupt = interrupting(11, 25)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run(storage, 20, ShuffledEngine(fault=interrupt))
    found = run(storage, 20, ShuffledEngine())
    whole = run(f"sqlite:///{tmp_path / 'other.db'}", 20)
    assert sorted(one.architecture.key for one in found) == sorted(one.architecture.key for one in whole)


def test_machine_measures_alone_and_nothing_overtakes_what_waits_for_it() -> None:
    engine = KnownEngine(num_parallel=2, holds_back=True, beside=False)
    calibration = engine.known_devices()["first"].calibration
    network = SPACE.anchor()
    for work in (Train(network, 0), Train(network, 1), Measure("first", network, calibration), Train(network, 2)):
        engine.submit(work)

    def under_way() -> list[Any]:
        return [work.seed if isinstance(work, Train) else "measuring" for work, _ in engine.pending]

    order = [under_way()]
    while engine.pending:
        engine.finish(0)
        engine.wait(0.0)
        order.append(under_way())
    assert order == [[0, 1], [1], ["measuring"], [2], []]


DEVICES = ("first", "phone")


def on_two(storage: str, n_trials: int, engine: KnownEngine, **kwargs: Any) -> list[Any]:
    study = open_study("test", storage, create=True, num_latencies=2)
    study.set_user_attr("further_reference_latencies_ms", {"phone": 30.0})
    coordinator(study, engine, reference_ms=[10.0, 30.0], **kwargs).run(n_trials, None)
    return finished_trials(study)


@pytest.mark.parametrize("kind", [KnownEngine, ShuffledEngine])
def test_latency_on_each_device_is_an_objective(storage: str, kind: Any) -> None:
    trials = on_two(storage, 40, kind(devices=DEVICES), make_sampler=sampler(SurrogateSampler, **SETTINGS))
    assert len(trials) == 40
    assert all(set(trial.outcome.others) == {"phone"} for trial in trials)
    study = open_study("test", storage, create=False)
    assert further_objectives(study) == ["phone"]
    assert all(len(trial.values) == 3 for trial in study.trials)
    best = {trial.number for trial in study.best_trials}
    assert {trial.number for trial in front(trials)} <= best  # which holds repeats too
    assert "phone" in str(front_table("front", trials).columns[3].header)


def test_further_device_may_be_a_budget_alone(storage: str) -> None:
    engine = KnownEngine(devices=DEVICES)
    calibration = engine.known_devices()["first"].calibration
    devices = {"first": Budgeted(calibration), "phone": Budgeted(calibration, 6.0, is_objective=False)}
    trials = run_with(storage, 40, engine, devices)
    over = [trial for trial in trials if not trial.outcome.feasible]
    assert over
    for trial in over:
        assert trial.outcome.limited["phone"].latency_ms > 6.0
        assert trial.outcome.accuracy is None
    study = open_study("test", storage, create=False)
    statuses = {study.trials[trial.number].user_attrs["status"] for trial in over}
    assert all("on phone is over the budget of 6 ms" in status for status in statuses)
    assert all(trial.outcome.limited["phone"].latency_ms <= 6.0 for trial in front(trials))


def test_device_after_a_broken_budget_is_not_measured(storage: str) -> None:
    engine = KnownEngine(devices=DEVICES)
    calibration = engine.known_devices()["first"].calibration
    devices = {"first": Budgeted(calibration, 1.8), "phone": Budgeted(calibration, 9.0, is_objective=False)}
    trials = run_with(storage, 30, engine, devices)
    over = [trial for trial in trials if trial.outcome.latency.latency_ms > 1.8]
    assert over
    assert not any(trial.outcome.limited for trial in over)
    for trial in open_study("test", storage, create=False).trials:
        assert len(trial.system_attrs["constraints"]) == 2  # samplers refuse to compare lists of different lengths


def test_device_whose_model_has_no_record_yet_is_left_out() -> None:
    devices = KnownEngine(devices=DEVICES).known_devices()
    devices["phone"] = replace(devices["phone"], budget_ms=9.0, is_objective=False)
    context = Context(
        predictions={"first": Prediction(5.0, 0.05, 20), "phone": Prediction(8.0, None, 3)},
        front=[finished(0, 0.9, 1.0).outcome],
    )
    judgement = Objective(devices, seed=0, accuracy_first=True).judge(SPACE.largest(), context)
    assert isinstance(next(judgement).work, Train)
    with pytest.raises(StopIteration) as end:
        judgement.send(Accuracy(0.5, 1000, 0, 0.1))
    outcome = end.value.value
    assert outcome.latency.latency_ms == 5.0
    assert not outcome.latency.measured
    assert not outcome.further


def test_all_lanes_close_though_ctrl_c_comes_meanwhile() -> None:
    engine, closed = KnownEngine(num_parallel=2), []

    def close(index: int) -> None:
        closed.append(index)
        if len(closed) == 1:
            raise KeyboardInterrupt

    for index, lane in enumerate(engine._lanes):
        lane.close = partial(close, index)  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        engine.close()
    assert closed == [2, 1, 0]


def run_with(storage: str, n_trials: int, engine: KnownEngine, devices: dict[str, Budgeted]) -> list[Any]:
    study = open_study("test", storage, create=True)
    coordinator(study, engine, objective=Objective(devices, seed=0)).run(n_trials, None)
    return finished_trials(study)


def test_picking_knows_the_devices() -> None:
    members = [finished(number, accuracy, ms) for number, (accuracy, ms) in enumerate([(0.7, 1.0), (0.8, 2.0), (0.9, 4.0)])]
    members = [
        replace(one, outcome=replace(one.outcome, others={"phone": replace(one.outcome.latency, latency_ms=ms)}))
        for one, ms in zip(members, (9.0, 3.0, 12.0), strict=True)
    ]
    assert [one.number for one in pick(members, "latency.phone<=10ms")] == [1]
    assert [one.number for one in pick(members, "latency<=1.5")] == [0]
    assert [one.number for one in pick(members, "knee")] == [1]
    with pytest.raises(UserError, match="no further device tablet; there are phone"):
        pick(members, "latency.tablet<=10ms")

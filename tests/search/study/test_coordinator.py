"""The coordinator: exact counts, nothing trained twice, nothing lost, refusals, failures.

Measuring and training are the slow parts, so these tests give the coordinator an engine that knows the answers at once;
everything else, storage included, is the real thing. The real engine is tested in engine/test_local.py, the whole in
commands/test_run.py.
"""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from rich.console import Console

from models.architecture import Architecture
from search import SearchStopped, UserError
from search.latency.base import Calibration, Latency
from search.latency.block_model import BlockModel, Prediction
from search.results.tables import latency_text
from search.results.view import LiveView, LogView
from search.study.evaluate import Rules
from search.study.front import front
from search.study.locks import folder_lock
from search.study.storage import open_study, public_url, remember
from search.study.targets import FIRST
from search.study.trial import INTERRUPTED, finished_trials
from tests.support.known_engine import (
    CALIBRATION,
    SPACE,
    KnownEngine,
    coordinator,
    count_skipped,
    fill,
    known_targets,
    run,
    sampler,
)


@pytest.fixture
def storage(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'study.db'}"


def test_exactly_as_many_as_asked_for(storage: str) -> None:
    assert len(run(storage, 12)) == 12
    assert len(run(storage, 12)) == 12
    assert len(run(storage, 20)) == 20


def test_baselines_come_first(storage: str) -> None:
    trials = run(storage, 7)
    assert [t.origin for t in trials[:4]] == list(SPACE.baselines())
    assert {t.origin for t in trials[4:]} == {"sampled"}


def test_nothing_is_trained_twice_and_a_repeat_refines_its_latency(storage: str) -> None:
    engine = KnownEngine()
    trials = run(storage, 100, engine)
    assert len(engine.trained) == len(set(engine.trained)) < 100
    assert len(engine.measured) == 100
    repeated = [t for t in trials if t.result.reused_accuracy]
    assert len(repeated) == 100 - len(engine.trained)
    assert all(t.result.latencies[FIRST].repetitions >= 40 for t in repeated)
    last = {t.architecture.key: t.result.latencies[FIRST].repetitions for t in trials}
    assert all(last[key] == 20 * engine.measured.count(key) for key in last)


def test_over_budget_is_infeasible_untrained_and_not_in_the_front(storage: str) -> None:
    engine = KnownEngine()
    trials = run(storage, 40, engine, limit_ms=2.0)
    over = [t for t in trials if not t.result.feasible]
    assert over
    assert all(t.result.latencies[FIRST].latency_ms > 2.0 and t.result.accuracy is None for t in over)
    assert not {t.architecture.key for t in over} & set(engine.trained)
    assert all(t.result.latencies[FIRST].latency_ms <= 2.0 for t in front(trials))
    study = open_study("test", storage, create=False)
    for trial in study.trials:
        value = trial.system_attrs["constraints"][0]
        assert (value > 0) == (trial.state == TrialState.PRUNED)
        assert trial.constraints == {"0": value}  # as Optuna's samplers read it
        assert trial.user_attrs["status"].startswith(("infeasible: latency", "skipped: ")) == (value > 0)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(sampler(), marks=pytest.mark.slow),
        sampler(optuna.samplers.TPESampler, multivariate=True, group=True, n_startup_trials=5),
        pytest.param(sampler(optuna.samplers.NSGAIISampler, population_size=6), marks=pytest.mark.slow),
    ],
    ids=["random", "tpe", "nsga2"],
)
def test_same_seed_same_trials_also_after_a_resume(tmp_path: Path, make: Any) -> None:
    def keys(name: str, *stops: int) -> list[str]:
        for stop in stops:
            trials = run(f"sqlite:///{tmp_path / name}.db", stop, make_sampler=make)
        return [t.architecture.key for t in trials]

    assert keys("one", 25) == keys("two", 25) == keys("resumed", 3, 11, 25)


def test_interrupted_trial_does_not_count_and_the_rest_is_the_same(tmp_path: Path) -> None:
    calls = 0

    def interrupt_once_each(part: str, architecture: Architecture) -> None:
        nonlocal calls
        calls += 1
        if calls in (1, 4, 9, 14):
            raise KeyboardInterrupt

    engine, url = KnownEngine(interrupt_once_each), f"sqlite:///{tmp_path / 'a.db'}"
    for _ in range(4):
        with pytest.raises(KeyboardInterrupt):
            run(url, 15, engine)
    interrupted = run(url, 15, engine)
    plain = run(f"sqlite:///{tmp_path / 'b.db'}", 15)
    assert [t.architecture for t in interrupted] == [t.architecture for t in plain]
    states = [t.state for t in open_study("test", url, create=False).trials]
    assert states.count(TrialState.FAIL) == 4


def test_trial_left_running_by_a_kill_is_closed(storage: str) -> None:
    study = open_study("test", storage, create=True)
    SPACE.suggest(study.ask())
    study.ask()
    assert len(run(storage, 6)) == 6
    left = [t for t in open_study("test", storage, create=False).trials if t.state == TrialState.FAIL]
    assert [t.user_attrs["status"] for t in left] == [INTERRUPTED] * 2


def test_failure_is_recorded_with_its_reason_and_the_search_goes_on(storage: str) -> None:
    def diverge(part: str, architecture: Architecture) -> None:
        if part == "train" and architecture.embed_dim == 16 and architecture.stages[0].depth == 1:
            raise RuntimeError("loss is nan\nat step 3")

    assert len(run(storage, 15, KnownEngine(diverge), max_consecutive_failures=50)) == 15
    failed = [t for t in open_study("test", storage, create=False).trials if t.state == TrialState.FAIL]
    assert failed
    assert all(t.user_attrs["status"] == "RuntimeError: loss is nan at step 3" for t in failed)
    assert all(t.values is None for t in failed)


def test_several_failures_in_a_row_stop_the_search(storage: str) -> None:
    def fail(part: str, architecture: Architecture) -> None:
        raise MemoryError("no memory")

    with pytest.raises(SearchStopped, match="3 failed trials in a row.*MemoryError: no memory"):
        run(storage, 15, KnownEngine(fail))
    assert len(run(storage, 5)) == 5


def test_time_limit_stops_between_trials(storage: str) -> None:
    study = open_study("test", storage, create=True)
    assert not fill(coordinator(study, KnownEngine(), clock=partial(next, itertools.count())), 1000, timeout_minutes=1)
    assert 0 < len(finished_trials(study)) < 1000


def test_terminal_shows_a_search_with_skips_and_failures(storage: str) -> None:
    def fail(part: str, architecture: Architecture) -> None:
        if part == "train" and architecture.stages[0].depth == 1:
            raise RuntimeError("loss is nan")

    out = io.StringIO()
    with LiveView(Console(file=out, force_terminal=True, width=160, height=50), 40, []) as view:
        run(storage, 40, KnownEngine(fail), limit_ms=2.2, view=view, max_consecutive_failures=100)
    assert not view.running
    study = open_study("test", storage, create=False)
    assert count_skipped(study) > 0
    assert any(trial.state == TrialState.FAIL for trial in study.trials)
    assert "40 of 40" in out.getvalue()
    assert "block model off by" in out.getvalue()


def test_raw_samples_and_progress_are_handed_on(storage: str) -> None:
    saved: dict[int, Latency] = {}
    published: list[int] = []
    run(
        storage,
        60,
        save_samples=lambda number, network, result: saved.__setitem__(number, result.latencies[FIRST]),
        publish=lambda trials: published.append(len(trials)),
    )
    assert sorted(saved) == list(range(60))
    assert all(len(latency.rounds[0].ratios) == 20 for latency in saved.values())  # a repeat's own samples
    assert published[0] == 1
    assert published == sorted(set(published))


def test_networks_that_surely_break_the_budget_are_spared(storage: str) -> None:
    study = open_study("test", storage, create=True)
    engine = KnownEngine()
    limit_ms = 2.2
    started = coordinator(study, engine, known_targets(engine, limit_ms))
    fill(started, 40)
    assert len(finished_trials(study)) == 40
    skipped = [trial for trial in study.trials if "skipped_at_ms" in trial.user_attrs]
    assert len(skipped) == count_skipped(study) > 5
    for trial in skipped:
        architecture = Architecture.from_dict(trial.user_attrs["architecture"])
        truth = KnownEngine().latency(architecture).latency_ms
        assert truth > limit_ms
        assert trial.state == TrialState.PRUNED
        assert trial.system_attrs["constraints"][0] > 0
        assert "99% sure" in trial.user_attrs["status"]
        assert "latencies" not in trial.user_attrs  # a prediction never stands for one
    assert started.models[FIRST].median_error is not None
    assert any(trial.predicted_ms for trial in finished_trials(study))


def test_without_a_budget_nothing_is_spared(storage: str) -> None:
    run(storage, 40)
    assert count_skipped(open_study("test", storage, create=False)) == 0


def test_measured_network_is_never_spared(storage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = KnownEngine()
    run(storage, 40, engine, limit_ms=100.0)
    monkeypatch.setattr(Prediction, "above", lambda *args: True)
    study = open_study("test", storage, create=True)
    fill(coordinator(study, engine, known_targets(engine, 100.0)), 45)
    skipped = [trial for trial in study.trials if "skipped_at_ms" in trial.user_attrs]
    keys = [Architecture.from_dict(trial.user_attrs["architecture"]).key for trial in skipped]
    assert len(keys) > 0
    earlier = {trial.architecture.key for trial in finished_trials(study)[:40]}
    assert not set(keys) & earlier


def test_resumed_search_spares_no_more_in_a_row(storage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Prediction, "above", lambda *args: True)
    monkeypatch.setattr("search.study.coordinator.MAX_UNMEASURED", 4)

    class StopsOnSkip(LogView):
        """Ctrl-C in the middle of a row of skips."""

        def trial_skipped(self, number: int, reason: str) -> None:
            if number == 9:
                raise KeyboardInterrupt

    other = f"sqlite:///{tmp_path / 'other.db'}"
    with pytest.raises(KeyboardInterrupt):
        run(storage, 10, limit_ms=100.0, view=StopsOnSkip())
    for url in (storage, other):
        run(url, 10, limit_ms=100.0)
    states = [[t.state for t in open_study("test", url, create=False).trials] for url in (storage, other)]
    assert states[0] == states[1]


def test_resumed_search_knows_what_its_blocks_cost(storage: str) -> None:
    run(storage, 20, models={FIRST: (first := BlockModel(32))})
    run(storage, 21, models={FIRST: (second := BlockModel(32))})
    assert second.errors[: len(first.errors)] == pytest.approx(first.errors)


def test_wrong_model_cannot_rule_out_everything(storage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Prediction, "above", lambda *args: True)
    study = open_study("test", storage, create=True)
    monkeypatch.setattr("search.study.coordinator.MAX_UNMEASURED", 3)
    fill(coordinator(study, KnownEngine(), known_targets(KnownEngine(), 100.0)), 12)
    assert len(finished_trials(study)) == 12
    assert count_skipped(study) == 12  # three before each of the four that come after the first eight networks


SCORES_FIRST = Rules(seed=0, scores_before_measuring=True)  # the evaluator takes no longer than a measurement


def test_surely_dominated_networks_are_not_measured(storage: str) -> None:
    engine = KnownEngine()
    trials = run(storage, 60, engine, rules=SCORES_FIRST)
    predicted = [trial for trial in trials if not trial.result.measured]
    assert len(predicted) > 10
    assert len(trials) == 60
    assert len(engine.measured) == 60 - len(predicted)
    for trial in predicted:
        truth = KnownEngine().latency(trial.architecture).latency_ms
        assert trial.result.accuracy is not None
        faster = [t for t in trials if t.result.measured and t.result.latencies[FIRST].latency_ms < truth]
        assert any(t.result.accuracy and t.result.accuracy.accuracy >= trial.result.accuracy.accuracy for t in faster)
    assert not {trial.number for trial in predicted} & {trial.number for trial in front(trials)}
    assert latency_text(predicted[0].result.latencies[FIRST]).startswith("~")


def test_what_is_not_measured_changes_no_front(storage: str, tmp_path: Path) -> None:
    engine = KnownEngine()
    spared = run(storage, 60, engine, rules=SCORES_FIRST)
    measured = run(f"sqlite:///{tmp_path / 'other.db'}", 60)
    assert [t.architecture.key for t in front(spared)] == [t.architecture.key for t in front(measured)]


def test_network_that_comes_up_again_is_measured(storage: str) -> None:
    engine = KnownEngine()
    trials = run(storage, 40, engine, rules=SCORES_FIRST)
    predicted = next(trial for trial in trials if not trial.result.measured)
    study = open_study("test", storage, create=False)
    study.enqueue_trial(study.trials[predicted.number].params)
    again = run(storage, 41, engine, rules=SCORES_FIRST)[-1]
    assert again.architecture == predicted.architecture
    assert again.result.latencies[FIRST].repetitions == 20  # a prediction is no measurement to refine
    assert again.result.accuracy == predicted.result.accuracy
    assert engine.trained.count(predicted.architecture.key) == 1


def test_wrong_model_cannot_keep_everything_unmeasured(storage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Prediction, "above", lambda prediction, *args: prediction.error is not None)
    monkeypatch.setattr("search.study.coordinator.MAX_UNMEASURED", 3)
    engine = KnownEngine()
    for n_trials in (30, 40):  # and a resumed search goes on counting
        trials = run(storage, n_trials, engine, rules=SCORES_FIRST)
    rows = "".join("m" if trial.result.measured else "." for trial in trials)
    assert "...m" in rows
    assert "...." not in rows


class Tuned(KnownEngine):
    """Networks of one width run on a kernel that the first of them has chosen."""

    def __init__(self) -> None:
        super().__init__()
        self.known: list[Mapping[str, str]] = []

    async def measure(self, target: str, architecture: Architecture, calibration: Calibration) -> Latency:
        assert calibration.kernels is not None
        self.known.append(calibration.kernels)
        latency, width = await super().measure(target, architecture, calibration), str(architecture.embed_dim)
        return replace(latency, kernels={width: calibration.kernels.get(width, f"of run {len(self.known)}")})


def test_kernels_that_a_network_has_chosen_are_those_of_the_next(storage: str) -> None:
    targets = {FIRST: replace(known_targets(KnownEngine())[FIRST], calibration=replace(CALIBRATION, kernels={}))}
    engine, resumed = Tuned(), Tuned()
    run(storage, 12, engine, targets=targets)
    trials = run(storage, 24, resumed, targets=targets)
    assert engine.known[0] == {}
    assert resumed.known[0] == engine.known[-1]
    chosen = {name: kernel for trial in trials for name, kernel in trial.result.latencies[FIRST].kernels.items()}
    assert chosen == resumed.known[-1]
    assert all(trial.result.latencies[FIRST].kernels.items() <= chosen.items() for trial in trials)


def test_trial_attributes_read_back(storage: str) -> None:
    for trial in run(storage, 10):
        assert trial.result.accuracy is not None
        assert math.isfinite(trial.result.latencies[FIRST].latency_ms)
        assert (trial.num_params, trial.num_macs) == (1000, 2000)
    study = open_study("test", storage, create=False)
    stored = study.trials[0]
    assert stored.values == [stored.user_attrs["accuracy"]["accuracy"], stored.user_attrs["latencies"][FIRST]["latency_ms"]]


def test_changed_setting_is_refused_by_name(storage: str) -> None:
    study = open_study("test", storage, create=True)
    remember(study, "settings", {"train": "a first try that was mistyped"}, "restore it")
    settings = {"train": {"max_epochs": 5, "lr": 0.1}, "space": {"embed_dim": [8, 16]}}
    remember(study, "settings", settings, "restore it")
    study.ask()
    remember(study, "settings", settings, "restore it")
    with pytest.raises(UserError, match=r"train.max_epochs was 5 and is now 6; restore it"):
        remember(study, "settings", {**settings, "train": {"max_epochs": 6, "lr": 0.1}}, "restore it")
    with pytest.raises(UserError, match=r"train.warmup was None and is now 1"):
        remember(study, "settings", {**settings, "train": {"max_epochs": 5, "lr": 0.1, "warmup": 1}}, "restore it")


def test_other_directions_are_refused(storage: str) -> None:
    optuna.create_study(study_name="test", storage=storage, directions=["maximize", "maximize"])
    with pytest.raises(UserError, match="optimises maximize, maximize"):
        open_study("test", storage, create=True)


@pytest.mark.parametrize(
    "content", [b"not a database, but long enough to look like something" * 50, b"SQLite format 3\0cut"]
)
def test_corrupt_database_is_one_clear_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "study.db").write_bytes(content)
    with pytest.raises(UserError, match=r"study.db cannot be used \(.*\); put back a copy") as caught:
        open_study("test", f"sqlite:///{tmp_path / 'study.db'}", create=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("url", ["nonsense", "sqlite:////proc/no/such/study.db", "nodb://x/y"])
def test_unusable_storage_is_one_clear_line(url: str) -> None:
    with pytest.raises(UserError, match="cannot be used"):
        open_study("test", url, create=True)


def test_missing_study_is_named(storage: str) -> None:
    with pytest.raises(UserError, match="there is no study test"):
        open_study("test", storage, create=False)


def test_password_is_not_shown() -> None:
    assert public_url("postgresql://me:secret@db/x") == "postgresql://***@db/x"
    assert public_url("sqlite:///outputs/a/study.db") == "sqlite:///outputs/a/study.db"


def test_second_coordinator_is_refused(tmp_path: Path) -> None:
    with (
        folder_lock(tmp_path / "a"),
        pytest.raises(UserError, match="in use by another search"),
        folder_lock(tmp_path / "a"),
    ):
        pass
    with folder_lock(tmp_path / "a"):
        pass


def test_folder_that_cannot_be_written_is_named() -> None:
    with pytest.raises(UserError, match="/proc/nowhere cannot be written"), folder_lock(Path("/proc/nowhere")):
        pass


def test_measures_before_training(storage: str) -> None:
    order: list[str] = []
    run(storage, 1, KnownEngine(lambda part, architecture: order.append(part)))
    assert order == ["measure", "train"]

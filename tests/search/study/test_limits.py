"""Limits of parameters, multiply-accumulates, file and memory: who is ruled out when, and what a study stores of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from optuna_dashboard import get_note

from models.architecture import Architecture
from models.complexity import cost
from search import SearchStopped
from search.results.report import course, sections
from search.results.report.page import markdown
from search.results.report.study_data import StudyData
from search.study import coordinator as coordinator_module
from search.study.front import front
from search.study.limits import excesses
from search.study.samplers.surrogate import SurrogateSampler
from search.study.storage import open_study
from search.study.targets import FIRST, Target, targets_of
from search.study.trial import OVER_LIMITS, network_of
from tests.support.known_engine import SPACE, KnownEngine, count_skipped, known_targets, run, sampler, studied

NETWORK = {"in_chans": 1, "num_classes": 100, "img_size": 32}
MEDIAN_PARAMS = 120_000  # 320 of the 800 networks have fewer


def true_cost(architecture: Architecture) -> tuple[int, int]:
    return cost(architecture, **NETWORK)


def surrogate() -> Callable[[int], optuna.samplers.BaseSampler]:
    return sampler(
        SurrogateSampler, space=SPACE, img_size=32, n_startup_trials=10, population_size=6, num_children=32, mutation=0.2
    )


@pytest.fixture
def storage(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'study.db'}"


def raw(storage: str) -> list[optuna.trial.FrozenTrial]:
    return open_study("test", storage, create=False).trials


def limited(engine: KnownEngine, **limits: float) -> dict[str, Target]:
    """The targets of an engine; the limits are the first one's."""
    targets = known_targets(engine)
    return {**targets, FIRST: replace(targets[FIRST], limits=limits)}


@pytest.mark.parametrize("quantity", ["num_params", "num_macs"])
def test_network_over_a_limit_of_costs_is_neither_measured_nor_trained(storage: str, quantity: str) -> None:
    engine, index = KnownEngine(), ["num_params", "num_macs"].index(quantity)
    values = sorted(true_cost(SPACE.sample([number]))[index] for number in range(50))
    limit = float(values[25])
    trials = run(storage, 20, engine, limits={quantity: limit}, cost=true_cost)
    assert len(trials) == 20
    assert all(true_cost(trial.architecture)[index] <= limit for trial in trials)
    skipped = [trial for trial in raw(storage) if OVER_LIMITS in trial.user_attrs]
    assert len(skipped) == count_skipped(open_study("test", storage, create=False)) > 5
    for trial in skipped:
        value = true_cost(network_of(trial))[index]
        assert trial.state == TrialState.PRUNED
        assert trial.user_attrs[OVER_LIMITS] == {quantity: value}
        assert trial.system_attrs["constraints"] == [pytest.approx(value / limit - 1)]
        assert f"over limits.{quantity}={limit:.12g}; neither measured nor trained" in trial.user_attrs["status"]
        assert network_of(trial).key not in {*engine.measured, *engine.trained}
    for record in trials:
        (value,) = raw(storage)[record.number].system_attrs["constraints"]
        assert value == pytest.approx(true_cost(record.architecture)[index] / limit - 1)
        assert value <= 0


def test_network_over_a_limit_of_memory_is_measured_but_not_trained(storage: str) -> None:
    engine = KnownEngine()
    trials = run(storage, 30, engine, targets=limited(engine, peak_memory_mb=16.0))
    over = [trial for trial in trials if not trial.result.feasible]
    assert over
    for trial in over:
        assert trial.result.latencies[FIRST].resources["peak_memory_mb"] > 16
        assert trial.result.accuracy is None
        stored = raw(storage)[trial.number]
        assert stored.state == TrialState.PRUNED
        assert stored.user_attrs["status"].startswith("infeasible: a peak memory of ")
        assert stored.user_attrs["status"].endswith(" MB, over limits.peak_memory_mb=16")
    assert not {trial.architecture.key for trial in over} & set(engine.trained)
    assert all(trial.result.latencies[FIRST].resources["peak_memory_mb"] <= 16 for trial in front(trials))


def test_limits_are_those_of_each_target(storage: str) -> None:
    engine = KnownEngine(targets=("first", "phone"))
    targets = known_targets(engine)
    targets["phone"] = replace(targets["phone"], limits={"file_mb": 0.1})
    trials = run(storage, 30, engine, targets=targets)
    wide = [trial for trial in trials if trial.architecture.embed_dim == 16]
    assert wide
    assert all(trial.result.feasible == (trial.architecture.embed_dim == 8) for trial in trials)
    stored = raw(storage)[wide[0].number].user_attrs
    assert stored["status"] == "infeasible: a file of 0.16 MB on phone, over limits.file_mb=0.1"
    assert stored["latencies"]["phone"]["file_bytes"] == 160_000
    study = open_study("test", storage, create=False)
    assert targets_of(study)["phone"].limits == {"file_mb": 0.1}
    assert targets_of(study)["first"].limits == {}


def test_constraints_have_one_length_whatever_became_of_a_trial(storage: str) -> None:
    engine = KnownEngine(targets=("first", "phone"))
    targets = known_targets(engine, limit_ms=2.2)
    targets["phone"] = replace(targets["phone"], limits={"file_mb": 0.1, "peak_memory_mb": 30.0})
    run(storage, 40, engine, targets=targets, limits={"num_params": MEDIAN_PARAMS}, cost=true_cost)
    trials = raw(storage)
    assert {len(trial.system_attrs["constraints"]) for trial in trials} == {4}
    assert {trial.state for trial in trials} == {TrialState.COMPLETE, TrialState.PRUNED}
    assert all((max(trial.system_attrs["constraints"]) <= 0) == (trial.state == TrialState.COMPLETE) for trial in trials)


def test_what_is_not_known_is_no_excess() -> None:
    assert excesses({"file_mb": 3.0}, {"file_mb": 2.0, "peak_memory_mb": 10.0}) == [0.5, 0.0]
    assert excesses({}, {}) == []


def test_sampler_proposes_nothing_over_a_limit_of_costs(storage: str) -> None:
    limits = {"num_params": MEDIAN_PARAMS}
    trials = run(storage, 40, limits=limits, cost=true_cost, make_sampler=surrogate())
    assert len(trials) == 40
    skipped = [trial for trial in raw(storage) if OVER_LIMITS in trial.user_attrs]
    assert {trial.user_attrs.get("origin", "sampled") for trial in skipped} == {"LITv2 pattern, width 16", "largest"}


def test_sampler_finds_the_few_networks_that_keep_a_limit(storage: str) -> None:
    smallest = true_cost(SPACE.smallest())[0]
    trials = run(storage, 12, limits={"num_params": 1.02 * smallest}, cost=true_cost, make_sampler=surrogate())
    assert len(trials) == 12
    assert all(true_cost(trial.architecture)[0] <= 1.02 * smallest for trial in trials)


def test_sampler_learns_which_networks_are_over_a_limit_of_memory(storage: str) -> None:
    engine = KnownEngine()
    trials = run(storage, 50, engine, targets=limited(engine, peak_memory_mb=14.0), make_sampler=surrogate())
    random, modelled = trials[:10], trials[14:]
    over = [sum(not t.result.feasible for t in group) / len(group) for group in (random, modelled)]
    assert over[0] > 0.3
    assert over[1] < over[0] / 2


def test_search_without_limits_is_what_it_was_with_limits_that_all_keep(storage: str, tmp_path: Path) -> None:
    engine, other = KnownEngine(), f"sqlite:///{tmp_path / 'other.db'}"
    plain = run(storage, 30, engine, make_sampler=surrogate(), cost=true_cost)
    within = run(other, 30, make_sampler=surrogate(), cost=true_cost, limits={"num_params": 1e9, "num_macs": 1e12})
    assert [trial.architecture for trial in plain] == [trial.architecture for trial in within]
    assert all("constraints" not in trial.system_attrs for trial in raw(storage))


def test_search_that_finds_nothing_within_its_limits_ends(storage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coordinator_module, "MAX_OVER_LIMITS", 30)
    with pytest.raises(SearchStopped, match=r"30 networks in a row that are over the limits.*limits.num_params=10"):
        run(storage, 40, limits={"num_params": 10}, cost=true_cost)


def test_search_continues_after_networks_that_were_over_a_limit(storage: str) -> None:
    limits = {"num_params": MEDIAN_PARAMS}
    run(storage, 9, limits=limits, cost=true_cost, make_sampler=surrogate())
    trials = run(storage, 20, limits=limits, cost=true_cost, make_sampler=surrogate())
    assert len(trials) == 20
    keys = [network_of(trial).key for trial in raw(storage)]
    assert len(keys) == len(set(keys))


def test_report_and_dashboard_name_limits(tmp_path: Path) -> None:
    engine = KnownEngine()
    targets = limited(engine, file_mb=0.1)
    url = f"sqlite:///{tmp_path / 'study.db'}"
    study = studied(url, 20, folder=tmp_path, targets=targets, limits={"num_params": 1500, "num_macs": 2500})
    text = markdown("Study", sections(StudyData(study, tmp_path)))
    assert "| limits | limits.num_params=1500, limits.num_macs=2500 |" in text
    assert "| limits of file and memory | limits.file_mb=0.1 |" in text
    assert "| over a limit of file or memory: not trained |" in text
    note = get_note(study)
    assert "Networks above **limits.num_params=1500** are neither measured nor trained" in note
    assert "Networks above **limits.file_mb=0.1** there are infeasible" in note


def test_report_counts_networks_over_limits_of_costs(tmp_path: Path, storage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coordinator_module, "MAX_OVER_LIMITS", 3)
    with pytest.raises(SearchStopped):
        studied(storage, 5, limits={"num_params": 500})
    study = open_study("shown", storage, create=False)
    assert count_skipped(study) == 3
    text = markdown("Study", [course.incomplete_trials(StudyData(study, tmp_path))])
    assert "| over limits.num_params: neither measured nor trained | 3 |" in text

"""The sampler that models what it samples: in the space, nothing twice, repeatable, better than at random, and wary."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from models.architecture import Architecture
from models.complexity import cost
from search.accuracy.base import Accuracy
from search.latency.base import Latency
from search.space.dimensions import accuracy_inputs
from search.space.space import Space
from search.study.front import front, front_hypervolume
from search.study.samplers.limit_model import StudyLimits
from search.study.samplers.models import AccuracyModel, LatencyModel
from search.study.samplers.row import Features, Row, scales
from search.study.samplers.surrogate import SurrogateSampler
from search.study.storage import open_study
from search.study.targets import FIRST
from tests.support.known_engine import SPACE, KnownEngine, known_targets, run, sampler

SETTINGS: dict[str, Any] = {
    "space": SPACE,
    "img_size": 32,
    "n_startup_trials": 10,
    "population_size": 6,
    "num_children": 32,
    "mutation": 0.2,
}
TINY_SPACE = Space(
    embed_dim=8,
    stages=[{"depth": [1, 2], "window_size": 0, "alpha": 0.0, "num_heads": 1}] * 4,
    patch_size=2,
    downsample="conv",
)

SIZED_SPACE = Space(
    embed_dim=[8, 16],
    stages=[{"depth": [1, 2], "window_size": 0, "alpha": 0.0, "num_heads": 1}] * 4,
    patch_size=2,
    downsample="conv",
    img_size=[16, 32, 64],
)


def surrogate(**kwargs: Any) -> Callable[[int], optuna.samplers.BaseSampler]:
    return sampler(SurrogateSampler, **{**SETTINGS, **kwargs})


@pytest.fixture
def storage(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'study.db'}"


def test_nothing_is_proposed_twice(storage: str) -> None:
    engine = KnownEngine()
    trials = run(storage, 60, engine, make_sampler=surrogate())
    assert len({trial.architecture.key for trial in trials}) == 60
    assert len(engine.trained) == 60


class SizedEngine(KnownEngine):
    """Larger images take longer and give better accuracies."""

    def latency(self, architecture: Architecture, factor: int = 1) -> Latency:
        latency = super().latency(architecture, factor)
        return replace(latency, estimate=latency.estimate.scaled((architecture.side(0) / 32) ** 2))

    def accuracy(self, architecture: Architecture, seed: int) -> Accuracy:
        accuracy = super().accuracy(architecture, seed)
        return replace(accuracy, accuracy=accuracy.accuracy - 0.4 * (1 - architecture.side(0) / 64))


def test_image_sizes_are_searched(storage: str) -> None:
    """A network at two sizes is two networks, and both models see how the size moves them."""
    engine = SizedEngine()
    trials = run(storage, 60, engine, space=SIZED_SPACE, make_sampler=surrogate(space=SIZED_SPACE))
    keys = {trial.architecture.key for trial in trials}
    assert len(keys) == len(engine.trained) == 60
    assert len({trial.architecture.weights_key for trial in trials}) < 60
    assert {trial.architecture.img_size for trial in front(trials)} == {16, 32, 64}
    rows, units = (
        [Row.of(trial, 32) for trial in trials],
        scales(SIZED_SPACE, lambda network: Features.of(network, 32).inputs),
    )
    children = [replace(SIZED_SPACE.anchor(), img_size=size) for size in (16, 32, 64)]
    features = [Features.of(child, 32) for child in children]
    small, middle, large = LatencyModel.fit(rows, units, FIRST).predict(features)
    assert large > 2 * middle > 4 * small  # it is four times from each to the next
    assert (np.diff(AccuracyModel.fit(rows, units).predict(features)) > 0.05).all()


def test_limit_of_multiply_accumulates_is_that_of_the_image_size() -> None:
    small, large = (replace(SPACE.anchor(), img_size=size) for size in (16, 32))
    num_macs = cost(small, 1, 100, 32)[1]
    limits = StudyLimits(known_targets(KnownEngine()), {"num_macs": num_macs})
    assert limits.are_kept(small)
    assert not limits.are_kept(large)
    assert not limits.are_kept(SPACE.anchor())  # the targets' images have 32 pixels


FAMILIES: dict[str, Callable[[Architecture], bool]] = {
    "any attention": lambda network: any(stage.window_size for stage in network.stages),
    "plain attention": lambda network: any(stage.window_size == 1 for stage in network.stages),
    "windows": lambda network: any(stage.window_size > 1 for stage in network.stages),
    "windows in the second stage": lambda network: network.stages[1].window_size > 1,
    "the wider ones": lambda network: network.embed_dim == 16,
    "deep and wide": lambda network: network.embed_dim == 16 and sum(stage.depth for stage in network.stages) > 5,
}


def failing(is_in_family: Callable[[Architecture], bool]) -> KnownEngine:
    def fail(part: str, architecture: Architecture) -> None:
        if part == "measure" and is_in_family(architecture):
            raise RuntimeError("the runtime has no such operator")

    return KnownEngine(fail)


@pytest.mark.parametrize("family", FAMILIES)
def test_networks_of_a_kind_that_cannot_be_built_are_soon_avoided(storage: str, family: str) -> None:
    engine = failing(FAMILIES[family])
    assert len(run(storage, 26, engine, make_sampler=surrogate(), max_consecutive_failures=3)) == 26
    raw = open_study("test", storage, create=False).trials
    failed = [trial.state == TrialState.FAIL for trial in raw]
    assert 0 < sum(failed) <= 10


def test_many_baselines_of_a_kind_that_cannot_be_built_end_no_search(storage: str) -> None:
    stages = [{"depth": [1, 2], "window_size": [0, 1, 2], "alpha": 0.5, "num_heads": 2}] * 4
    space = Space(embed_dim=[8, 16, 24, 32, 40, 48], stages=stages, patch_size=2, downsample="conv")
    make = surrogate(space=space)
    engine = failing(FAMILIES["any attention"])
    assert len(run(storage, 14, engine, space=space, make_sampler=make, max_consecutive_failures=3)) == 14


def test_network_that_failed_or_was_skipped_is_not_proposed_again(storage: str) -> None:
    engine = failing(FAMILIES["windows in the second stage"])
    run(storage, 40, engine, limit_ms=2.2, make_sampler=surrogate(), max_consecutive_failures=50)
    raw = open_study("test", storage, create=False).trials
    keys = [Architecture.from_dict(trial.user_attrs["architecture"]).key for trial in raw]
    states = {trial.state for trial in raw}
    assert states == {TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL}
    assert len(keys) == len(set(keys))


def test_search_with_failures_is_repeated_and_resumed_as_it_was(storage: str, tmp_path: Path) -> None:
    def keys(name: str, *stops: int) -> list[str]:
        url = f"sqlite:///{tmp_path / name}.db"
        for stop in stops:
            run(url, stop, failing(FAMILIES["windows"]), make_sampler=surrogate(), max_consecutive_failures=9)
        raw = open_study("test", url, create=False).trials
        return [Architecture.from_dict(trial.user_attrs["architecture"]).key for trial in raw]

    assert keys("one", 24) == keys("two", 24) == keys("resumed", 2, 7, 19, 24)


def test_search_of_a_space_ends_when_every_network_is_evaluated(storage: str) -> None:
    trials = run(storage, 100, space=TINY_SPACE, make_sampler=surrogate(space=TINY_SPACE))
    assert len(trials) == len({trial.architecture.key for trial in trials}) == TINY_SPACE.num_architectures() == 16
    assert len(run(storage, 200, space=TINY_SPACE, make_sampler=surrogate(space=TINY_SPACE))) == 16


def test_networks_that_failed_count_as_evaluated(storage: str) -> None:
    engine = failing(lambda network: network.stages[0].depth == 2)
    make = surrogate(space=TINY_SPACE)
    assert len(run(storage, 100, engine, space=TINY_SPACE, make_sampler=make, max_consecutive_failures=9)) == 8
    assert len(open_study("test", storage, create=False).trials) == 16


def test_last_network_of_a_space_is_found(storage: str) -> None:
    """Five of 800 networks are left: ten draws would hardly find one."""
    proposer = surrogate()(0)
    assert isinstance(proposer, SurrogateSampler)
    keys = {SPACE.architecture(parameters).key for parameters in SPACE.every()}
    left = set(sorted(keys)[:5])
    children = proposer.children(keys - left, [], 1)
    assert {architecture.key for architecture in children} <= left
    assert children


def test_one_seed_gives_one_search(storage: str, tmp_path: Path) -> None:
    other = f"sqlite:///{tmp_path / 'other.db'}"
    proposed = [[t.architecture for t in run(url, 30, make_sampler=surrogate())] for url in (storage, other)]
    assert proposed[0] == proposed[1]


def test_resumed_search_goes_on_as_an_uninterrupted_one(storage: str, tmp_path: Path) -> None:
    run(storage, 17, make_sampler=surrogate())
    resumed = run(storage, 30, make_sampler=surrogate())
    whole = run(f"sqlite:///{tmp_path / 'other.db'}", 30, make_sampler=surrogate())
    assert [t.architecture for t in resumed] == [t.architecture for t in whole]


def test_front_is_found_in_fewer_trials_than_at_random(storage: str, tmp_path: Path) -> None:
    """40 of 800 networks, whose values are known exactly here: no training, no clock."""
    volumes = []
    for name, make in {"surrogate": surrogate(), "random": sampler()}.items():
        trials = run(f"sqlite:///{tmp_path / name}.db", 40, make_sampler=make)
        volumes.append(front_hypervolume(front(trials), 10.0))
    assert volumes[0] > volumes[1]


def test_proposals_keep_to_a_budget(storage: str) -> None:
    trials = run(storage, 50, limit_ms=2.5, make_sampler=surrogate())
    random, modelled = trials[:10], trials[12:]
    over = [sum(not t.result.feasible for t in group) / len(group) for group in (random, modelled)]
    assert over[1] < over[0]


def test_networks_that_differ_have_different_inputs() -> None:
    first, second = SPACE.anchor(), SPACE.largest()
    assert len(accuracy_inputs(first)) == len(accuracy_inputs(second))
    assert accuracy_inputs(first) != accuracy_inputs(second)


@pytest.mark.parametrize(
    ("name", "value"), [("n_startup_trials", 3), ("population_size", 1), ("num_children", 0), ("mutation", 1.5)]
)
def test_settings_that_make_no_sense_are_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"sampler.{name}={value}"):
        SurrogateSampler(**{**SETTINGS, name: value})

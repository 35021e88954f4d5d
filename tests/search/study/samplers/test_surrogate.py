"""The sampler that models what it samples: in the space, nothing twice, repeatable, and better than drawing at random."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest

from search.space.dimensions import accuracy_inputs
from search.space.space import Space
from search.study.front import front, front_hypervolume
from search.study.samplers.surrogate import SurrogateSampler
from tests.support.known_engine import SPACE, KnownEngine, run, sampler

SETTINGS: dict[str, Any] = {
    "space": SPACE,
    "img_size": 32,
    "n_startup_trials": 10,
    "population_size": 6,
    "num_children": 32,
    "mutation": 0.2,
}


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


def test_space_that_is_used_up_ends_no_search(storage: str) -> None:
    stages = [{"depth": [1, 2], "window_size": 0, "alpha": 0.0, "num_heads": 1}] * 4
    space = Space(embed_dim=8, stages=stages, patch_size=2, downsample="conv")
    assert space.num_architectures() == 16
    trials = run(storage, 20, space=space, make_sampler=surrogate(space=space))
    assert len({trial.architecture.key for trial in trials}) == 16


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

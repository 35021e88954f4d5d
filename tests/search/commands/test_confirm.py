"""`python -m search.confirm`: a whole confirmation, small; it goes on where it was cut off and names mistakes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from search.accuracy.base import Accuracy
from search.accuracy.scratch import ScratchEvaluator
from search.commands.confirm import Case, places, seed_noise, standard_error, uncertain
from search.engine.local import LocalEngine
from search.results import architecture_file
from search.study.storage import open_study
from search.study.trial import finished_trials
from tests.support.commands import TINY, call
from tests.support.known_engine import finished

SEARCH = ["+search=cpu_latency", "study.name=first", "study.n_trials=4", *TINY]
CONFIRM = [*SEARCH, "confirm.train.max_epochs=1", "confirm.min_probability=0.001", "confirm.max_probability=1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a finished study `first`, confirmed."""
    before = Path.cwd()
    folder = tmp_path_factory.mktemp("user")
    os.chdir(folder)
    assert call("run", SEARCH) == 0
    assert call("confirm", CONFIRM) == 0
    yield folder
    os.chdir(before)


def kept(folder: Path) -> list[dict[str, dict[str, dict[str, float]]]]:
    networks = json.loads((folder / "outputs/first/confirmed.json").read_text(encoding="utf-8"))["networks"]
    assert networks
    return list(networks)


def test_values_of_the_search_and_confirmed_ones_are_kept(folder: Path) -> None:
    for network in kept(folder):
        assert set(network["search"]) == {"accuracy", "standard_error", "latency", "front_probability"}
        assert network["confirmed"]["latency"]["repetitions"] > 1
    trained = [network for network in kept(folder) if "accuracies" in network["confirmed"]]
    assert trained
    assert all(0 <= network["confirmed"]["front_probability"] <= 1 for network in trained)


def test_confirmed_front_is_exported(folder: Path) -> None:
    files = sorted((folder / "outputs/first/confirmed").glob("*.yaml"))
    assert files
    found = finished_trials(open_study("first", "sqlite:///outputs/first/study.db", create=False))
    for file in files:
        _, facts = architecture_file.read(file)
        assert len(facts["confirmed"]["accuracies"]) in (1, 2)
        assert facts["accuracy"]["validation"] in [t.outcome.accuracy.accuracy for t in found if t.outcome.accuracy]
        assert file.with_suffix(".supernet.safetensors").exists()


def test_again_nothing_is_trained_or_measured_twice(folder: Path) -> None:
    before = kept(folder)
    weights = folder / "outputs/first/confirmed/trial-00099.safetensors"
    weights.write_bytes(b"trained meanwhile")
    weights.with_suffix(".yaml").touch()
    weights.with_suffix(".logs").mkdir()
    with pytest.MonkeyPatch.context() as patch:

        def refuse(*args: object) -> None:
            raise AssertionError("done again")

        patch.setattr(ScratchEvaluator, "evaluate", refuse)
        patch.setattr(LocalEngine, "measure", refuse)
        assert call("confirm", CONFIRM) == 0
    assert kept(folder) == before
    assert weights.exists()
    assert weights.with_suffix(".yaml").exists()
    weights.with_suffix(".yaml").unlink()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("study.name=missing", "there is no outputs/missing here"),
        ("train.lr=0.5", "train.lr was 0.003 and is now 0.5"),
        ("confirm.minutes=0", "confirm.minutes=0 must be a number"),
        ("confirm.num_seeds=0", "confirm.num_seeds=0 must be a whole number of at least 1"),
        ("confirm.min_probability=2", "confirm.min_probability=2 must be a number"),
    ],
)
def test_mistakes_are_named(folder: Path, override: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("confirm", [*CONFIRM, override]) == 2
    assert message in capsys.readouterr().err


def test_only_networks_whose_place_is_uncertain_are_taken() -> None:
    sure, close, beaten, hopeless = (
        finished(0, 0.6, 1.0), finished(1, 0.80, 2.0), finished(2, 0.799, 2.01), finished(3, 0.3, 3.0),
    )  # fmt: skip
    cases = uncertain([sure, close, beaten, hopeless], 0.05, 0.95)
    assert [case.trial.number for case in cases] == [1, 2]
    assert cases[0].before > cases[1].before


def test_seeds_are_part_of_the_error() -> None:
    trial = finished(0, 0.8, 1.0)
    case = Case(trial, 0.5, accuracies=(Accuracy(0.78, 1000, 0, 1.0), Accuracy(0.82, 1000, 1, 1.0)))
    assert case.accuracy == pytest.approx(0.8)
    noise = seed_noise([case])
    assert noise == pytest.approx(0.02 * 2**0.5)
    assert standard_error(case, noise) == pytest.approx((0.8 * 0.2 / 1000 + noise**2 / 2) ** 0.5)
    assert standard_error(Case(trial, 0.5), noise) == pytest.approx((0.8 * 0.2 / 1000) ** 0.5)


def test_new_values_settle_a_place() -> None:
    cases = [Case(finished(0, 0.80, 2.0), 0.6), Case(finished(1, 0.799, 2.01), 0.4)]
    better = Accuracy(0.95, 1000, 0, 1.0)
    settled = [replace(cases[0], accuracies=(replace(better, accuracy=0.5),)), replace(cases[1], accuracies=(better,))]
    assert places(settled)[1] > 0.99 > places(cases)[1]

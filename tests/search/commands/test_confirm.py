"""`python -m search.confirm`: a whole confirmation, small; it continues where it was stopped and names mistakes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from search.accuracy.scratch import ScratchEvaluator
from search.engine.local import LocalEngine
from search.results import architecture_file
from search.study.storage import open_study
from search.study.trial import finished_trials
from tests.support.commands import TINY, call

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


def stored_networks(folder: Path) -> list[dict[str, dict[str, dict[str, dict[str, float]]]]]:
    networks = json.loads((folder / "outputs/first/confirmed.json").read_text(encoding="utf-8"))["networks"]
    assert networks
    return list(networks)


def test_values_of_the_search_and_confirmed_ones_are_stored(folder: Path) -> None:
    for network in stored_networks(folder):
        assert set(network["search"]) == {"accuracy", "standard_error", "latencies", "front_probability"}
        assert set(network["search"]["latencies"]) == {"first"}
        assert set(network["confirmed"]["latencies"]) == {"first"}
        assert network["confirmed"]["latencies"]["first"]["repetitions"] > 1
    trained = [network for network in stored_networks(folder) if "accuracies" in network["confirmed"]]
    assert trained
    assert all(0 <= float(str(network["confirmed"]["front_probability"])) <= 1 for network in trained)


def test_trainings_are_validated_on_images_that_no_score_was_computed_with(folder: Path) -> None:
    """A quarter of the 128 training images; the search has scored with the 100 validation images."""
    log = (folder / "outputs/first/confirm.log").read_text(encoding="utf-8")
    assert "training on 96 images, validating on the 32 others of the training set" in log
    for network in stored_networks(folder):
        assert all(accuracy["num_images"] == 32 for accuracy in network["confirmed"].get("accuracies", []))


def test_confirmed_front_is_exported(folder: Path) -> None:
    files = sorted((folder / "outputs/first/confirmed").glob("*.yaml"))
    assert files
    trials = finished_trials(open_study("first", "sqlite:///outputs/first/study.db", create=False))
    accuracies = [trial.result.accuracy.accuracy for trial in trials if trial.result.accuracy]
    for file in files:
        _, facts = architecture_file.read(file)
        assert len(facts["confirmed"]["accuracies"]) in (1, 2)
        assert set(facts["confirmed"]["latencies"]) == set(facts["targets"]) == {"first"}
        assert facts["accuracy"]["validation"] in accuracies
        assert file.with_suffix(".supernet.safetensors").exists()


def test_again_nothing_is_trained_or_measured_twice(folder: Path) -> None:
    before = stored_networks(folder)
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
    assert stored_networks(folder) == before
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
        ("confirm.val_size=128", "confirm.val_size=128 must be at least 1 and below the 128 training images"),
        ("confirm.val_size=0", "confirm.val_size=0 must be a whole number of at least 1"),
        ("confirm.min_probability=2", "confirm.min_probability=2 must be a number"),
        ("+latency@latency.devices.phone=cpu", "search.confirm takes studies with one latency target"),
    ],
)
def test_mistakes_are_named(folder: Path, override: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("confirm", [*CONFIRM, override]) == 2
    assert message in capsys.readouterr().err

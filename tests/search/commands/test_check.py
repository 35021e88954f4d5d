"""`python -m search.check`: a small check; the same command again resumes it; mistakes are named."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from models.architecture import Architecture
from search.accuracy.base import Accuracy, Progress
from search.accuracy.cache import read_accuracies
from search.accuracy.scratch import ScratchEvaluator
from tests.support.commands import call

SMALL = [
    "data.train_size=256", "data.val_size=200", "train.max_epochs=1", "check.long.max_epochs=2", "accuracy.num_threads=1",
    "check.num_architectures=4", "check.effects_minutes=0.05",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("accuracy", ["scratch", "supernet"])
def test_check_reports_figures_and_trains_nothing_twice(accuracy: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["+search=cpu_latency", f"accuracy={accuracy}", *SMALL]
    code = call("check", command)
    printed = capsys.readouterr().out
    file = Path("outputs/default/check.json")
    figures = json.loads(file.read_text(encoding="utf-8"))
    quality = figures["quality"]
    assert len(figures["networks"]) == quality["num_networks"] == 4
    assert {network["architecture"]["embed_dim"] for network in figures["networks"]} <= {8, 12, 16, 20, 24}
    assert all(len(network["accuracies"]) == 2 for network in figures["networks"])
    assert code == {"meaningful": 0, "not meaningful": 3, "undecided": 4}[figures["verdict"]]
    assert f"{figures['verdict']}: " in printed
    for tau in ("seeds", "evaluator", "macs", "params"):
        assert -1 <= quality[tau]["low"] <= quality[tau]["high"] <= 1
    assert {"residual", "seed_noise"} <= quality.keys()
    assert figures["settings"].keys() == {"space", "data", "train", "accuracy", "proxy", "check", "latency"}
    assert figures["settings"]["latency"] == {"dtype": "float32"}

    with pytest.MonkeyPatch.context() as patch:

        def refuse(*args: object) -> Accuracy:
            raise AssertionError("trained again")

        patch.setattr(ScratchEvaluator, "evaluate", refuse)
        assert call("check", [*command, "check.effects_minutes=0"]) == code
    again = json.loads(file.read_text(encoding="utf-8"))
    assert again["networks"] == figures["networks"]


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Lists what is trained, by trainings that take no time: larger networks are better, seeds differ a little."""
    trained = []

    def evaluate(self: ScratchEvaluator, architecture: Architecture, seed: int, progress: Progress) -> Accuracy:
        epochs = self.train.max_epochs
        trained.append((architecture.key, seed if epochs > 1 else -1))
        depth = sum(stage.depth for stage in architecture.stages)
        noise = random.Random(f"{architecture.key} {seed} {epochs}").gauss(0, 0.002)
        return Accuracy(0.3 + 0.01 * architecture.embed_dim + 0.02 * depth + noise, 200, seed, 30.0)

    monkeypatch.setattr(ScratchEvaluator, "evaluate", evaluate)
    return trained


COMMAND = ["+search=cpu_latency", "accuracy=scratch", *SMALL, "check.effects_minutes=0"]


def networks_of_check() -> list[dict[str, object]]:
    networks: list[dict[str, object]] = json.loads(Path("outputs/default/check.json").read_text(encoding="utf-8"))[
        "networks"
    ]
    return networks


def test_larger_check_adds_to_the_trainings_of_a_smaller_one(trained: list[tuple[str, int]]) -> None:
    call("check", [*COMMAND, "check.num_architectures=6"])
    before, first = set(trained), networks_of_check()
    assert len(trained) == 6 * 3  # a score and two seeds
    trained.clear()
    call("check", [*COMMAND, "check.num_architectures=10"])
    assert networks_of_check()[:6] == first
    assert len(trained) == 4 * 3
    assert not before & set(trained)
    trained.clear()
    call("check", [*COMMAND, "check.num_architectures=10", "check.num_seeds=3"])
    assert [seed for _, seed in trained] == [2] * 10


def test_undecided_check_says_how_many_more_networks_would_decide(
    trained: list[tuple[str, int]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("check", [*COMMAND, "check.num_architectures=8"]) == 4
    printed = capsys.readouterr().out
    figures = json.loads(Path("outputs/default/check.json").read_text(encoding="utf-8"))
    more = figures["more_networks"]
    assert more > 0
    assert f"{more} more networks would decide, which train for about {more} minutes" in printed
    assert f"check.num_architectures={8 + more}" in printed
    assert all(reason in printed for reason in figures["reasons"])


def test_line_cut_short_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    accuracy = Accuracy(0.5, 100, 0, 1.0)
    lines = [json.dumps({"name": name, "accuracy": accuracy.to_dict()}) for name in ("first", "second")]
    file = tmp_path / "check.jsonl"
    file.write_text(lines[0] + "\n" + lines[1][:20], encoding="utf-8")
    assert read_accuracies(file) == {"first": accuracy}
    assert "cannot be read" in caplog.text


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("check.num_architectures=2", "check.num_architectures=2 must be a whole number of at least 3"),
        ("check.num_seeds=1", "check.num_seeds=1 must be a whole number of at least 2"),
        ("check.effects_minutes=-1", "check.effects_minutes=-1 must be a number"),
        ("check.long.max_epochs=0", "train.max_epochs=0"),
    ],
)
def test_mistakes_are_named(override: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("check", ["+search=cpu_latency", *SMALL, override]) == 2
    assert message in capsys.readouterr().err

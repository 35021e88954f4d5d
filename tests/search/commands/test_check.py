"""`python -m search.check`: a small check; the same command again resumes it; mistakes are named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from search.accuracy.base import Accuracy
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
    assert call("check", command) == 0
    printed = capsys.readouterr().out
    file = Path("outputs/default/check.json")
    figures = json.loads(file.read_text(encoding="utf-8"))
    assert len(figures["networks"]) == figures["num_networks"] == 4
    assert {network["architecture"]["embed_dim"] for network in figures["networks"]} <= {8, 16, 24, 32}
    assert all(len(network["accuracies"]) == 2 for network in figures["networks"])
    assert figures["meaningful"] == (figures["advice"] == [])
    assert ("not meaningful" in printed) != figures["meaningful"]
    for tau in ("seeds", "evaluator", "macs", "params"):
        assert -1 <= figures[tau]["low"] <= figures[tau]["high"] <= 1

    with pytest.MonkeyPatch.context() as patch:

        def refuse(*args: object) -> Accuracy:
            raise AssertionError("trained again")

        patch.setattr(ScratchEvaluator, "evaluate", refuse)
        assert call("check", [*command, "check.effects_minutes=0"]) == 0
    again = json.loads(file.read_text(encoding="utf-8"))
    assert again["networks"] == figures["networks"]


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

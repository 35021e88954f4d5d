"""The front of a study as files."""

from __future__ import annotations

import csv
from pathlib import Path

import optuna
import pytest

from search.results import architecture_file
from search.results.export import export_front, member_name
from search.study.trial import finished_trials
from tests.support.known_engine import KnownEngine, constraint, known_targets, studied

ONE = ["latency_ms", "latency_low_ms", "latency_high_ms", "latency_sustained_ms", "repetitions"]


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "pareto.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> optuna.Study:
    """A study with two targets, one of them a constraint that some networks do not keep."""
    targets = known_targets(KnownEngine(targets=("first", "phone")), 2.4, phone=constraint(6.5))
    return studied(f"sqlite:///{tmp_path_factory.mktemp('study') / 'study.db'}", 30, targets=targets)


def test_csv_of_one_target_has_plain_columns(tmp_path: Path) -> None:
    study = studied(f"sqlite:///{tmp_path / 'study.db'}", 12)
    export_front(study, tmp_path)
    for row, trial in zip(rows(tmp_path), finished_trials(study), strict=True):
        assert list(row)[6:11] == ONE
        assert float(row["latency_ms"]) == trial.result.latencies["first"].latency_ms
        assert row["architecture"] == trial.architecture.key


def test_csv_of_several_targets_names_each(study: optuna.Study, tmp_path: Path) -> None:
    members = export_front(study, tmp_path)
    for row, trial in zip(rows(tmp_path), finished_trials(study), strict=True):
        assert list(row)[6:16] == [f"{key}.{name}" for name in ("first", "phone") for key in ONE]
        for name in ("first", "phone"):
            latency = trial.result.latencies.get(name)
            assert row[f"latency_high_ms.{name}"] == ("" if latency is None else str(latency.high_ms))
        assert (row["in_front"] == "True") == (trial.number in [member.number for member in members])
    assert any(row["latency_ms.phone"] == "" for row in rows(tmp_path))


def test_files_of_the_front_have_each_target_with_its_role_and_device(study: optuna.Study, tmp_path: Path) -> None:
    members = export_front(study, tmp_path)
    assert members
    for member in members:
        architecture, facts = architecture_file.read(tmp_path / "pareto" / member_name(member))
        assert architecture == member.architecture
        assert {name: target["role"] for name, target in facts["targets"].items()} == {
            "first": "objective",
            "phone": "constraint",
        }
        for name, target in facts["targets"].items():
            assert target["latency"] == member.result.latencies[name].summary()
            assert target["device"]["device"] == "Known CPU"
        assert 0 <= facts["front_probability"] <= 1

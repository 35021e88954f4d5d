"""The front of a study as files."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import optuna
import pytest

from models.architecture import Architecture
from search.accuracy.base import Accuracy
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
        assert 0 <= facts["front_probability_by_score"] <= 1


def test_single_images_are_stored_and_end_in_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = np.arange(1000) % 5 != 0

    def accuracy(engine: KnownEngine, architecture: Architecture, seed: int) -> Accuracy:
        return Accuracy.of(right, seed, 0.1)

    monkeypatch.setattr(KnownEngine, "accuracy", accuracy)
    study = studied(f"sqlite:///{tmp_path / 'study.db'}", 3, folder=tmp_path)
    export_front(study, tmp_path)
    packed = Accuracy.of(right, 0, 0.1).correct
    assert packed is not None
    for trial in finished_trials(study):
        assert trial.result.accuracy is not None
        assert (trial.result.accuracy.correct_images() == right).all()
    assert all(packed not in str(trial.user_attrs) for trial in study.trials)
    files = [file for pattern in ("pareto/*.yaml", "*.csv", "artifacts/*") for file in tmp_path.glob(pattern)]
    assert len(files) >= 8
    assert all(packed[:20].encode() not in file.read_bytes() for file in files)


def test_the_residual_of_the_check_counts(study: optuna.Study, tmp_path: Path) -> None:
    settings = study.user_attrs["settings"]
    quality = {"residual": 0.5, "seed_noise": 0.1, "num_networks": 12, "slope": 1.0}
    (tmp_path / "check.json").write_text(json.dumps({"quality": quality, "settings": settings}), encoding="utf-8")
    files = [tmp_path / "pareto" / member_name(member) for member in export_front(study, tmp_path)]
    probabilities = [architecture_file.read(file)[1]["front_probability"] for file in files]
    assert min(probabilities) < 0.9
    assert "front_probability" in rows(tmp_path)[0]

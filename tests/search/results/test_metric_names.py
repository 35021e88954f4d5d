"""The metric that counts as accuracy is named wherever its values are shown."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest
import yaml
from optuna_dashboard import get_note
from rich.console import Console

from search.results import architecture_file
from search.results.card import card
from search.results.export import export_front, member_name
from search.results.figures import front_figures, influence_figure
from search.results.report import sections
from search.results.report.page import markdown
from search.results.report.study_data import StudyData
from search.results.tables import front_table
from search.study.targets import targets_of
from search.study.trial import finished_trials
from tests.support.known_engine import studied

NAMES = {"balanced": "balanced accuracy", "macro_f1": "macro F1", "auroc": "AUROC", "top1": "accuracy"}


@pytest.fixture(params=NAMES)
def metric(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def study(metric: str, tmp_path: Path) -> optuna.Study:
    return studied(f"sqlite:///{tmp_path / 'study.db'}", 12, folder=tmp_path, metric=metric)


def test_table_of_the_front(study: optuna.Study, metric: str) -> None:
    table = front_table("Front", finished_trials(study), None)
    assert [column.header for column in table.columns][1] == NAMES[metric]
    console = Console(width=200)
    with console.capture() as capture:
        console.print(table)
    assert ("±0.0123" in capture.get()) == (metric != "top1")


def test_report(study: optuna.Study, metric: str, tmp_path: Path) -> None:
    parts = sections(StudyData(study, tmp_path))
    text = markdown("Study", parts)
    name = NAMES[metric]
    assert f"| trial | {name} | latency, ms [95 % CI] |" in text
    assert f"difference in {name} |" in text
    assert f"of {name}'s variance" in text
    source = "from the number of validation images" if metric == "top1" else "over validation images, by bootstrap"
    assert f"± is the standard error {source}. " in text
    captions = [caption for part in parts for caption in part.figures]
    assert any(caption.startswith(f"{name[0].upper()}{name[1:]} over latency") for caption in captions)


def test_dashboard(study: optuna.Study, metric: str) -> None:
    assert study.metric_names == [NAMES[metric], "latency_ms"]
    note = get_note(study)
    name = NAMES[metric]
    assert f"- **{name}**: " in note
    assert f'the plot "{name[0].upper()}{name[1:]} over latency"' in note
    assert ("top-1 on the validation split" in note) == (metric == "top1")
    first = study.trials[0].user_attrs
    assert first["accuracy"].get("metric", "top1") == metric
    assert not {"correct", "deviations"} & set(first["accuracy"])


def test_figures(study: optuna.Study, metric: str) -> None:
    (figure,) = front_figures(finished_trials(study), targets_of(study)).values()
    assert figure.layout.yaxis.title.text == NAMES[metric]
    assert influence_figure([], NAMES[metric]).data[0].name == NAMES[metric]


def test_single_images_are_read_back(study: optuna.Study, metric: str) -> None:
    for trial in finished_trials(study):
        assert trial.result.accuracy is not None
        assert trial.result.accuracy.metric == metric
        assert (trial.result.accuracy.image_values() is not None) == (metric != "top1")


def test_exported_file_and_card(study: optuna.Study, metric: str, tmp_path: Path) -> None:
    member = export_front(study, tmp_path)[0]
    file = tmp_path / "pareto" / member_name(member)
    assert yaml.safe_load(file.read_text(encoding="utf-8"))["accuracy"]["metric"] == metric
    architecture, facts = architecture_file.read(file)
    trained = {
        "data": "glyphs", "train_size": 100, "max_epochs": 1, "seed": 0, "test_accuracy": 0.9, "metric": metric,
    }  # fmt: skip
    if metric != "top1":
        trained["test_metric"] = {"value": 0.87654, "standard_error": 0.01}
    body = {
        "trained": trained, "weights": "trained", "expects": {}, "input_shape": [1, 32, 32], "files": {},
        "calibration": {"anchor_ms": 1.0}, "device": {"device": "Known CPU", "num_threads": 1, "batch_size": 1},
    }  # fmt: skip
    text = card(file, architecture, facts, body, {})
    score = "- Score in the search: " if metric == "top1" else f"- Score in the search, {NAMES[metric]}: "
    assert score in text
    assert (f"test accuracy 0.9000, {NAMES[metric]} 0.8765 ± 0.0100." in text) == (metric != "top1")

"""Notes, artifacts and plots of a study for the dashboard."""

from __future__ import annotations

import json
from pathlib import Path

import optuna
import pytest
from optuna.artifacts import get_all_artifact_meta
from optuna.trial import TrialState
from optuna_dashboard import get_note

from search.results import architecture_file
from search.results.dashboard import DashboardPublisher
from search.study.evaluate import Rules
from search.study.trial import finished_trials
from tests.support.known_engine import SPACE, KnownEngine, constraint, known_targets, studied

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shown")


@pytest.fixture(scope="module")
def study(folder: Path) -> optuna.Study:
    return studied(f"sqlite:///{folder / 'study.db'}", 20, limit_ms=2.0, folder=folder)


def plots(study: optuna.Study) -> dict[str, str]:
    """The plots of a study, by id, as the dashboard stores them."""
    plots: dict[str, str] = {}
    for key, value in sorted(study._storage.get_study_system_attrs(study._study_id).items()):
        if key.startswith("dashboard:plot_data:"):
            plot_id = key.split(":")[2]
            plots[plot_id] = plots.get(plot_id, "") + str(value)
    return plots


def test_every_finished_trial_has_its_network_as_yaml_and_as_a_picture(
    study: optuna.Study, folder: Path, tmp_path: Path
) -> None:
    dashboard = DashboardPublisher(study, folder)
    for record in finished_trials(study):
        trial = study.trials[record.number]
        files = {artifact.filename: artifact for artifact in get_all_artifact_meta(trial, storage=study._storage)}
        assert set(files) == {f"trial-{record.number:05d}.yaml", f"trial-{record.number:05d}.svg"}
        written = tmp_path / "written.yaml"
        with dashboard.store.open_reader(files[f"trial-{record.number:05d}.yaml"].artifact_id) as reader:
            written.write_bytes(reader.read())
        architecture, facts = architecture_file.read(written)
        assert architecture == record.architecture
        for name, latency in record.result.latencies.items():
            assert facts["targets"][name]["latency"] == latency.summary()
            assert facts["targets"][name]["device"]["device"] == "Known CPU"


def test_notes_are_what_the_dashboard_reads(study: optuna.Study) -> None:
    for record in finished_trials(study)[:5]:
        live = optuna.trial.Trial(study, study.trials[record.number]._trial_id)
        note = get_note(live)
        assert f"depth: {record.architecture.stages[0].depth}" in note
        assert "![the network](/artifacts/" in note
        assert len(note) > 500
    note = get_note(study)
    assert "- **latency_ms**: median of measurements" in note
    assert "Networks above **2 ms** are infeasible" in note
    assert "Hyperparameter Importance" in note


@pytest.mark.parametrize("scores_first", [False, True])
def test_note_says_what_becomes_of_networks_over_the_budget(tmp_path: Path, scores_first: bool) -> None:
    rules = Rules(seed=0, scores_before_measuring=scores_first)
    study = studied(f"sqlite:///{tmp_path / 'study.db'}", 20, limit_ms=2.0, rules=rules, folder=tmp_path)
    DashboardPublisher(study, tmp_path).write_note("sqlite:///study.db", SPACE, scores_first)
    measured = [trial for trial in finished_trials(study) if not trial.result.feasible and trial.result.measured]
    assert measured
    states = {study.trials[trial.number].state for trial in measured}
    note = get_note(study)
    assert states == {TrialState.COMPLETE if scores_first else TrialState.PRUNED}
    assert all((trial.result.accuracy is not None) == scores_first for trial in measured)
    assert ("have been scored before: they are *Complete*" in note) == scores_first
    assert ("They are not trained: they are *Pruned* here" in note) != scores_first


def test_all_plots_are_published(study: optuna.Study, folder: Path) -> None:
    DashboardPublisher(study, folder).publish(finished_trials(study))
    assert set(plots(study)) == {"front", "hypervolume", "influence", "stages"}
    front = json.loads("".join(plots(study)["front"]))
    assert [trace["name"] for trace in front["data"]][-1] == "front"
    assert front["layout"]["annotations"][0]["text"] == "budget 2 ms"


def test_each_target_has_its_plots_metric_and_description(tmp_path: Path) -> None:
    targets = known_targets(KnownEngine(targets=("first", "phone", "tablet")), tablet=constraint(20.0))
    study = studied(f"sqlite:///{tmp_path / 'study.db'}", 20, folder=tmp_path, targets=targets)
    DashboardPublisher(study, tmp_path).publish(finished_trials(study))
    assert set(plots(study)) == {"front-first", "front-phone", "hypervolume", "influence", "stages-first", "stages-phone"}
    assert study.metric_names == ["accuracy", "latency_ms.first", "latency_ms.phone"]
    note = get_note(study)
    assert "- **latency_ms.phone**" in note
    assert "It is a constraint" in note
    assert "Networks above **20 ms**" in note

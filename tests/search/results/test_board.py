"""What a study leaves for the dashboard."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest
from optuna.artifacts import get_all_artifact_meta
from optuna_dashboard import get_note

from search.results import architecture_file
from search.results.analysis import Influence, hypervolumes
from search.results.board import Board, influence_figure
from search.study.trial import finished_trials, front, front_hypervolume
from tests.support.known_engine import finished, studied

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


@pytest.fixture
def study(tmp_path: Path) -> optuna.Study:
    return studied(f"sqlite:///{tmp_path / 'study.db'}", 20, budget_ms=2.0, folder=tmp_path)


def test_every_finished_trial_has_its_network_as_yaml_and_as_a_picture(study: optuna.Study, tmp_path: Path) -> None:
    board = Board(study, tmp_path)
    for result in finished_trials(study):
        trial = study.trials[result.number]
        files = {one.filename: one for one in get_all_artifact_meta(trial, storage=study._storage)}
        assert set(files) == {f"trial-{result.number:05d}.yaml", f"trial-{result.number:05d}.svg"}
        written = tmp_path / "written.yaml"
        with board.store.open_reader(files[f"trial-{result.number:05d}.yaml"].artifact_id) as reader:
            written.write_bytes(reader.read())
        architecture, facts = architecture_file.read(written)
        assert architecture == result.architecture
        assert facts["latency"]["latency_ms"] == result.outcome.latency.latency_ms


def test_notes_are_what_the_dashboard_reads(study: optuna.Study) -> None:
    for result in finished_trials(study)[:5]:
        live = optuna.trial.Trial(study, study.trials[result.number]._trial_id)
        note = get_note(live)
        assert f"depth: {result.architecture.stages[0].depth}" in note
        assert "![the network](/artifacts/" in note
        assert len(note) > 500


def test_hypervolumes_are_those_of_the_front_after_each_trial(study: optuna.Study) -> None:
    trials = finished_trials(study)
    expected = [front_hypervolume(front(trials[: count + 1]), 10.0) for count in range(len(trials))]
    assert hypervolumes(trials, 10.0) == expected


def test_a_member_that_gets_worse_leaves_the_front_to_what_it_dominated() -> None:
    first, second = finished(0, 0.8, 1.0), finished(1, 0.7, 2.0)
    again = finished(2, 0.8, 3.0, architecture=first.architecture)
    trials = [first, second, again]
    expected = [front_hypervolume(front(trials[: count + 1]), 10.0) for count in range(3)]
    assert hypervolumes(trials, 10.0) == expected
    assert len(front(trials)) == 2


def test_bars_point_to_where_a_higher_value_moves_the_objective() -> None:
    accuracy, latency = influence_figure([Influence("embed_dim", 0.5, 0.25, -0.1, 0.3)]).data
    assert list(accuracy.x) == [-0.5]
    assert list(latency.x) == [0.25]

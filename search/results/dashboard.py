"""Additions to a study for optuna-dashboard: notes, plots, and the network of each trial as YAML and as a picture."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import optuna
import plotly.graph_objects as go
from optuna.artifacts import FileSystemArtifactStore, upload_artifact
from optuna.trial import Trial

from search.accuracy.base import Metric, metric_name
from search.results import architecture_file
from search.results.analysis import MIN_EVALUATED, hypervolumes, influences, latency_by_stage
from search.results.card import stage_header, stage_rows
from search.results.export import target_facts
from search.results.figures import as_title, front_figures, hypervolume_figure, influence_figure, stages_figure
from search.results.picture import picture
from search.results.tables import accuracy_text, latencies_text
from search.results.templating import render
from search.space import Space
from search.study.front import evaluated, front
from search.study.limits import limits_of
from search.study.storage import quiet_experimental
from search.study.targets import Target, img_size_of, objectives, references_ms, targets_of
from search.study.trial import TrialRecord, metric_of


@dataclass(frozen=True)
class DashboardPublisher:
    """Writes notes, artifacts and plots of a study for optuna-dashboard.

    Attributes:
        study: with its targets, from the first method called.
        folder: the study's, outputs/NAME.
    """

    study: optuna.Study
    folder: Path

    @cached_property
    def store(self) -> FileSystemArtifactStore:
        """The files of the study's trials, which search.dashboard serves."""
        artifacts = self.folder / "artifacts"
        artifacts.mkdir(exist_ok=True)
        return FileSystemArtifactStore(str(artifacts))

    @cached_property
    def targets(self) -> dict[str, Target]:
        return targets_of(self.study)

    @cached_property
    def img_size(self) -> int:
        """Side of the deployed network's input, in pixels."""
        return img_size_of(self.targets)

    def write_note(self, storage_url: str, space: Space, scores_before_measuring: bool = False) -> None:
        """Name the study's values, and explain the study to whoever opens it.

        Args:
            scores_before_measuring: whether networks over a budget have an accuracy, too.
        """
        from optuna_dashboard import save_note  # imports scikit-learn, which takes three seconds

        columns = {
            "latency_ms" if len(self.targets) == 1 else f"latency_ms.{name}": target for name, target in self.targets.items()
        }
        metric = metric_name(self.study.user_attrs["settings"]["accuracy"].get("metric", Metric.TOP1))
        with quiet_experimental():
            self.study.set_metric_names([metric, *(key for key, target in columns.items() if target.is_objective)])
        note = render(
            "study_note.md.jinja",
            study=self.study.study_name,
            num_architectures=space.num_architectures(),
            columns=columns,
            scores_before_measuring=scores_before_measuring,
            limits=limits_of(self.study),
            metric=metric,
            front_title=f"{as_title(metric)} over latency",
            storage_url=storage_url,
        )
        save_note(self.study, note)

    def annotate(self, trial: Trial, record: TrialRecord) -> None:
        """Give a trial its network as YAML and as a picture, and a note that shows both, before it is told and so closed."""
        comment = f"Trial {trial.number} of study {self.study.study_name}.\nTrain it: python -m search.train arch=FILE"
        accuracy = record.result.accuracy
        facts = {"targets": target_facts(record, self.targets)}
        if accuracy is not None:
            facts["accuracy"] = accuracy.summary()
        with tempfile.TemporaryDirectory() as folder:
            yaml_file, svg_file = (Path(folder) / f"trial-{trial.number:05d}{suffix}" for suffix in (".yaml", ".svg"))
            yaml = architecture_file.text(comment, record.architecture, facts)
            yaml_file.write_text(yaml, encoding="utf-8")
            svg_file.write_text(picture(record.architecture, self.img_size), encoding="utf-8")
            picture_id, _ = (
                upload_artifact(artifact_store=self.store, file_path=str(path), study_or_trial=trial)
                for path in (svg_file, yaml_file)
            )
        note = render(
            "trial_note.md.jinja",
            title=f"{accuracy_text(record)}, {latencies_text(record.result, self.targets)}",
            picture_url=f"/artifacts/{self.study._study_id}/{trial._trial_id}/{picture_id}",
            header=stage_header(),
            rows=stage_rows(record.architecture),
            yaml=yaml,
        )
        _save_trial_note(trial, note)

    def publish_front(self, trials: list[TrialRecord]) -> None:
        """Show the front with intervals, limits and infeasible networks."""
        for name, figure in front_figures(trials, self.targets).items():
            self._save(self._id("front", name), figure)

    def publish(self, trials: list[TrialRecord]) -> None:
        """Show all plots."""
        self.publish_front(trials)
        self._save("hypervolume", hypervolume_figure(hypervolumes(trials, references_ms(self.targets))))
        if len(scored := evaluated(trials)) >= MIN_EVALUATED:
            self._save("influence", influence_figure(influences(scored), metric_of(trials)))
        members = front(trials)
        names = [f"trial {member.number}" for member in members]
        for target in objectives(self.targets):
            if rows := latency_by_stage(members, trials, target, self.img_size):
                self._save(self._id("stages", target), stages_figure(names, rows))

    def _id(self, plot: str, target: str) -> str:
        """The id of a plot that there is for each target."""
        return plot if len(self.targets) == 1 else f"{plot}-{target}"

    def _save(self, plot_id: str, figure: go.Figure) -> None:
        from optuna_dashboard import save_plotly_graph_object

        figure.layout.height = None  # the dashboard gives each plot the same room
        save_plotly_graph_object(self.study, figure, graph_object_id=plot_id)


def _save_trial_note(trial: Trial, body: str) -> None:
    """Do what optuna_dashboard.save_note does, which reads the notes of all trials each time."""
    from optuna_dashboard._note import note_ver_key, split_body

    attributes = {**split_body(body, trial._trial_id), note_ver_key(trial._trial_id): 1}
    for key, value in attributes.items():
        trial.storage.set_study_system_attr(trial.study._study_id, key, value)

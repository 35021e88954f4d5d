"""What optuna-dashboard shows of a study beyond its trials: notes, every network as YAML and as a picture, and plots."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import optuna
import plotly.graph_objects as go
from optuna.artifacts import FileSystemArtifactStore, upload_artifact
from optuna.trial import Trial

from search.results import architecture_file
from search.results.analysis import LEAST_JUDGED, PARTS, Influence, hypervolumes, influences, latency_by_stage
from search.results.card import stages
from search.results.picture import picture
from search.results.view import accuracy_text, latency_text
from search.space.dimensions import describe
from search.space.space import Space
from search.study.front import evaluated, front, latest_of_each
from search.study.storage import quiet_experimental
from search.study.targets import FIRST, objectives, references_ms, targets_of
from search.study.trial import TrialRecord

METRICS = ["accuracy", "latency_ms"]

TEAL, AMBER, RED, GREY, BLUE = "#1f9aaf", "#e08e0b", "#e0566b", "#8a94a3", "#5b7fd6"
CLEAR, LINES = "rgba(0,0,0,0)", {"gridcolor": "rgba(138,148,163,0.3)", "zerolinecolor": GREY}


@dataclass(frozen=True)
class Board:
    """A study in the dashboard. folder: the study's, outputs/NAME."""

    study: optuna.Study
    folder: Path

    @cached_property
    def store(self) -> FileSystemArtifactStore:
        """Of the files of its trials; search.dashboard serves them."""
        artifacts = self.folder / "artifacts"
        artifacts.mkdir(exist_ok=True)
        return FileSystemArtifactStore(str(artifacts))

    @cached_property
    def device(self) -> dict[str, Any]:
        device: dict[str, Any] = dict(targets_of(self.study)["first"].device)
        return device

    @property
    def img_size(self) -> int:
        """Of the deployed network's input, in pixels."""
        return int(self.device["input_size"].split("x")[-1])

    def write_note(self, storage: str, space: Space) -> None:
        budget_ms = None
        """Explain the study to whoever opens it."""
        from optuna_dashboard import save_note  # imports scikit-learn: three seconds that --help need not wait

        device = self.device
        budget = "There is no latency budget."
        if budget_ms:
            budget = (
                f"Networks above **{budget_ms:g} ms** are infeasible and not trained. They are *Pruned* here, since they "
                'have no accuracy; the plot "Front and budget" shows them.'
            )
        further = "".join(
            f"- **latency_ms.{name}**: the same on *{one['device']}* ({one['backend']}).\n"
            for name, one in self.study.user_attrs.get("further_devices", {}).items()
        )
        name = self.study.study_name
        with quiet_experimental():
            self.study.set_metric_names(
                [*METRICS, *(f"latency_ms.{name}" for name in objectives(targets_of(self.study))[1:])]
            )
        save_note(
            self.study,
            f"""# {name}

Search for LITv2 networks of high accuracy and low latency among {space.num_architectures():,} different ones.

- **accuracy**: top-1 on the validation split of the proxy task, in [0, 1]; the standard error is among a trial's
  attributes.
- **latency_ms**: median of paired measurements against an anchor network on *{device["device"]}* ({device["backend"]},
  {device["num_threads"]} thread(s), batch {device["batch_size"]}, input {device["input_size"]}); the 95 % interval is among
  the attributes.
{further}- {budget}
- The **front** is what no other network beats in both; the plot "Front and budget" draws it with its intervals. Of every
  trial, note and artifacts hold the network as YAML, which `search.train arch=FILE` takes, and as a picture.

Export the front: `python -m search.export study.name={name}`; one network of it, ready to deploy:
`python -m search.export study.name={name} pick=knee format=[onnx]`. All of this as one page:
`python -m search.report study.name={name}`. Storage: `{storage}`.
""",
        )

    def annotate(self, trial: Trial, result: TrialRecord) -> None:
        """Give a trial its network as YAML and as a picture, and a note that shows both, before it is told and so closed."""
        comment = f"Trial {trial.number} of study {self.study.study_name}.\nTrain it: python -m search.train arch=FILE"
        accuracy = result.result.accuracy
        facts = {"latency": result.result.latencies[FIRST].summary()} | (
            {} if accuracy is None else {"accuracy": accuracy.to_dict()}
        )
        with tempfile.TemporaryDirectory() as folder:
            file, drawn = (Path(folder) / f"trial-{trial.number:05d}{suffix}" for suffix in (".yaml", ".svg"))
            architecture_file.write(file, comment, result.architecture, facts)
            drawn.write_text(picture(result.architecture, self.img_size), encoding="utf-8")
            text = file.read_text(encoding="utf-8")
            ids = [
                upload_artifact(artifact_store=self.store, file_path=str(path), study_or_trial=trial)
                for path in (drawn, file)
            ]
        table = "\n".join(stages(result.architecture))
        shown = f"![the network](/artifacts/{self.study._study_id}/{trial._trial_id}/{ids[0]})"
        values = f"{accuracy_text(result)}, {latency_text(result.result.latencies[FIRST])} ms"
        write_trial_note(trial, f"# {values}\n\n{shown}\n\n{table}\n\n```yaml\n{text}```\n")

    def publish_front(self, trials: list[TrialRecord]) -> None:
        budget_ms = None
        """The front, with intervals, budget and infeasible networks."""
        self._publish("front", front_figure(trials, budget_ms))

    def publish(self, trials: list[TrialRecord]) -> None:
        """All plots."""
        self.publish_front(trials)
        self._publish("hypervolume", hypervolume_figure(hypervolumes(trials, references_ms(targets_of(self.study)))))
        if len(scored := evaluated(trials)) >= LEAST_JUDGED:
            self._publish("influence", influence_figure(influences(scored)))
        members = front(trials)
        if rows := latency_by_stage(members, trials, self.img_size):
            self._publish("stages", stages_figure([f"trial {one.number}" for one in members], rows))

    def _publish(self, name: str, figure: go.Figure) -> None:
        from optuna_dashboard import save_plotly_graph_object

        figure.update_layout(paper_bgcolor=CLEAR, plot_bgcolor=CLEAR, font_color=GREY)  # legible on light and on dark
        figure.update_xaxes(LINES).update_yaxes(LINES)
        save_plotly_graph_object(self.study, figure, graph_object_id=name)


def write_trial_note(trial: Trial, body: str) -> None:
    """As optuna_dashboard.save_note does, which reads the notes of all trials each time."""
    from optuna_dashboard._note import note_ver_key, split_body

    attributes = {**split_body(body, trial._trial_id), note_ver_key(trial._trial_id): 1}
    for key, value in attributes.items():
        trial.storage.set_study_system_attr(trial.study._study_id, key, value)


def front_figure(trials: list[TrialRecord], budget_ms: float | None) -> go.Figure:
    """Accuracy over latency: the front, what it dominates, and along the bottom what the budget ruled out untrained."""
    known = latest_of_each(trials)
    members = front(trials)
    in_front = {trial.architecture.key for trial in members}
    groups = {
        "Dominated": [t for t in known if t.result.feasible and t.result.accuracy and t.architecture.key not in in_front],
        "Infeasible": [t for t in known if not t.result.feasible],
        "Front": members,
    }
    styles = {
        "Dominated": {"color": GREY, "symbol": "circle-open"},
        "Infeasible": {"color": RED, "symbol": "x"},
        "Front": {"color": TEAL, "symbol": "circle"},
    }
    accuracies = [t.accuracy for t in known if t.result.accuracy]
    lowest, highest = min(accuracies, default=0.0), max(accuracies, default=1.0)
    bottom = lowest - 0.1 * (highest - lowest)  # where networks without an accuracy are drawn
    figure = go.Figure()
    for name, group in groups.items():
        latencies = [t.result.latencies[FIRST] for t in group]
        figure.add_scatter(
            x=[latency.latency_ms for latency in latencies],
            y=[t.accuracy if t.result.accuracy else bottom for t in group],
            error_x={
                "type": "data",
                "array": [latency.high_ms - latency.latency_ms for latency in latencies],
                "arrayminus": [latency.latency_ms - latency.low_ms for latency in latencies],
            },
            text=[
                f"trial {t.number}: {describe(t.architecture)}" + ("" if t.result.accuracy else " (not trained)")
                for t in group
            ],
            mode="lines+markers" if name == "Front" and not any(t.result.latencies for t in members) else "markers",
            marker={"size": 8, **styles[name]},
            line={"shape": "hv", "color": styles[name]["color"]},
            name=name,
        )
    if budget_ms is not None:
        figure.add_vline(x=budget_ms, line_dash="dash", line_color=RED, annotation_text=f"budget {budget_ms:g} ms")
    figure.update_layout(title="Front and budget", xaxis_title="latency, ms", yaxis_title="accuracy")
    return figure


def hypervolume_figure(volumes: Sequence[float]) -> go.Figure:
    """What the front dominated after each finished trial."""
    figure = go.Figure()
    figure.add_scatter(
        x=list(range(1, len(volumes) + 1)), y=list(volumes), mode="lines", line={"shape": "hv", "color": TEAL}
    )
    return figure.update_layout(
        title="Hypervolume over time", xaxis_title="finished trials", yaxis_title="share that the front dominates"
    )


def influence_figure(shares: Sequence[Influence]) -> go.Figure:
    """How much of each objective's variance a dimension explains; to the left if its highest value lowers the objective."""
    figure = go.Figure()
    names = [one.dimension for one in shares]
    accuracy = [one.accuracy if one.accuracy_gain >= 0 else -one.accuracy for one in shares]
    latency = [one.latency if one.latency_gain >= 0 else -one.latency for one in shares]
    gains = [f"{one.accuracy_gain:+.4f} accuracy" for one in shares], [f"{one.latency_gain:+.1%} latency" for one in shares]
    for name, values, texts, color in (
        ("accuracy", accuracy, gains[0], TEAL),
        ("latency", latency, gains[1], AMBER),
    ):
        figure.add_bar(y=names, x=values, hovertext=texts, orientation="h", name=name, marker_color=color)
    return figure.update_layout(
        title="What mattered, by objective",
        xaxis_title="share of variance; right: more of it raises the objective, left: lowers it",
        yaxis={"autorange": "reversed"},
        height=200 + 32 * len(names),
    )


def stages_figure(names: Sequence[str], milliseconds: Sequence[Sequence[float]]) -> go.Figure:
    """Where the latency of the front's networks goes, by the block model."""
    figure = go.Figure()
    for part, color, values in zip(PARTS, (GREY, TEAL, AMBER, BLUE, RED), zip(*milliseconds, strict=True), strict=True):
        figure.add_bar(y=list(names), x=list(values), orientation="h", name=part, marker_color=color)
    return figure.update_layout(
        title="Latency by stage", xaxis_title="ms, by the block model", yaxis={"autorange": "reversed"}, barmode="stack"
    )

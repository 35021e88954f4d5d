"""What optuna-dashboard shows of a study beyond its trials: a note, and the front with what the budget ruled out."""

from __future__ import annotations

import optuna
import plotly.graph_objects as go

from search.space import Space
from search.study import METRICS, Finished, accuracy_of, front, latest_of_each, quiet_experimental
from search.view import describe

FRONT_PLOT = "front"


def write_note(study: optuna.Study, storage: str, space: Space, budget_ms: float | None) -> None:
    """Explain the study to whoever opens it."""
    from optuna_dashboard import save_note  # imports scikit-learn: three seconds that --help need not wait

    device = study.user_attrs["device"]
    budget = "There is no latency budget."
    if budget_ms:
        budget = (
            f"Networks above **{budget_ms:g} ms** are infeasible and not trained. They are *Pruned* here, since they have "
            'no accuracy; the plot "Front and budget" shows them.'
        )
    with quiet_experimental():
        study.set_metric_names(METRICS)
    save_note(
        study,
        f"""# {study.study_name}

Search for LITv2 networks of high accuracy and low latency among {space.num_architectures():,} different ones.

- **accuracy**: top-1 on the validation split of the proxy task, in [0, 1]; the standard error is among a trial's
  attributes.
- **latency_ms**: median of paired measurements against an anchor network on *{device["device"]}* ({device["backend"]},
  {device["num_threads"]} thread(s), batch {device["batch_size"]}, input {device["input_size"]}); the 95 % interval is among
  the attributes.
- {budget}

Export the front: `python -m search.export study.name={study.study_name}`. Storage: `{storage}`.
""",
    )


def publish_front(study: optuna.Study, trials: list[Finished], budget_ms: float | None) -> None:
    """Write the plot of the front, with intervals, budget and infeasible networks, into the study."""
    from optuna_dashboard import save_plotly_graph_object

    save_plotly_graph_object(study, front_figure(trials, budget_ms), graph_object_id=FRONT_PLOT)


def front_figure(trials: list[Finished], budget_ms: float | None) -> go.Figure:
    """Accuracy over latency: the front, what it dominates, and along the bottom what the budget ruled out untrained."""
    judged = latest_of_each(trials)
    members = front(trials)
    in_front = {trial.architecture.key for trial in members}
    groups = {
        "Dominated": [t for t in judged if t.outcome.feasible and t.outcome.accuracy and t.architecture.key not in in_front],
        "Infeasible": [t for t in judged if not t.outcome.feasible],
        "Front": members,
    }
    styles = {
        "Dominated": {"color": "#7a869a", "symbol": "circle-open"},
        "Infeasible": {"color": "#d1495b", "symbol": "x"},
        "Front": {"color": "#0b7285", "symbol": "circle"},
    }
    accuracies = [accuracy_of(t) for t in judged if t.outcome.accuracy]
    lowest, highest = min(accuracies, default=0.0), max(accuracies, default=1.0)
    bottom = lowest - 0.1 * (highest - lowest)  # where networks without an accuracy are drawn
    figure = go.Figure()
    for name, group in groups.items():
        latencies = [t.outcome.latency for t in group]
        figure.add_scatter(
            x=[latency.latency_ms for latency in latencies],
            y=[accuracy_of(t) if t.outcome.accuracy else bottom for t in group],
            error_x={
                "type": "data",
                "array": [latency.high_ms - latency.latency_ms for latency in latencies],
                "arrayminus": [latency.latency_ms - latency.low_ms for latency in latencies],
            },
            text=[
                f"trial {t.number}: {describe(t.architecture)}" + ("" if t.outcome.accuracy else " (not trained)")
                for t in group
            ],
            mode="lines+markers" if name == "Front" else "markers",
            marker={"size": 8, **styles[name]},
            line={"shape": "hv", "color": styles[name]["color"]},
            name=name,
        )
    if budget_ms is not None:
        figure.add_vline(x=budget_ms, line_dash="dash", annotation_text=f"budget {budget_ms:g} ms")
    figure.update_layout(title="Front and budget", xaxis_title="latency, ms", yaxis_title="accuracy")
    return figure

"""The figures of a study, and their renderings as SVG and PNG."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from search.results.analysis import Effect, Influence
from search.results.figures import front_figures, influence_figure, prediction_figure, stages_figure
from search.results.static import INK, save_png, svg
from search.study.front import front, latest_of_each
from search.study.targets import FIRST
from search.study.trial import TrialRecord
from tests.support.known_engine import KnownEngine, constraint, finished, known_targets, run

TWO = (FIRST, "phone")


@pytest.fixture(scope="module")
def trials(tmp_path_factory: pytest.TempPathFactory) -> list[TrialRecord]:
    return run(f"sqlite:///{tmp_path_factory.mktemp('study') / 'study.db'}", 40, limit_ms=2.0)


def test_front_figure_has_every_network_once_and_the_limit(trials: list[TrialRecord]) -> None:
    (figure,) = front_figures(trials, known_targets(KnownEngine(), 2.0)).values()
    by_name = {trace.name: trace for trace in figure.data}
    members = front(trials)
    assert list(by_name["front"].x) == [member.result.latencies[FIRST].latency_ms for member in members]
    assert list(by_name["front"].y) == [member.accuracy for member in members]
    assert list(by_name["front"].error_y.array) == pytest.approx(
        [member.result.accuracy.standard_error for member in members if member.result.accuracy]
    )
    assert all(x > 2.0 for x in by_name["infeasible"].x)
    assert max(by_name["infeasible"].y) < min(by_name["front"].y)  # they have no accuracy
    shown = {text.partition(":")[0] for trace in figure.data for text in trace.text}
    assert shown == {f"trial {trial.number}" for trial in latest_of_each(trials)}
    assert figure.layout.shapes[0].x0 == 2.0
    assert figure.layout.annotations[0].text == "budget 2 ms"


def test_each_target_that_is_an_objective_has_a_figure_without_a_staircase() -> None:
    trials = [finished(0, 0.7, 1.0, phone=4.0), finished(1, 0.8, 2.0, phone=3.0)]
    targets = known_targets(KnownEngine(targets=(*TWO, "tablet")), tablet=constraint(9.0))
    figures = front_figures(trials, targets)
    assert list(figures) == list(TWO)
    assert [list(figure.data[-1].x) for figure in figures.values()] == [[1.0, 2.0], [4.0, 3.0]]
    assert all(figure.data[-1].mode == "markers" for figure in figures.values())
    assert figures["phone"].layout.xaxis.title.text.startswith("latency on phone, ms")


def test_bars_point_to_where_a_higher_value_moves_the_objective() -> None:
    figure = influence_figure([Influence("embed_dim", Effect(0.5, -0.1), {FIRST: Effect(0.25, 0.3)})])
    accuracy, latency = figure.data
    assert list(accuracy.x) == [-0.5]
    assert list(latency.x) == [0.25]
    assert (accuracy.name, latency.name) == ("accuracy", "latency")


def test_svg_shows_what_the_figure_does(trials: list[TrialRecord]) -> None:
    (figure,) = front_figures(trials, known_targets(KnownEngine(), 2.0)).values()
    text = svg(figure, "front-first")
    texts = {"".join(node.itertext()).strip() for node in ElementTree.fromstring(text).iter() if node.tag.endswith("text")}
    assert {"front", "infeasible", "budget 2 ms", "accuracy"} <= texts
    assert figure.layout.xaxis.title.text in texts
    assert INK not in text
    assert "currentColor" in text
    ids = re.findall(r'\bid="([^"]*)"', text)
    assert len(ids) == len(set(ids)) > 10
    assert all(name.startswith("front-first-") for name in ids)


def test_bars_are_as_long_as_their_values() -> None:
    axes_texts = svg(stages_figure(["trial 1", "trial 2"], [[1.0, 2.0, 0.5, 0.5, 1.0], [1.0, 1.0, 0.5, 0.5, 1.0]]), "s")
    assert "trial 2" in axes_texts
    assert "stage 4" in axes_texts


def test_text_in_a_figure_stays_text() -> None:
    text = svg(prediction_figure({"<b>$x$": [1.0, 2.0], "b": [2.0]}, {"<b>$x$": [1.1, 2.1], "b": [2.0]}), "p")
    assert "&lt;b&gt;$x$" in text


def test_png_has_a_panel_for_each_figure(trials: list[TrialRecord], tmp_path: Path) -> None:
    (figure,) = front_figures(trials, known_targets(KnownEngine(), 2.0)).values()
    sizes = []
    for count in (1, 2):
        save_png([figure] * count, "Study", tmp_path / "pareto.png")
        with Image.open(tmp_path / "pareto.png") as image:
            sizes.append(image.size)
    assert sizes == [(1200, 810), (2400, 810)]

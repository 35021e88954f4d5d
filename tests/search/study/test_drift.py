"""Drift: what the anchor's times in all measurements tell about milliseconds."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from models.architecture import Architecture
from search.latency.base import Latency
from search.latency.estimate import Estimate
from search.results import architecture_file
from search.results.export import export_front, member_name
from search.results.report import sections
from search.results.report.study_data import StudyData
from search.study.coordinator import SearchProgress
from search.study.drift import RECENT, Drift, drift_notes, drifts, recent_slowdown
from search.study.storage import open_study
from search.study.targets import FIRST
from search.study.trial import TrialRecord, finished_trials
from tests.support import known_engine
from tests.support.known_engine import KnownEngine, coordinator, fill, finished, interrupting


def slowed(number: int, slowdown: float) -> TrialRecord:
    trial = finished(number, 0.8, 2.0)
    latency = replace(trial.result.latencies[FIRST], slowdown=slowdown)
    return replace(trial, result=replace(trial.result, latencies={FIRST: latency}))


def throttled(count: int = 30, after: int = 10) -> list[TrialRecord]:
    """A board that throttles after some trials, and one measurement beside other work."""
    trials = [slowed(number, 1.3 if number >= after else 1.0) for number in range(count)]
    return [*trials[:-1], slowed(count - 1, 4.0)]


def test_sustained_latency_is_that_of_most_of_the_study() -> None:
    assert drifts(throttled()) == {FIRST: Drift(1.3, 1.3)}
    assert drifts(throttled(after=24)) == {FIRST: Drift(1.0, 1.3)}
    assert drifts([]) == {}


def test_predictions_tell_nothing_of_the_anchor() -> None:
    trial = finished(99, 0.8, 2.0)
    predicted = Latency(Estimate(2.0, 0.1, 8.0), repetitions=0, warmup_runs=0, converged=False, seconds=0.0)
    trial = replace(trial, result=replace(trial.result, latencies={FIRST: predicted}))
    assert drifts([*throttled(), *[trial] * 50]) == {FIRST: Drift(1.3, 1.3)}
    assert recent_slowdown([*throttled(), trial], FIRST) == 1.3


def test_a_few_measurements_tell_nothing_yet() -> None:
    trials = [slowed(number, 1.5) for number in range(RECENT)]
    assert recent_slowdown(trials[1:], FIRST) is None
    assert recent_slowdown(trials, FIRST) == 1.5
    assert recent_slowdown(trials, "phone") is None


def test_note_says_by_what_to_multiply() -> None:
    (note,) = drift_notes(throttled())
    assert "the anchor took 1.30 times its calibrated latency over the study (1.30 times at last)" in note
    assert "multiply them by 1.30" in note
    assert drift_notes([slowed(number, 1.04) for number in range(30)]) == []
    assert "(1.30 times at last)" in drift_notes(throttled(after=24))[0]


class ThrottlingEngine(KnownEngine):
    """Its device is slower by 1.3 after ten measurements; so is the anchor."""

    def latency(self, architecture: Architecture, factor: int = 1) -> Latency:
        latency = super().latency(architecture, factor)
        return replace(latency, slowdown=1.3 if len(self.measured) > 10 else 1.0)


def throttled_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StudyData:
    monkeypatch.setattr(known_engine, "KnownEngine", ThrottlingEngine)
    return StudyData(known_engine.studied(f"sqlite:///{tmp_path / 'study.db'}", 40), tmp_path)


def test_search_reports_drift_once_while_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    throttled_study(tmp_path, monkeypatch)
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    (drift,) = [message for message in warnings if "the anchor takes" in message]
    assert drift.startswith("the anchor takes 1.30 times what it took at the start")


def test_results_have_the_sustained_latency(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = throttled_study(tmp_path, monkeypatch)
    for member in export_front(study.study, tmp_path):
        _, facts = architecture_file.read(tmp_path / "pareto" / member_name(member))
        target = facts["targets"][FIRST]
        assert target["sustained_ms"] == pytest.approx(1.3 * target["latency"]["latency_ms"])
    (quality,) = (section for section in sections(study) if section.title == "Quality of the latency measurements")
    assert "multiply them by 1.30" in quality.text[0]
    assert ("the anchor's time over its calibrated time, median", "1.30, 1.30 at last") in quality.tables[0].rows
    assert ("standard deviation of separate measurements of a network", "0.80% (assumed)") in quality.tables[0].rows


def test_resumed_search_knows_the_drift_of_the_trials_before(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    seen: list[SearchProgress] = []

    def run_on(engine: KnownEngine, record: Callable[[SearchProgress], None]) -> None:
        study = open_study("test", storage, create=True, num_latencies=1)
        started = coordinator(study, engine)
        started.view.trial_finished = lambda trial, progress: record(progress)  # type: ignore[method-assign]
        fill(started, 30)

    with pytest.raises(KeyboardInterrupt):
        run_on(ThrottlingEngine(interrupting(50)), lambda progress: None)
    slow = ThrottlingEngine()
    slow.measured = ["before"] * 20
    run_on(slow, seen.append)
    assert seen[0].slowdowns == {FIRST: 1.3}
    assert drifts(finished_trials(open_study("test", storage, create=False))) == {FIRST: Drift(1.3, 1.3)}

"""Results as text: short with one target, each named with several."""

from __future__ import annotations

from dataclasses import replace

from search.accuracy.checked import Checked
from search.results.tables import accuracy_text, front_table, latencies_text, latency_headers, note_text, trial_table
from tests.support.known_engine import finished


def test_one_target_needs_no_name() -> None:
    trial = finished(3, 0.8, 2.0)
    table = trial_table("trials", [trial])
    assert str(table.columns[2].header) == "latency, ms [95 % CI]"
    assert latencies_text(trial.result) == "2.000 [1.961, 2.040] ms"
    assert accuracy_text(trial) == "0.8000 ±0.0126"


def test_several_targets_are_named() -> None:
    trial = finished(3, 0.8, 2.0, phone=4.0)
    table = trial_table("trials", [trial])
    assert [str(column.header) for column in table.columns][2:4] == ["first, ms [95 % CI]", "phone, ms [95 % CI]"]
    assert latencies_text(trial.result) == "2.000 [1.961, 2.040] ms on first, 4.000 [3.921, 4.080] ms on phone"
    assert latency_headers(["first"]) == ["latency, ms [95 % CI]"]


def test_a_place_on_the_front_is_one_by_score_until_a_check_has_measured_scores() -> None:
    trials = [finished(3, 0.8, 2.0)]
    headers = [
        [str(c.header) for c in front_table("", trials, checked).columns] for checked in (None, Checked(0.1, 0.0, 12))
    ]
    assert [header[3] for header in headers] == ["on the front by score", "on the front"]


def test_a_target_that_was_not_measured_has_an_empty_cell() -> None:
    both, only_first = finished(3, 0.8, 2.0, phone=4.0), finished(4, 0.8, 3.0)
    column = trial_table("trials", [both, only_first]).columns[3]
    assert list(column.cells)[1] == ""
    assert latencies_text(only_first.result, both.result.latencies).endswith("ms on first")


def test_notes_say_what_is_special() -> None:
    trial = finished(3, 0.8, 2.0)
    predicted = {name: replace(latency, repetitions=0) for name, latency in trial.result.latencies.items()}
    results = [
        replace(trial.result, feasible=False),
        replace(trial.result, reused_accuracy=True),
        replace(trial.result, latencies=predicted),
    ]
    notes = [note_text(replace(trial, result=result)) for result in results]
    assert notes == ["over budget", "same network as an earlier trial, measured again", "dominated, latency predicted"]
    assert note_text(trial) == ""
    assert note_text(replace(trial, origin="smallest")) == "smallest"

"""What a device answers is checked as data."""

from __future__ import annotations

from typing import Any

import pytest

from search.latency.remote.answers import (
    DeviceError,
    ProtocolError,
    check_number,
    check_numbers,
    printable,
    series_in,
    times_alone,
)
from search.latency.repeatability import ASSUMED

ROUND = {"candidate_ms": [2.0, 2.0], "anchor_ms": [1.0, 1.0, 1.0]}
SERIES = {"rounds": [ROUND, ROUND], "warmup_runs": 3, "seconds": 0.5}


@pytest.mark.parametrize("value", [None, [], ["1"], [True], [float("nan")], [float("inf")], [-1.0], {"a": 1}])
def test_times_are_numbers(value: object) -> None:
    with pytest.raises(DeviceError):
        check_numbers(value, 1e7)


def test_text_is_one_short_line() -> None:
    assert printable("a\x1b[31m\nb" + "c" * 1000) == ("a[31mb" + "c" * 1000)[:200]
    assert check_number(3, 1, 5) == 3.0


def test_estimates_are_computed_here() -> None:
    (series,) = series_in({"series": [SERIES]}, 1, 0.5, ASSUMED)
    assert series.estimate.value == 2.0
    assert series.converged
    assert series.warmup_runs == 3
    assert not series_in({"series": [SERIES]}, 1, 1e-6, ASSUMED)[0].converged


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"series": []},
        {"series": [SERIES, SERIES]},
        {"series": [None]},
        {"series": [{**SERIES, "rounds": [ROUND]}]},
        {"series": [{**SERIES, "rounds": [ROUND, 1]}]},
        {"series": [{**SERIES, "rounds": [ROUND, {"candidate_ms": [2.0], "anchor_ms": [1.0]}]}]},
        {"series": [{**SERIES, "seconds": "1"}]},
        {"series": [{**SERIES, "warmup_runs": -1}]},
    ],
)
def test_times_of_another_form_are_refused(answer: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        series_in(answer, 1, 0.1, ASSUMED)


def test_times_alone_are_read_by_round() -> None:
    assert times_alone({"rounds": [[0.1, 0.2], [0.3]]}) == [[0.1, 0.2], [0.3]]
    with pytest.raises(ProtocolError):
        times_alone({"rounds": [[0.1], []]})

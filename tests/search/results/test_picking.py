"""Rules that pick networks of a front, and the comparison with the LITv2 pattern."""

from __future__ import annotations

import re

import pytest

from search import UserError
from search.results.picking import compare, compared_text, pick
from search.study.front import latest_of_each
from search.study.targets import FIRST, BudgetOn
from search.study.trial import TrialRecord
from tests.support.known_engine import SPACE, finished


def front_of_four() -> list[TrialRecord]:
    return [finished(0, 0.70, 1.0), finished(1, 0.88, 1.5), finished(2, 0.90, 3.0), finished(3, 0.91, 5.0)]


@pytest.mark.parametrize(
    ("rule", "numbers"),
    [
        ("front", [0, 1, 2, 3]),
        ("knee", [1]),
        ("distinct", [0, 1, 3]),
        ("latency<=3.5ms", [2]),
        ("latency <= 3", [2]),
        ("latency<=1e3ms", [3]),
        ("accuracy>=0.89", [2]),
        ("accuracy>=0.1", [0]),
    ],
)
def test_rules(rule: str, numbers: list[int]) -> None:
    assert [member.number for member in pick(front_of_four(), rule)] == numbers


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("latency<=0.5ms", "the fastest network of the front takes 1 ms"),
        ("accuracy>=0.99", "the most accurate network of the front reaches 0.9100"),
        ("latency>=3ms", "is an invalid rule"),
        ("accuracy<=0.9", "is an invalid rule"),
        ("accuracy>=0.9ms", "is an invalid rule"),
        ("elbow", "is an invalid rule"),
        ("latency<=x", "is an invalid rule"),
        ("latency<=2..5ms", "is an invalid rule"),
        ("accuracy>=.", "is an invalid rule"),
    ],
)
def test_rules_that_pick_nothing_are_named(rule: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        pick(front_of_four(), rule)


def test_pattern_that_was_sampled_again_is_still_the_pattern() -> None:
    first = finished(0, 0.7, 2.0, SPACE.anchor(), origin="LITv2 pattern, width 8")
    again = finished(5, 0.7, 1.9, SPACE.anchor())
    (latest,) = latest_of_each([first, again])
    assert (latest.number, latest.origin) == (5, first.origin)


def test_front_of_one_has_a_knee() -> None:
    only = finished(0, 0.7, 1.0)
    assert pick([only], "knee") == [only]


def test_comparison_takes_the_pattern_of_the_nearest_width() -> None:
    patterns = [
        finished(number, 0.8, 4.0 * width / 8, SPACE.architecture(parameters), origin)
        for number, ((origin, parameters), width) in enumerate(
            zip(SPACE.baselines().items(), (8, 16), strict=False), start=10
        )
    ]
    member = finished(0, 0.85, 2.0, SPACE.largest())
    assert member.architecture.embed_dim == 16
    comparison = compare(member, [*patterns, member])
    assert comparison is not None
    assert comparison.pattern.number == 11
    speedup = comparison.speedups[FIRST]
    assert speedup.value == pytest.approx(4.0)
    assert speedup.low < 4.0 < speedup.high
    assert comparison.gain == pytest.approx(0.05)
    assert "4.00 [" in str(comparison)
    assert compare(member, [member]) is None


def test_comparison_has_the_speedup_on_each_target() -> None:
    pattern = finished(7, 0.8, 4.0, SPACE.anchor(), "LITv2 pattern, width 8", phone=3.0)
    comparison = compare(finished(0, 0.85, 2.0, phone=1.0), [pattern])
    assert comparison is not None
    assert {name: round(speedup.value, 6) for name, speedup in comparison.speedups.items()} == {FIRST: 2.0, "phone": 3.0}
    assert "0.8500 in 2.000 ms on first and 1.000 ms on phone" in str(comparison)
    assert re.search(
        r"2\.00 \[.*\] times as fast on first and 3\.00 \[.*\] times as fast on phone at \+0\.0500", str(comparison)
    )


def test_each_target_has_a_rule() -> None:
    values = [(0.7, 1.0, 9.0), (0.8, 2.0, 3.0), (0.9, 4.0, 12.0)]
    members = [finished(number, accuracy, ms, phone=phone) for number, (accuracy, ms, phone) in enumerate(values)]
    assert [member.number for member in pick(members, "latency.phone<=10ms")] == [1]
    assert [member.number for member in pick(members, "latency.first<=1.5")] == [0]
    assert [member.number for member in pick(members, "latency<=1.5")] == [0]
    with pytest.raises(UserError, match="the study has no latency target tablet; its targets are first, phone"):
        pick(members, "latency.tablet<=10ms")


def test_latency_rules_compare_the_estimate_or_the_upper_end() -> None:
    """The upper ends are 2 % above the estimates."""
    upper = {FIRST: BudgetOn.UPPER}
    assert [member.number for member in pick(front_of_four(), "latency<=3")] == [2]
    assert [member.number for member in pick(front_of_four(), "latency<=3", upper)] == [1]
    assert [member.number for member in pick(front_of_four(), "latency<=3.1", upper)] == [2]
    with pytest.raises(UserError, match=r"takes 1\.02 ms \(the upper end of the 95 % confidence interval\)"):
        pick(front_of_four(), "latency<=1", upper)
    assert compared_text("latency<=3", upper) == " by the upper end of the 95 % confidence interval of the latency"
    assert compared_text("latency<=3", {}) == " by the estimate of the latency"
    assert compared_text("knee", upper) == ""

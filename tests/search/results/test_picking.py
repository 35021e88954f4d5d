"""Which of a front is deployed, and what it is compared with."""

from __future__ import annotations

import pytest

from search import UserError
from search.results.picking import compare, pick
from search.study.trial import Finished, latest_of_each
from tests.support.known_engine import SPACE, finished


def front_of_four() -> list[Finished]:
    return [finished(0, 0.70, 1.0), finished(1, 0.88, 1.5), finished(2, 0.90, 3.0), finished(3, 0.91, 5.0)]


@pytest.mark.parametrize(
    ("rule", "numbers"),
    [
        ("front", [0, 1, 2, 3]),
        ("knee", [1]),
        ("latency<=3.5ms", [2]),
        ("latency <= 3", [2]),
        ("latency<=1e3ms", [3]),
        ("accuracy>=0.89", [2]),
        ("accuracy>=0.1", [0]),
    ],
)
def test_rules(rule: str, numbers: list[int]) -> None:
    assert [one.number for one in pick(front_of_four(), rule)] == numbers


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("latency<=0.5ms", "the fastest of the front takes 1 ms"),
        ("accuracy>=0.99", "the most accurate of the front reaches 0.9100"),
        ("latency>=3ms", "is no rule"),
        ("accuracy<=0.9", "is no rule"),
        ("accuracy>=0.9ms", "is no rule"),
        ("elbow", "is no rule"),
        ("latency<=x", "is no rule"),
        ("latency<=2..5ms", "is no rule"),
        ("accuracy>=.", "is no rule"),
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
        for number, ((origin, parameters), width) in enumerate(zip(SPACE.known().items(), (8, 16), strict=False), start=10)
    ]
    member = finished(0, 0.85, 2.0, SPACE.largest())
    assert member.architecture.embed_dim == 16
    found = compare(member, [*patterns, member])
    assert found is not None
    assert found.pattern.number == 11
    assert found.speedup == pytest.approx(4.0)
    assert found.low < 4.0 < found.high
    assert found.gain == pytest.approx(0.05)
    assert "4.00 [" in str(found)
    assert compare(member, [member]) is None

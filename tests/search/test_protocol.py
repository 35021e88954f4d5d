"""The timing loop, on a clock that the tests turn."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable

import pytest

from search.latency.base import Latency
from search.latency.protocol import LEAST_PAIRS, MIN_PAIRS, median_interval, time_alone, time_ratio


class FakeMachine:
    """A clock, and networks that take a given time on it, slowed by what the machine goes through."""

    def __init__(self, slowdown: Callable[[float], float] = lambda now: 1.0) -> None:
        self.now = 0.0
        self.slowdown = slowdown

    def clock(self) -> float:
        return self.now

    def network(self, seconds: float) -> Callable[[], None]:
        def run() -> None:
            self.now += seconds * self.slowdown(self.now)

        return run


def test_ratio_of_a_quiet_machine_is_exact() -> None:
    machine = FakeMachine()
    samples = time_ratio(machine.network(0.02), machine.network(0.01), 0.02, 10.0, machine.clock)
    assert samples.interval.median == pytest.approx(2.0)
    assert samples.converged
    assert len(samples.values) == MIN_PAIRS


def test_drift_cancels() -> None:
    steady, drifting = FakeMachine(), FakeMachine(lambda now: 1 + 0.3 * now)
    ratios = [time_ratio(m.network(0.013), m.network(0.01), 0.02, 10.0, m.clock).interval.median for m in (steady, drifting)]
    assert ratios[1] == pytest.approx(ratios[0], rel=0.02)


def test_interruptions_do_not_move_the_median() -> None:
    def interrupted(now: float) -> float:
        return 5.0 if random.Random(int(now / 0.2)).random() < 0.15 else 1.0  # a fifth of a second at a time

    machine = FakeMachine(interrupted)
    samples = time_ratio(machine.network(0.03), machine.network(0.01), 0.02, 60.0, machine.clock)
    assert samples.interval.median == pytest.approx(3.0, rel=0.02)
    assert samples.interval.low <= 3.0 <= samples.interval.high


@pytest.mark.parametrize("factor", [0.05, 1.0, 40.0])
def test_quicker_one_repeats_so_that_both_last_alike(factor: float) -> None:
    machine = FakeMachine()
    samples = time_ratio(machine.network(0.01 * factor), machine.network(0.01), 0.02, 100.0, machine.clock)
    assert samples.interval.median == pytest.approx(factor)


def test_stops_at_the_time_limit_and_says_so() -> None:
    rng = random.Random(0)
    machine = FakeMachine(lambda now: rng.uniform(0.2, 5.0))
    samples = time_ratio(machine.network(0.1), machine.network(0.1), 0.001, 20.0, machine.clock)
    assert not samples.converged
    assert 20.0 <= samples.seconds < 22.0


def test_interval_covers_the_true_median_at_its_rate() -> None:
    rng = random.Random(1)
    covered = 0
    for _ in range(1000):
        interval = median_interval([rng.lognormvariate(0, 0.1) for _ in range(30)])
        covered += interval.low <= 1.0 <= interval.high
    assert 0.93 <= covered / 1000 <= 0.995


@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_interval_of_a_ratio_covers_the_true_one_at_its_rate(factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gc, "collect", lambda: 0)  # half a second, four hundred times
    rng = random.Random(2)
    covered = 0
    for _ in range(400):
        machine = FakeMachine(lambda now: rng.lognormvariate(0, 0.1))
        samples = time_ratio(machine.network(0.01 * factor), machine.network(0.01), 1e-9, 1.0, machine.clock)
        # Three runs of the anchor in a row average to their mean, exp(0.005), which is not their median.
        truth = factor / (1.005 if factor > 1 else 1.0)
        covered += samples.interval.low <= truth <= samples.interval.high
    assert 0.92 <= covered / 400 <= 0.995


def test_time_limit_leaves_enough_pairs_for_an_interval() -> None:
    machine = FakeMachine()
    samples = time_ratio(machine.network(5.0), machine.network(5.0), 0.02, 1.0, machine.clock)
    assert len(samples.values) == LEAST_PAIRS


def test_no_garbage_collection_while_timing() -> None:
    machine = FakeMachine()
    seen: list[bool] = []
    network = machine.network(0.01)

    def run() -> None:
        seen.append(gc.isenabled())
        network()

    time_alone(run, 1.0, machine.clock)
    assert gc.isenabled()
    assert not any(seen[-MIN_PAIRS:])


def test_repeats_refine_a_latency() -> None:
    def latency(value: float, half: float) -> Latency:
        return Latency(value, value - half, value + half, 20, 3, True, 1.0)

    wide, narrow = latency(2.2, 0.4), latency(2.0, 0.1)
    both = wide.refined_by(narrow)
    assert 2.0 < both.latency_ms < 2.05  # the narrow one weighs more
    assert both.high_ms - both.low_ms < narrow.high_ms - narrow.low_ms
    assert both.repetitions == 40
    apart = latency(2.0, 0.01).refined_by(latency(2.2, 0.01))
    assert apart.low_ms < 2.0
    assert apart.high_ms > 2.2  # they disagree, and the interval says so
    same = narrow.refined_by(narrow)
    assert same.latency_ms == pytest.approx(2.0)

"""The timing protocol, on a simulated clock."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest

from search.latency.base import Latency
from search.latency.estimate import Estimate
from search.latency.protocol import (
    LEAST_ROUNDS,
    MIN_ROUNDS,
    Run,
    Series,
    Timer,
    count_outliers,
    time_alone,
    time_ratios,
    timed_by,
    timer_on,
)
from search.latency.rounds import Round


class FakeMachine:
    """A clock, and networks that take a given time on it, slowed down as the machine is."""

    def __init__(self, slowdown: Callable[[float], float] = lambda now: 1.0) -> None:
        self.now = 0.0
        self.slowdown = slowdown

    def clock(self) -> float:
        return self.now

    @property
    def timer(self) -> Timer:
        return Timer(timed_by(self.clock), self.clock)

    def network(self, seconds: float) -> Callable[[], None]:
        def run() -> None:
            self.now += seconds * self.slowdown(self.now)

        return run

    def ratio(self, candidate: float, anchor: float, tolerance: float, max_seconds: float) -> Series:
        """Time two networks that take so many seconds."""
        return time_ratios([[self.network(candidate)]], [self.network(anchor)], tolerance, max_seconds, self.timer)[0]


def test_runs_that_took_no_processor_time_are_outliers() -> None:
    """A virtual machine reports such runs when it subtracts the time that its host took before."""
    machine, ticks = FakeMachine(), 0

    def forgetful() -> float:
        nonlocal ticks
        ticks += 1
        return 0.0 if ticks % 40 in (3, 4, 5, 6, 7, 8) else machine.now

    timer = Timer(timed_by(forgetful), machine.clock)
    series = time_ratios([[machine.network(0.02)]], [machine.network(0.01)], 0.1, 10.0, timer)[0]
    assert series.estimate.value == pytest.approx(2.0)
    assert series.outliers > 0


def test_ratio_of_a_quiet_machine_is_exact() -> None:
    series = FakeMachine().ratio(0.02, 0.01, 0.035, 10.0)
    assert series.estimate.value == pytest.approx(2.0)
    assert series.converged
    assert len(series.rounds) == MIN_ROUNDS


def test_one_thread_is_timed_by_processor_time_and_more_by_wall_time() -> None:
    wait = partial(time.sleep, 0.2)
    assert timer_on(1, lambda: None).time_run(wait) < 0.1
    assert timer_on(2, lambda: None).time_run(wait) >= 0.2


def test_memory_is_scattered_anew_before_each_round() -> None:
    machine, calls = FakeMachine(), list[int]()
    timer = Timer(timed_by(machine.clock), machine.clock, lambda: calls.append(0))
    (series,) = time_ratios([[machine.network(0.01)]], [machine.network(0.01)], 0.035, 10.0, timer)
    assert len(calls) == len(series.rounds)


def test_drift_cancels() -> None:
    steady, drifting = FakeMachine(), FakeMachine(lambda now: 1 + 0.3 * now)
    ratios = [machine.ratio(0.013, 0.01, 0.035, 10.0).estimate.value for machine in (steady, drifting)]
    assert ratios[1] == pytest.approx(ratios[0], rel=0.01)


def test_interruptions_do_not_move_the_median() -> None:
    def interrupted(now: float) -> float:
        return 5.0 if random.Random(int(now / 0.2)).random() < 0.15 else 1.0  # a fifth of a second at a time

    series = FakeMachine(interrupted).ratio(0.03, 0.01, 0.035, 60.0)
    assert series.estimate.value == pytest.approx(3.0, rel=0.02)
    assert series.estimate.low <= 3.0 <= series.estimate.high
    assert series.outliers > 0  # they are counted, not dropped


@pytest.mark.parametrize("factor", [0.05, 1.0, 40.0])
def test_candidate_and_anchor_take_one_run_each_however_different_they_are(factor: float) -> None:
    machine = FakeMachine()
    order: list[str] = []

    def recording(name: str, run: Run) -> Run:
        return lambda: (order.append(name), run())

    candidate, anchor = recording("candidate", machine.network(0.01 * factor)), recording("anchor", machine.network(0.01))
    series = time_ratios([[candidate]], [anchor], 0.035, 20.0, machine.timer)[0]
    assert series.estimate.value == pytest.approx(factor)
    assert all(len(round_.anchor_ms) == len(round_.candidate_ms) + 1 for round_ in series.rounds)
    timed = order[-2 * len(series.rounds[-1].candidate_ms) :]
    assert set(timed[::2]) == {"candidate"}
    assert set(timed[1::2]) == {"anchor"}


def test_networks_take_turns_and_so_do_their_copies() -> None:
    machine = FakeMachine()
    order: list[str] = []

    def recording(name: str, seconds: float) -> Run:
        run = machine.network(seconds)
        return lambda: (order.append(name), run())

    copies = [[recording(f"{name}{copy}", 0.1) for copy in range(2)] for name in "ab"]
    first, second = time_ratios(copies, [recording("anchor", 0.1)], 0.035, 30.0, machine.timer)
    assert len(first.rounds) == len(second.rounds) == MIN_ROUNDS
    turns = [name for name, before in zip(order[1:], order, strict=False) if name != "anchor" and name != before]
    changes = [name for name, before in zip(turns[1:], turns, strict=False) if name != before]
    assert changes[-4:] == ["a0", "b0", "a1", "b1"]


def test_stops_at_the_time_limit_without_convergence() -> None:
    rng = random.Random(0)
    series = FakeMachine(lambda now: rng.uniform(0.2, 5.0)).ratio(0.1, 0.1, 0.001, 20.0)
    assert not series.converged
    assert 15.0 <= series.seconds <= 22.0


def test_time_limit_leaves_enough_rounds_for_an_interval() -> None:
    series = FakeMachine().ratio(5.0, 5.0, 0.035, 1.0)
    assert len(series.rounds) == LEAST_ROUNDS


def test_outliers_are_those_far_off() -> None:
    assert count_outliers([1.0, 1.01, 0.99, 1.0, 1.02, 0.98, 3.0]) == 1
    assert count_outliers([1.0, 1.0, 1.0]) == 0


def test_warms_up_until_times_are_steady() -> None:
    machine = FakeMachine(lambda now: max(1.0, 5.0 - 10 * now))  # slow at first, steady after 0.4 s
    series = machine.ratio(0.01, 0.01, 0.035, 10.0)
    assert series.warmup_runs > 20
    assert max(series.rounds[0].anchor_ms) == pytest.approx(10.0)


def test_no_garbage_collection_while_timing() -> None:
    machine = FakeMachine()
    seen: list[bool] = []
    network = machine.network(0.01)

    def run() -> None:
        seen.append(gc.isenabled())
        network()

    rounds = time_alone([run], [], 1.0, machine.timer)
    assert gc.isenabled()
    assert not any(seen[-sum(map(len, rounds)) :])


def test_runs_in_between_are_not_timed() -> None:
    machine = FakeMachine()
    rounds = time_alone([machine.network(0.01)], [machine.network(0.05)], 1.0, machine.timer)
    assert [time for times in rounds for time in times] == pytest.approx([0.01] * sum(map(len, rounds)))


def test_repeats_refine_a_latency() -> None:
    def latency(value: float, error: float) -> Latency:
        return Latency(Estimate(value, error, 7.0), 20, 3, True, 1.0)

    wide, narrow = latency(2.2, 0.1), latency(2.0, 0.03)
    both = wide.refined_by(narrow)
    assert 2.0 < both.latency_ms < 2.05  # the surer one weighs more
    assert both.standard_error < narrow.standard_error
    assert both.repetitions == 40
    assert replace(narrow, rounds=(Round((1.0,), (1.0, 3.0)),)).rounds[0].ratios == (0.5,)

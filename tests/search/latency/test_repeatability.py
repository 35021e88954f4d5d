"""How well a target repeats is measured when it is calibrated: on simulated machines whose truth is known."""

from __future__ import annotations

import math
import random
import re
import statistics
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from models.architecture import Architecture
from search import UserError
from search.latency.base import Calibration
from search.latency.host import Timing
from search.latency.protocol import Run, Timer, time_ratios, timed_by
from search.latency.repeatability import ASSUMED, LEAST_DEVIATION, Repeatability, estimate_repeatability, unreachable
from search.latency.runtime import Runtime
from search.latency.target import PairedTarget, TargetSettings
from tests.contracts.latency_target import LARGE, SMALL

SETTINGS = TargetSettings(
    img_size=32, in_chans=1, num_classes=10, batch_size=1, num_threads=1, dtype="float32", prepared=False,
    tolerance=0.025, max_seconds=3.0, calibration_seconds=5.0,
)  # fmt: skip
ANCHOR_SECONDS, TRUE = 0.01, 1.5
LOADING_SECONDS = 0.1


class SimulatedHost:
    """A machine on which each network takes TRUE times as long as the anchor, but for errors of three kinds.

    Args:
        systematic: Standard deviation between loaded copies of a network, which lasts through all rounds of a measurement.
        by_round: Between rounds.
        by_run: Between runs.
    """

    num_cores = 1

    def __init__(self, systematic: float, by_round: float, by_run: float, seed: int = 0) -> None:
        self.errors = (systematic, by_round, by_run)
        self.rng = random.Random(seed)
        self.now = 0.0
        self.of_round = 0.0

    def facts(self) -> dict[str, str | int]:
        return {"device": "Simulated CPU"}

    def set_up(self) -> None:
        pass

    def load(self, network: object, num_copies: int) -> Run:
        self.now += LOADING_SECONDS
        return partial(self._run, self.rng.gauss(0, self.errors[0]))

    def _run(self, systematic: float) -> None:
        error = systematic + self.of_round + self.rng.gauss(0, self.errors[2])
        self.now += TRUE * ANCHOR_SECONDS * math.exp(error)

    def _run_anchor(self) -> None:
        self.now += ANCHOR_SECONDS

    def _scatter(self) -> None:
        self.of_round = self.rng.gauss(0, self.errors[1])

    @property
    def timer(self) -> Timer:
        return Timer(timed_by(lambda: self.now), lambda: self.now, self._scatter)

    def time_alone(self, anchor: Run, make_other: Callable[[], Run], seconds: float) -> list[list[float]]:
        return [[ANCHOR_SECONDS] * 10] * 20

    def time_ratios(
        self, networks: Sequence[Run], anchor: Run, tolerance: float, max_seconds: float, repeatability: Repeatability
    ) -> list[Timing]:
        copies = [[network] for network in networks]
        all_series = time_ratios(copies, [self._run_anchor], tolerance, max_seconds, self.timer, repeatability)
        return [Timing(series, 0.0, None, None) for series in all_series]


def convert(model: object, x: object, dtype: str, num_threads: int) -> object:
    return object()


RUNTIME: Runtime[Any] = Runtime("simulated", backend="none", convert=convert, packages=())


def simulated(host: SimulatedHost, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> PairedTarget:
    """A target on a simulated machine, whose clock counts while it is calibrated."""
    monkeypatch.setattr("search.latency.target.time", SimpleNamespace(perf_counter=lambda: host.now))
    monkeypatch.setattr("search.latency.protocol.no_garbage_collection", nullcontext)  # there is nothing to disturb
    monkeypatch.setattr(PairedTarget, "_model", lambda target, network: nn.Identity())
    return PairedTarget(TargetSettings(**{**vars(SETTINGS), **settings}), RUNTIME, host)


REPEATED = (SMALL, LARGE, Architecture(16, SMALL.stages, patch_size=2, downsample="conv"))


@pytest.mark.parametrize("systematic", [0.001, 0.008, 0.02])
def test_deviation_between_measurements_is_estimated(systematic: float, monkeypatch: pytest.MonkeyPatch) -> None:
    estimates = []
    for seed in range(20):
        target = simulated(SimulatedHost(systematic, 0.5 * systematic, 0.001, seed), monkeypatch, tolerance=1.0)
        repeatability = target.calibrate(SMALL, REPEATED).repeatability
        assert repeatability.num_measurements >= 9
        assert 2 <= repeatability.degrees_of_freedom <= repeatability.num_measurements - len(REPEATED)
        estimates.append(repeatability.deviation)
    assert statistics.median(estimates) == pytest.approx(systematic, rel=0.25)


def test_tolerance_of_one_percent_is_accepted_where_the_target_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU repeats within 0.1 %."""
    target = simulated(SimulatedHost(0.001, 0.0005, 0.0005), monkeypatch, tolerance=0.01)
    calibration = target.calibrate(SMALL, REPEATED)
    assert calibration.repeatability.deviation < 0.002
    assert Calibration.from_dict(calibration.to_dict()) == calibration
    (latency,) = target.time([target.make_ready(target._network(SMALL))], calibration)
    assert latency.converged
    assert latency.half_width <= 0.01


def test_tolerance_is_called_unreachable_where_the_target_does_not_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    target = simulated(SimulatedHost(0.02, 0.01, 0.01), monkeypatch, tolerance=0.01)
    problem = unreachable(0.01, target.calibrate(SMALL, REPEATED).repeatability)
    assert re.match(r"latency\.tolerance=0\.01: .* standard deviation of \d\.\d+% \(\d+ measurements\)", problem)
    assert problem.endswith("or stop other work on the device")
    assert unreachable(1.0, target.calibrate(SMALL, REPEATED).repeatability) == ""


def test_repeatability_is_assumed_where_it_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    host = SimulatedHost(0.0, 0.0, 0.0)
    assert simulated(host, monkeypatch).calibrate(SMALL).repeatability == ASSUMED
    assert simulated(host, monkeypatch, calibration_seconds=1.0).calibrate(SMALL, REPEATED).repeatability == ASSUMED
    with pytest.raises(
        UserError, match=r"standard deviation of 0\.80% \(assumed\), .*; set latency\.tolerance=0\.017 or more$"
    ):
        simulated(host, monkeypatch, tolerance=0.01).calibrate(SMALL)


def test_equal_measurements_leave_the_least_deviation() -> None:
    host = SimulatedHost(0.0, 0.0, 0.0)
    (timing,) = host.time_ratios([partial(host._run, 0.0)], host._run_anchor, 1.0, 0.0, ASSUMED)
    assert estimate_repeatability([[timing.series.within] * 5] * 3) == Repeatability(LEAST_DEVIATION, 12.0, 15)
    assert estimate_repeatability([[timing.series.within] * 2] * 3) == ASSUMED
    assert estimate_repeatability([]) == ASSUMED

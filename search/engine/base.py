"""An engine takes work, has it done somewhere, several pieces at once where it can, and hands back results or errors.

Work is done in lanes: worker processes, each with one thing that it holds, a device's latency target or an accuracy
evaluator, and each doing one piece at a time. So a device is never measured twice at once. Engines differ in where their
lanes are; what goes to which lane, what may go on beside what, time limits and repetitions are common to all and stand here.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future
from concurrent.futures import wait as wait_for_futures
from dataclasses import dataclass
from typing import Any, Protocol

from models.architecture import Architecture, check_int, check_number
from search import SearchStopped, one_line
from search.accuracy.base import AccuracyEvaluator, Progress
from search.engine.work import TRAINING, Calibrate, Fingerprint, Measure, OtherPlace, Prepare, Verified, Work
from search.latency.base import Calibration, Latency, LatencyTarget

log = logging.getLogger(__name__)

HERE = "here"
POLL_SECONDS = 0.25


class EngineFailure(SearchStopped):
    """A worker died or hung, as often as it may. In a trial that is its reason to fail."""


@dataclass(frozen=True)
class Device:
    """A device that latencies are measured on. make_target: makes its target, in whichever process.

    sites: the machine that measures, as far as other work could disturb it, and those where the target computes something
    beside that, as what prepares a network for another machine does. HERE is this one.
    """

    make_target: Callable[[], LatencyTarget]
    sites: tuple[str, ...] = (HERE,)


class Lane(Protocol):
    """A worker that does one thing at a time.

    place: what work it takes. sites: the machine it is on, and others that it computes on, as in Device; none yet while it
    waits for a machine. make: makes what it holds, when it starts. share: of the work in progress that is done, in [0, 1].
    """

    place: str
    make: Callable[[], Any]
    share: float

    @property
    def sites(self) -> tuple[str, ...]: ...

    def start(self, work: Work) -> Future[Any]:
        """The future's exception is a BrokenExecutor if the worker died, else what the work raised."""
        ...

    def restart(self) -> None:
        """Replace a worker that died or hangs."""
        ...

    def seek(self) -> str | None:
        """Go on looking for a machine while work waits. Returns why there is no hope if it has looked for too long."""
        ...

    def close(self) -> None: ...


@dataclass(eq=False)
class Job:
    """A piece of work on its way."""

    work: Work
    lane: Lane | None = None
    future: Future[Any] | None = None
    deadline: float = 0.0
    num_started: int = 0
    value: Any = None
    error: BaseException | None = None
    ended: bool = False

    @property
    def share(self) -> float:
        return self.lane.share if self.lane is not None else 0.0

    def result(self) -> Any:
        """Raises: EngineFailure, or what the work raised."""
        assert self.ended
        if self.error is not None:
            raise self.error
        return self.value


class Engine:
    """Lanes and the work that waits for them.

    num_parallel: trainings at once. num_ahead: trials that are measured meanwhile. measure_timeout_seconds,
    train_timeout_seconds: after so long without an answer work counts as hung and its worker is replaced. max_retries: how
    often work is repeated whose worker died or hung. measure_beside_training: whether a machine may measure while it trains
    or measures for another device too.
    Raises: ValueError naming the setting that makes no sense.
    """

    def __init__(
        self,
        devices: Mapping[str, Device],
        num_parallel: int,
        num_ahead: int | None,
        measure_timeout_seconds: float,
        train_timeout_seconds: float,
        max_retries: int,
        measure_beside_training: bool,
    ) -> None:
        check_int("engine.num_parallel", num_parallel, 1)
        if num_ahead is not None:
            check_int("engine.num_ahead", num_ahead, 0)
        check_number("engine.measure_timeout_seconds", measure_timeout_seconds, 1e-3)
        check_number("engine.train_timeout_seconds", train_timeout_seconds, 1e-3)
        check_int("engine.max_retries", max_retries, 0)
        self.devices = devices
        self.measure_timeout_seconds = measure_timeout_seconds
        self.train_timeout_seconds = train_timeout_seconds
        self.max_retries = max_retries
        self.beside = measure_beside_training
        self.num_parallel = num_parallel
        self.num_ahead = (num_parallel if num_parallel > 1 else 0) if num_ahead is None else num_ahead
        self._expected: dict[str, Mapping[str, str | int]] = {}
        self._verified: list[Lane] = []
        self._lanes: list[Lane] = []
        self._waiting: list[Job] = []
        self._running: list[Job] = []

    def open(self, lanes: Sequence[Lane]) -> None:
        """Take over lanes, of which there is one for each device, and as many for training as are used at once."""
        self._lanes = list(lanes)

    @property
    def num_trials(self) -> int:
        """How many are worth having under way."""
        return self.num_parallel + self.num_ahead

    def fingerprint(self, place: str) -> dict[str, str | int]:
        """Of a device, or of what trains."""
        found: dict[str, str | int] = self.run(Fingerprint(place))
        return found

    def expect(self, place: str, fingerprint: Mapping[str, str | int]) -> None:
        """From now on a worker of this place that has done nothing yet is used only if it has this fingerprint."""
        self._expected[place] = fingerprint

    def calibrate(self, device: str, anchor: Architecture) -> Calibration:
        calibration: Calibration = self.run(Calibrate(device, anchor))
        return calibration

    def measure(self, device: str, architecture: Architecture, calibration: Calibration) -> Latency:
        """Raises: EngineFailure if the measuring process died or hung, else what went wrong in it."""
        latency: Latency = self.run(Measure(device, architecture, calibration))
        return latency

    def prepare(self, seed: int, progress: Progress) -> bytes:
        """What all evaluations with a seed share."""
        packed: bytes = self.run(Prepare(seed), progress)
        return packed

    def train_with(self, make_evaluator: Callable[[], AccuracyEvaluator]) -> None:
        """What trains, from the next worker on that starts."""
        for lane in self._lanes:
            if lane.place == TRAINING:
                lane.make = make_evaluator

    def run(self, work: Work, progress: Progress = lambda share: None) -> Any:
        """Have one thing done while nothing else is under way. Raises: as `Job.result` does."""
        assert not self._running
        assert not self._waiting
        job = self.submit(work)
        while not job.ended:
            self.wait(POLL_SECONDS)
            progress(job.share)
        return job.result()

    def submit(self, work: Work) -> Job:
        """Have something done as soon as a lane is free for it."""
        job = Job(work)
        self._waiting.append(job)
        self._start_waiting()
        return job

    def wait(self, seconds: float) -> list[Job]:
        """What has ended since the last call; waits so long for the first, and may come back with nothing.

        Raises: SearchStopped if what does some of the work now is not what did before, or nothing does it any more.
        """
        now = time.monotonic()
        until = min([now + seconds, *(job.deadline for job in self._running)])
        futures = [job.future for job in self._running if job.future is not None]
        if not futures and self._waiting:  # for a machine
            time.sleep(seconds)
        wait_for_futures(futures, timeout=max(0.0, until - now), return_when=FIRST_COMPLETED)
        ended = [job for job in self._running if self._has_ended(job)]
        self._running = [job for job in self._running if not job.ended and job not in self._waiting]
        self._start_waiting()
        return ended

    def close(self) -> None:
        """All lanes, even if Ctrl-C comes while one of them is closed; trainings, which may be under way, first."""
        with contextlib.ExitStack() as closing:
            for lane in self._lanes:
                closing.callback(lane.close)

    def _start_waiting(self) -> None:
        """First come, first served; what waits for a machine is overtaken by nothing that needs this machine."""
        held_back: set[str] = set()
        for job in list(self._waiting):
            lanes = [lane for lane in self._lanes if lane.place == job.work.place]
            assert lanes, f"nothing here does {job.work}"
            lane = next((lane for lane in lanes if self._may_start(lane, held_back)), None)
            if lane is None:
                held_back |= {lane.sites[0] for lane in lanes if lane.sites}
                reasons = [lane.seek() for lane in lanes]
                if all(reasons):
                    raise SearchStopped(f"{reasons[0]}; mend that and repeat the command")
                continue
            self._waiting.remove(job)
            self._start(job, lane)

    def _may_start(self, lane: Lane, held_back: set[str]) -> bool:
        busy = [job.lane for job in self._running if job.lane is not None]
        if lane in busy or not lane.sites:
            return False
        if self.beside:
            return True
        return held_back.isdisjoint(lane.sites) and not any(disturb(lane, other) for other in busy)

    def _start(self, job: Job, lane: Lane) -> None:
        job.lane, job.deadline = lane, time.monotonic() + self._timeout(lane)
        job.num_started += 1
        work = job.work
        if lane not in self._verified and lane.place in self._expected:
            work = Verified(work, self._expected[lane.place])
        try:
            job.future = lane.start(work)
        except (BrokenExecutor, OSError, EOFError) as error:  # a worker that died since its last work, or cannot be started
            job.future = Future()
            job.future.set_exception(BrokenExecutor(one_line(error)))
        self._running.append(job)

    def _timeout(self, lane: Lane) -> float:
        return self.train_timeout_seconds if lane.place == TRAINING else self.measure_timeout_seconds

    def _has_ended(self, job: Job) -> bool:
        """Take what has come of a job. One whose worker died or hung waits again, as often as it may."""
        assert job.future is not None
        assert job.lane is not None
        what = "training" if job.lane.place == TRAINING else "measuring"
        if job.future.done():
            job.error = job.future.exception()
            if isinstance(job.error, BrokenExecutor):
                return self._replace(job, job.lane, f"the {what} process died (out of memory?)")
            if isinstance(job.error, OtherPlace):
                raise job.error
            if job.error is None:
                job.value = job.future.result()
                if job.lane.place in self._expected and job.lane not in self._verified:
                    self._verified.append(job.lane)
            job.ended = True
        elif time.monotonic() >= job.deadline:
            return self._replace(job, job.lane, f"the {what} process gave no answer within {self._timeout(job.lane):g} s")
        return job.ended

    def _replace(self, job: Job, lane: Lane, reason: str) -> bool:
        if lane in self._verified:
            self._verified.remove(lane)
        lane.restart()
        job.ended = job.num_started > self.max_retries
        if job.ended:
            job.error = EngineFailure(f"{reason}, {job.num_started} times" if job.num_started > 1 else reason)
            log.warning("%s", job.error)
        else:
            job.lane, job.future, job.error = None, None, None
            log.warning(
                "%s; it was replaced, and the work is repeated (%d of %d)", reason, job.num_started, self.max_retries
            )
            self._waiting.insert(0, job)
        return job.ended


def disturb(one: Lane, other: Lane) -> bool:
    """Whether one of them measures where the other one computes."""
    return any(
        measuring.place != TRAINING and measuring.sites[0] in computing.sites
        for measuring, computing in ((one, other), (other, one))
    )

"""An engine of workers: who does which task, what may run beside what, time limits and retries.

Each worker is a process with one resource, a latency target or an accuracy evaluator, and does one task at a time; so a
target is never measured twice at a time. Engines differ in where their workers are (local.py, ray.py); everything else is
here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Protocol

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt

from models.architecture import Architecture, check_int, check_number
from search import SearchStopped, one_line
from search.accuracy.base import Accuracy, AccuracyEvaluator, Progress
from search.engine import tasks
from search.engine.base import TRAINING, EngineFailure, Fingerprint
from search.engine.hosts import HostLock
from search.engine.tasks import Resource, Task
from search.latency.base import Calibration, Latency

log = logging.getLogger(__name__)
POLL_SECONDS = 0.25


class Worker(Protocol):
    """A process that does one task at a time with its resource.

    Attributes:
        role: the target that it measures, or `TRAINING`.
        make: makes its resource, when it starts.
        report: takes the progress of what it does now.
        task: what it does now or did last.
    """

    role: str
    make: Callable[[], Resource]
    report: Progress
    task: Future[Any] | None

    @property
    def hosts(self) -> tuple[str, ...]:
        """As in `TargetSource`; empty while the worker waits for a machine."""
        ...

    @property
    def executor(self) -> Executor:
        """Runs one function at a time in the process, which is started if there is none.

        Raises: BrokenExecutor, OSError or EOFError if it cannot be started.
        """
        ...

    def restart(self) -> None:
        """Replace a process that died or hangs."""
        ...

    def seek_host(self) -> str | None:
        """Look further for a machine. Returns why there is no hope of one."""
        ...

    def close(self) -> None:
        """End the process."""
        ...


class WorkerLost(Exception):
    """A worker died or hung while it did a task."""


class WorkerEngine:
    """Implements `Engine` with workers.

    Args:
        num_parallel: trainings at a time.
        num_ahead: trials that are measured meanwhile; None for as many, or none if that is one.
        measure_timeout_seconds, train_timeout_seconds: after so long without an answer a worker counts as hung.
        max_retries: how often a task is retried whose worker died or hung.
        measure_beside_training: whether a host may measure while it trains, or measures for another target.

    Raises:
        ValueError: naming the setting that makes no sense.
    """

    def __init__(
        self,
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
        self.measure_timeout_seconds = measure_timeout_seconds
        self.train_timeout_seconds = train_timeout_seconds
        self.max_retries = max_retries
        self.measure_beside_training = measure_beside_training
        self.num_parallel = num_parallel
        self.num_ahead = (num_parallel if num_parallel > 1 else 0) if num_ahead is None else num_ahead
        self.workers: list[Worker] = []
        self._busy: list[Worker] = []
        self._checked: list[Worker] = []
        self._expected: dict[str, Fingerprint] = {}
        self._turns: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)  # to take a worker of a role
        self._released: dict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._locks: dict[str, HostLock] = defaultdict(HostLock)

    @property
    def num_trials(self) -> int:
        return self.num_parallel + self.num_ahead

    async def fingerprint(self, role: str) -> Fingerprint:
        result: Fingerprint = await self._run(role, tasks.fingerprint)
        return result

    def expect(self, role: str, fingerprint: Fingerprint) -> None:
        self._expected[role] = fingerprint

    async def calibrate(self, target: str, anchor: Architecture, repeated: Sequence[Architecture] = ()) -> Calibration:
        calibration: Calibration = await self._run(target, partial(tasks.calibrate, anchor=anchor, repeated=repeated))
        return calibration

    async def measure(self, target: str, architecture: Architecture, calibration: Calibration) -> Latency:
        task = partial(tasks.measure, architecture=architecture, calibration=calibration)
        latency: Latency = await self._run(target, task)
        return latency

    async def train(
        self, architecture: Architecture, seed: int, progress: Progress, num_epochs: int | None = None
    ) -> Accuracy:
        task = partial(tasks.train, architecture=architecture, seed=seed, num_epochs=num_epochs)
        accuracy: Accuracy = await self._run(TRAINING, task, progress)
        return accuracy

    async def train_shared_weights(self, seed: int, progress: Progress) -> bytes:
        packed: bytes = await self._run(TRAINING, partial(tasks.train_shared_weights, seed=seed), progress)
        return packed

    def use_evaluator(self, make_evaluator: Callable[[], AccuracyEvaluator]) -> None:
        for worker in self.workers:
            if worker.role == TRAINING:
                worker.make = make_evaluator

    def close(self) -> None:
        """End all workers, even if Ctrl-C comes while one of them ends; trainings, which may be running, first."""
        with contextlib.ExitStack() as closing:
            for worker in self.workers:
                closing.callback(worker.close)

    async def _run(self, role: str, task: Task, progress: Progress = lambda share: None) -> Any:
        """Have a task done. Raises: EngineFailure, WorkerChanged, SearchStopped, or what the task raised."""
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(WorkerLost),
            stop=stop_after_attempt(1 + self.max_retries),
            before_sleep=self._log_retry,
            reraise=True,
        )
        try:
            return await retrying(self._attempt, role, task, progress)
        except WorkerLost as lost:
            times = retrying.statistics["attempt_number"]
            failure = EngineFailure(f"{lost}, {times} times" if times > 1 else str(lost))
            log.warning("%s", failure)
            raise failure from None

    async def _attempt(self, role: str, task: Task, progress: Progress) -> Any:
        async with self._idle_worker(role) as worker, self._hosts_of(worker):
            expected = self._expected.get(role)
            if expected is not None and worker not in self._checked:
                task = partial(tasks.checked, task=task, role=role, expected=expected)
            result = await self._run_in_time(worker, task, progress)
            if expected is not None and worker not in self._checked:
                self._checked.append(worker)
            return result

    async def _run_in_time(self, worker: Worker, task: Task, progress: Progress) -> Any:
        """Raises: WorkerLost if the worker dies or hangs; it is replaced."""
        is_training = worker.role == TRAINING
        process = f"the {'training' if is_training else 'measuring'} process"
        seconds = self.train_timeout_seconds if is_training else self.measure_timeout_seconds
        loop, is_running = asyncio.get_running_loop(), True

        def report(share: float) -> None:
            if is_running:  # a report may come after the result
                progress(share)

        def report_from_thread(share: float) -> None:
            loop.call_soon_threadsafe(report, share)

        worker.report = report_from_thread
        try:
            async with asyncio.timeout(seconds) as limit:
                return await asyncio.wrap_future(_submit(worker, task))
        except TimeoutError:
            if not limit.expired():  # the task's own
                raise
            reason = f"{process} gave no answer within {seconds:g} s"
        except BrokenExecutor:
            reason = f"{process} died (out of memory?)"
        finally:
            is_running = False
        self._forget(worker)
        worker.restart()
        raise WorkerLost(reason)

    def _forget(self, worker: Worker) -> None:
        """Check the fingerprint of a worker anew."""
        if worker in self._checked:
            self._checked.remove(worker)

    @asynccontextmanager
    async def _idle_worker(self, role: str) -> AsyncIterator[Worker]:
        """A worker that does nothing else; first come, first served. Raises: SearchStopped if there is no hope of one."""
        async with self._turns[role]:
            worker = await self._take(role)
        try:
            yield worker
        finally:
            self._busy.remove(worker)
            self._released[role].set()

    async def _take(self, role: str) -> Worker:
        workers = [worker for worker in self.workers if worker.role == role]
        assert workers, f"no worker for {role}"
        while True:
            self._released[role].clear()
            for worker in workers:
                if worker not in self._busy and worker.hosts:
                    self._busy.append(worker)
                    return worker
            reasons = [worker.seek_host() for worker in workers]
            if all(reasons):
                raise SearchStopped(f"{reasons[0]}; fix this and run the command again")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._released[role].wait(), POLL_SECONDS)

    @asynccontextmanager
    async def _hosts_of(self, worker: Worker) -> AsyncIterator[None]:
        """Hold the hosts that a worker computes on: the one that measures alone, others together with trainings."""
        async with contextlib.AsyncExitStack() as stack:
            if not self.measure_beside_training:
                for host in sorted(set(worker.hosts)):  # in one order, so that nobody waits in a circle
                    measures = worker.role != TRAINING and host == worker.hosts[0]
                    await stack.enter_async_context(self._locks[host].acquire(exclusive=measures))
            yield

    def _log_retry(self, state: RetryCallState) -> None:
        assert state.outcome is not None
        reason, attempt = state.outcome.exception(), state.attempt_number
        log.warning("%s; it was replaced, and its task is retried (%d of %d)", reason, attempt, self.max_retries)


def _submit(worker: Worker, task: Task) -> Future[Any]:
    """Raises: BrokenExecutor if the process died since its last task, or cannot be started."""
    try:
        worker.task = worker.executor.submit(tasks.run_task, task)
    except (OSError, EOFError) as error:
        raise BrokenExecutor(one_line(error)) from error
    return worker.task

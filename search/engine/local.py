"""Workers on this machine: a process for each latency target, and one for each training that may run at a time."""

from __future__ import annotations

import atexit
import gc
import logging
import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from logging.handlers import QueueHandler
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from typing import Any

from models.architecture import check_int
from search import one_line
from search.accuracy.base import AccuracyEvaluator, Progress
from search.engine.base import HERE, TRAINING, TargetSource
from search.engine.tasks import Resource, set_up_process
from search.engine.workers import WorkerEngine
from search.latency.machine import allowed_cores
from search.training.processes import end_with_parent

log = logging.getLogger(__name__)
GRACE_SECONDS = 2.0  # for a process to end by itself
# Processes come from a server that has imported what most of them need, so that only the first one takes seconds to start.
START_METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
PRELOADED = ["search.engine.local", "search.accuracy.supernet", "search.latency.cpu"]


def start_server() -> None:
    """Let the server of processes import what they need, while this process does so too."""
    if START_METHOD == "forkserver":
        multiprocessing.set_forkserver_preload(PRELOADED)
        with _ignoring_ctrl_c(), _importing_as_here():
            forkserver.ensure_running()


class LocalEngine(WorkerEngine):
    """Measure and train on this machine, in turns unless told otherwise.

    Args:
        targets: latency targets by name.
        make_evaluator: makes the accuracy evaluator, in another process.
        num_threads: what a training may use, to check that there are cores for all that run at a time; None for PyTorch's
            own choice.
        settings: of `WorkerEngine`.

    Raises:
        ValueError: if there are more trainings than cores.
    """

    def __init__(
        self,
        targets: Mapping[str, TargetSource],
        make_evaluator: Callable[[], AccuracyEvaluator],
        num_threads: int | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        check_cores(self.num_parallel, num_threads, len(allowed_cores()))
        self.workers = [ProcessWorker(name, source.hosts, source.make) for name, source in targets.items()]
        self.workers += [ProcessWorker(TRAINING, (HERE,), make_evaluator) for _ in range(self.num_parallel)]


def check_cores(num_parallel: int, num_threads: int | None, num_cores: int) -> None:
    """Raises: ValueError if trainings at a time would wait for each other."""
    check_int("engine.num_parallel", num_parallel, 1)
    if num_parallel == 1:
        return
    if num_threads is None:
        raise ValueError(
            f"engine.num_parallel={num_parallel} needs accuracy.num_threads: how many of the {num_cores} cores each takes"
        )
    if num_parallel * num_threads > num_cores:
        raise ValueError(
            f"engine.num_parallel={num_parallel} trainings of accuracy.num_threads={num_threads} are more than the "
            f"{num_cores} cores here; lower one of them"
        )


class ProcessWorker:
    """A process that starts when it is first needed and does nothing but the tasks of its role.

    So no thread setting of one role reaches another. Its log records are handled here.
    """

    def __init__(self, role: str, hosts: tuple[str, ...], make: Callable[[], Resource]) -> None:
        self.role = role
        self.hosts = hosts
        self.make = make
        self.report: Progress = lambda share: None
        self.task: Future[Any] | None = None
        self._pool: ProcessPoolExecutor | None = None

    @property
    def executor(self) -> ProcessPoolExecutor:
        if self._pool is None:
            self._pool = self._start()
        return self._pool

    def _start(self) -> ProcessPoolExecutor:
        start_server()
        context = multiprocessing.get_context(START_METHOD)
        make = pickle.dumps(self.make)  # here, where an error is seen; and copied, not moved to shared memory
        receiving, sending = context.Pipe(duplex=False)
        pool = ProcessPoolExecutor(1, context, initializer=_prepare_process, initargs=(sending,))
        pool.submit(_set_up, make)
        log.debug("process %s is for %s", *(pool._processes or {}), self.role)
        sending.close()  # the process has its own end: when it closes, nothing more is received
        threading.Thread(target=self._listen, args=(receiving,), daemon=True).start()
        return pool

    def _listen(self, receiving: Connection) -> None:
        while True:
            try:
                message = receiving.recv()
            except (EOFError, OSError):  # the process has ended, maybe in the middle of a message
                return
            except Exception as error:
                log.debug("a message of the process for %s cannot be read: %s", self.role, one_line(error))
                continue
            if isinstance(message, logging.LogRecord):
                logging.getLogger(message.name).handle(message)
                continue
            try:
                self.report(float(message))
            except RuntimeError:  # the event loop is closed: the command ends
                return

    def restart(self) -> None:
        self.close()  # the next task starts another process

    def seek_host(self) -> str | None:
        return None

    def close(self) -> None:
        if self._pool is None:
            return
        is_busy = self.task is not None and not self.task.done()
        processes = list((self._pool._processes or {}).values())
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._pool = None
        for process in processes:
            try:
                if not is_busy:  # one that is busy would not notice
                    process.join(GRACE_SECONDS)  # compilers have semaphores to give back
            finally:
                process.kill()  # it holds nothing worth saving
            process.join(GRACE_SECONDS)


@contextmanager
def _ignoring_ctrl_c() -> Iterator[None]:
    """Make a server of processes that starts meanwhile ignore Ctrl-C for good."""
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


@contextmanager
def _importing_as_here() -> Iterator[None]:
    """Keep a server of processes from importing from the current folder, unless this process does so.

    Python puts the current folder first for `python -c`, which starts the server: there may be another `models` in it.
    """
    setting = "PYTHONSAFEPATH"
    before = os.environ.get(setting)
    if not {"", os.getcwd()} & set(sys.path):  # noqa: PTH109 - entries of the path are strings
        os.environ[setting] = "1"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(setting, None)


class _ToCoordinator(QueueHandler):
    """Sends log records to the coordinator."""

    def enqueue(self, record: logging.LogRecord) -> None:
        _send(record)


_connection: Connection  # of a worker's process to the coordinator
_sending = threading.Lock()


def _send(message: logging.LogRecord | float) -> None:
    with _sending:
        _connection.send(message)


def _prepare_process(connection: Connection) -> None:
    global _connection
    _connection = connection
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the coordinator, which ends this process
    logging.getLogger().addHandler(_ToCoordinator(None))  # type: ignore[arg-type]  # it has a connection instead of a queue
    logging.getLogger("search").setLevel(logging.DEBUG)
    end_with_parent()


def _set_up(make: bytes) -> None:
    set_up_process(lambda: pickle.loads(make)(), _send)
    gc.collect()
    gc.freeze()  # imported modules stay: scanning them twice would take a fifth of a measurement
    atexit.register(gc.unfreeze)  # or extensions report what was frozen as leaks

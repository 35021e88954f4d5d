"""This machine: a process for each device that is measured, and one for each training that may go on at a time."""

from __future__ import annotations

import atexit
import gc
import logging
import multiprocessing
import os
import pickle
import signal
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
from search.accuracy.base import AccuracyEvaluator
from search.engine.base import HERE, Device, Engine
from search.engine.work import TRAINING, Work, carried_out, made
from search.latency.machine import allowed_cores

log = logging.getLogger(__name__)
GRACE_SECONDS = 2.0  # for a process to end by itself
# Processes come from a server that has imported what most of them need, so that only the first one takes seconds to start.
START_METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
PRELOADED = ["search.accuracy.supernet", "search.latency.cpu"]


def start_server() -> None:
    """Let the server of processes import what they need, while this one does so too."""
    if START_METHOD == "forkserver":
        multiprocessing.set_forkserver_preload(PRELOADED)
        with _ignoring_ctrl_c():
            forkserver.ensure_running()


class LocalEngine(Engine):
    """Measure and train on this machine, in turns unless told otherwise.

    num_threads: what a training may use, to see that there are cores for all that go on at once; None for those that PyTorch
    takes. The rest as in Engine. Raises: ValueError if there are more trainings than cores.
    """

    def __init__(
        self,
        devices: Mapping[str, Device],
        make_evaluator: Callable[[], AccuracyEvaluator],
        num_threads: int | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(devices, **settings)
        check_cores(self.num_parallel, num_threads, len(allowed_cores()))
        measuring = [ProcessLane(name, device.sites, device.make_target) for name, device in devices.items()]
        training = [ProcessLane(TRAINING, (HERE,), make_evaluator) for _ in range(self.num_parallel)]
        self.open([*measuring, *training])


def check_cores(num_parallel: int, num_threads: int | None, num_cores: int) -> None:
    """Raises: ValueError if trainings at once would wait for each other."""
    check_int("engine.num_parallel", num_parallel, 1)
    if num_parallel == 1:
        return
    if num_threads is None:
        raise ValueError(
            f"engine.num_parallel={num_parallel} needs accuracy.num_threads: how many of the {num_cores} cores each"
        )
    if num_parallel * num_threads > num_cores:
        raise ValueError(
            f"engine.num_parallel={num_parallel} trainings of accuracy.num_threads={num_threads} are more than the "
            f"{num_cores} cores here; lower one of them"
        )


class ProcessLane:
    """A process that is started when it is first needed, and does nothing but what the lane is for.

    So no thread setting of one reaches another. make: makes what it holds, there. What it logs is logged here.
    """

    def __init__(self, place: str, sites: tuple[str, ...], make: Callable[[], Any]) -> None:
        self.place = place
        self.sites = sites
        self.make = make
        self.share = 0.0
        self._pool: ProcessPoolExecutor | None = None
        self._work: Future[Any] | None = None

    def start(self, work: Work) -> Future[Any]:
        self.share = 0.0
        if self._pool is None:
            self._pool = self._started()
        self._work = self._pool.submit(_do, work)
        return self._work

    def _started(self) -> ProcessPoolExecutor:
        start_server()
        context = multiprocessing.get_context(START_METHOD)
        held = pickle.dumps(self.make)  # here, where an error is seen; and copied, not moved to shared memory
        heard, told = context.Pipe(duplex=False)
        pool = ProcessPoolExecutor(1, context, initializer=_prepare_process, initargs=(told,))
        pool.submit(_hold, held)
        log.debug("process %s is for %s", *(pool._processes or {}), self.place)
        told.close()  # the process has its own, whose end is then the end of what is heard
        threading.Thread(target=self._listen, args=(heard,), daemon=True).start()
        return pool

    def _listen(self, heard: Connection) -> None:
        while True:
            try:
                told = heard.recv()
            except (EOFError, OSError):  # the process has ended, maybe in the middle of a word
                return
            except Exception as error:
                log.debug("a message of the process for %s cannot be read: %s", self.place, one_line(error))
                continue
            if isinstance(told, logging.LogRecord):
                logging.getLogger(told.name).handle(told)
            else:
                self.share = float(told)

    def restart(self) -> None:
        self.close()  # the next work starts another

    def seek(self) -> str | None:
        return None

    def close(self) -> None:
        if self._pool is None:
            return
        is_busy = self._work is not None and not self._work.done()
        processes = list((self._pool._processes or {}).values())
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._pool = None
        for process in processes:
            try:
                if not is_busy:  # what is in the middle of something would not hear of it
                    process.join(GRACE_SECONDS)  # compilers have semaphores to give back
            finally:
                process.kill()  # it holds nothing worth saving
            process.join(GRACE_SECONDS)


@contextmanager
def _ignoring_ctrl_c() -> Iterator[None]:
    """A server of processes that is started meanwhile ignores Ctrl-C for good."""
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


class _Tell(QueueHandler):
    """Sends what is logged to the coordinator."""

    def enqueue(self, record: logging.LogRecord) -> None:
        _say(record)


_held: Any
_told: Connection
_telling = threading.Lock()


def _say(message: logging.LogRecord | float) -> None:
    with _telling:
        _told.send(message)


def _prepare_process(told: Connection) -> None:
    global _told
    _told = told
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the coordinator, which ends this process
    logging.getLogger().addHandler(_Tell(None))  # type: ignore[arg-type]  # it has a connection for a queue
    logging.getLogger("search").setLevel(logging.DEBUG)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _hold(make: bytes) -> None:
    global _held
    _held = made(lambda: pickle.loads(make)())
    gc.collect()
    gc.freeze()  # what was imported stays: going through it twice would take a fifth of a measurement
    atexit.register(gc.unfreeze)  # or extensions report what was frozen as leaks


def _do(work: Work) -> Any:
    return carried_out(work, _held, _say)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()  # returns even if the coordinator was killed
    os._exit(1)

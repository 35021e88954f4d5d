"""Several processes that train one network together, each on a device of its own.

Every process does the same training on batches of its own, and averages its gradients with the others' before each step. So
all have the same weights after each step. Lightning's strategies are not used here: they start the command again or read
the gradients of one backward pass alone, and a step of a supernet has several.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import tempfile
import threading
from collections.abc import Callable, Iterable
from logging.handlers import QueueHandler
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch import Tensor, distributed
from torch.multiprocessing.spawn import ProcessException, start_processes

from search import SearchStopped, UserError
from search.training.progress import Progress

POLL_SECONDS = 0.1


def world_size_and_rank() -> tuple[int, int]:
    """Return the number of processes that train together, and the number of this one."""
    ready = distributed.is_available() and distributed.is_initialized()
    return (distributed.get_world_size(), distributed.get_rank()) if ready else (1, 0)


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace gradients by their mean over the processes that train together; all of them have the same ones."""
    world_size, _ = world_size_and_rank()
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if world_size == 1 or not gradients:
        return
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    flat /= world_size
    start = 0
    for gradient in gradients:
        gradient.copy_(flat[start : start + gradient.numel()].view_as(gradient))
        start += gradient.numel()


def train_together(train: Callable[[Progress], None], num_processes: int, backend: str, progress: Progress) -> None:
    """Call a function in several processes that see each other through `torch.distributed`, and wait for all of them.

    Args:
        train: Can be pickled; takes where its progress goes.
        num_processes: Number of processes.
        backend: Of `torch.distributed`.
        progress: Gets the progress of the first process, whose log is handled here.

    Raises:
        UserError: What the function raised in one of them.
        SearchStopped: If one of them died.
    """
    receiving, sending = multiprocessing.get_context("spawn").Pipe(duplex=False)
    with tempfile.TemporaryDirectory() as folder:
        arguments = (train, num_processes, backend, str(Path(folder) / "store"), sending)
        started = start_processes(_run, arguments, num_processes, join=False, daemon=True)  # type: ignore[no-untyped-call]
        assert started is not None
        try:
            while not started.join(POLL_SECONDS):
                _pass_on(receiving, progress)
            _pass_on(receiving, progress)
        except ProcessException as error:
            _pass_on(receiving, progress)
            raise SearchStopped(f"a process that trains with others died ({error.msg.strip().splitlines()[-1]})") from error
        finally:
            for process in started.processes:
                process.kill()


def _pass_on(receiving: Connection, progress: Progress) -> None:
    """Report the progress that has come. Raises: an error that has come."""
    while receiving.poll():
        message = receiving.recv()
        if isinstance(message, Exception):
            raise message
        if isinstance(message, logging.LogRecord):
            logging.getLogger(message.name).handle(message)
        else:
            progress(message)


class _ToParent(QueueHandler):
    """Sends log records to the process that waits."""

    def __init__(self, sending: Connection) -> None:
        super().__init__(sending)  # type: ignore[arg-type]  # a connection instead of a queue

    def enqueue(self, record: logging.LogRecord) -> None:
        self.queue.send(record)  # type: ignore[attr-defined]


def _run(
    rank: int, train: Callable[[Progress], None], num_processes: int, backend: str, store: str, sending: Connection
) -> None:
    """Train in one of the processes."""
    end_with_parent()
    if rank == 0:
        logging.getLogger().addHandler(_ToParent(sending))
        logging.getLogger("search").setLevel(logging.DEBUG)
    distributed.init_process_group(backend, init_method=f"file://{store}", world_size=num_processes, rank=rank)
    try:
        train(sending.send if rank == 0 else lambda share: None)
    except UserError as error:
        sending.send(error)
        raise
    distributed.destroy_process_group()


def end_with_parent() -> None:
    """End this process when the one that started it ends, even if that is killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()

"""latency=executorch: ExecuTorch, as on phones and ARM boards, on this machine's CPU (https://docs.pytorch.org/executorch).

Layers are computed by XNNPACK, what it does not have by ExecuTorch's own portable kernels.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from search.latency.local import local_target
from search.latency.protocol import Run
from search.latency.runtime import PYTORCH, ConversionError, Converted, Runtime, check_parity
from search.latency.target import PairedTarget, TargetSettings

_has_pool = False  # whether this process has its pool of threads


def executorch_target(**settings: Any) -> PairedTarget:
    """Build the target. settings: the fields of `TargetSettings`."""
    return local_target(RUNTIME, TargetSettings(**settings))


def convert(model: nn.Module, x: Tensor, dtype: str, num_threads: int) -> Converted:
    try:
        content = file_of(model, x)
        output = open_file(content, num_threads)(x)
    except Exception as error:  # whatever torch.export or ExecuTorch raises
        raise ConversionError(f"ExecuTorch cannot take this model: {error}") from error

    def load() -> Run:
        run, inputs = open_file(content, num_threads), x.clone()
        return lambda: run(inputs)

    return Converted(load, check_parity(RUNTIME.name, model, x, output, dtype), len(content))


def file_of(model: nn.Module, x: Tensor) -> bytes:
    """Return the content of a .pte file.

    Args:
        model: In evaluation mode.
        x: Inputs of the shape that the file is for, (B, C, H, W).
    """
    with quiet():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        with torch.no_grad():
            program = torch.export.export(model, (x,))
        lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
        return bytes(lowered.to_executorch().buffer)


def open_file(content: bytes, num_threads: int) -> Callable[[Tensor], Tensor]:
    """Load a .pte file.

    All files of a process run on as many threads as the first one was opened with: what is loaded keeps the pool of threads
    that it found, so another one must not take its place.
    """
    with quiet():
        from executorch.runtime import Runtime as Executorch

        set_up_threads(num_threads)
        program = Executorch.get().load_program(content)
    method = program.load_method("forward")

    def run(x: Tensor, program: object = program) -> Tensor:  # which its methods need
        output: Tensor = method.execute([x])[0]
        return output

    return run


def set_up_threads(num_threads: int) -> None:
    """Make the pool of threads of this process, at the first call alone."""
    global _has_pool
    from executorch.extension.pybindings import portable_lib

    if not _has_pool:
        portable_lib._unsafe_reset_threadpool(num_threads)
    _has_pool = True


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Leave out what ExecuTorch says about itself: that it is experimental, and each step of a conversion."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


RUNTIME = Runtime(
    "executorch",
    backend="executorch, XNNPACK",
    convert=convert,
    packages=(*PYTORCH, "executorch"),
    extra="executorch",
)

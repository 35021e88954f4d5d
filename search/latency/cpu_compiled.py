"""latency=cpu_compiled: torch.compile with frozen weights on this machine's CPU.

Compiling takes 20 s for a small network and over a minute for LITv2-S on two cores; it is reported as `prepare_seconds`.
"""

from __future__ import annotations

import itertools
import shutil
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from search.latency.local import local_target
from search.latency.runtime import ConversionError, Converted, Runtime, check_parity
from search.latency.target import PairedTarget, TargetSettings


def compiled_cpu_target(**settings: Any) -> PairedTarget:
    """Build the target. settings: the fields of `TargetSettings`.

    Raises:
        ValueError: If there is no C++ compiler, or as `local_target`.
    """
    if not any(map(shutil.which, ("g++", "clang++", "cl"))):
        raise ValueError("latency=cpu_compiled needs a C++ compiler (g++ or clang++): install one or choose latency=cpu")
    return local_target(RUNTIME, TargetSettings(**settings))


def convert(model: nn.Module, x: Tensor, dtype: str, num_threads: int) -> Converted:
    try:
        run = compile_frozen(model, x)
    except Exception as error:  # whatever the compiler raises
        raise ConversionError(f"torch.compile cannot take this model: {error}") from error
    return Converted(lambda: run, check_parity(RUNTIME.name, model, x, run(), dtype))


def compile_frozen(model: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    """Compile a model with its weights frozen in.

    Returns:
        A run of the compiled model on x.

    Raises:
        Exception: Whatever the compiler raises.
    """
    import torch._inductor.config as inductor

    compiled = torch.compile(with_separate_code(model), fullgraph=True, dynamic=False)

    def run() -> Tensor:
        with torch.no_grad():
            output: Tensor = compiled(x)
            return output

    with inductor.patch(freezing=True):
        run()
    return run


def with_separate_code(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Wrap a model in a function with a code object that no other model shares.

    torch.compile caches graphs by code object, eight at most: networks of one class would evict each other, and the anchor.
    """

    def forward(x: Tensor) -> Tensor:
        output: Tensor = model(x)
        return output

    code = forward.__code__.replace(co_name=f"forward_{next(_numbers)}")
    return types.FunctionType(code, forward.__globals__, closure=forward.__closure__)


_numbers = itertools.count()
RUNTIME = Runtime(  # a copy would be compiled again, so there is one
    "cpu_compiled", backend="torch.compile, inductor, freezing", convert=convert, loads_copies=False
)

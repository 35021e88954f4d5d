"""This machine's CPU, networks compiled by torch.compile with their weights frozen in.

Compiling takes 20 s for a small network and over a minute for LITv2-S on two cores; it is reported as `prepare_seconds`.
"""

from __future__ import annotations

import itertools
import shutil
import types
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from search.latency.protocol import Run
from search.latency.target import ConversionError, PairedTarget, Prepared, check_parity


@dataclass
class CompiledCpuTarget(PairedTarget):
    """Networks compiled by inductor."""

    name = "cpu_compiled"
    backend = "torch.compile, inductor, freezing"
    loads_copies = False  # each copy would be compiled anew

    def __post_init__(self) -> None:
        super().__post_init__()
        if not any(map(shutil.which, ("g++", "clang++", "cl"))):
            raise ValueError("latency=cpu_compiled needs a C++ compiler (g++ or clang++): install one or choose latency=cpu")

    def prepare(self, model: nn.Module, x: Tensor) -> Prepared:
        try:
            run = compile_frozen(model, x)
        except Exception as error:
            raise ConversionError(f"torch.compile cannot take this model: {error}") from error
        return Prepared(lambda: run, check_parity(self.name, model, x, run(), self.dtype))

    def peak_bytes(self, load: Callable[[], Run]) -> tuple[Run, int | None]:
        return load(), None  # compiling has left its own memory behind


def compile_frozen(model: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    """Compile a model with its weights frozen in. Returns what runs it on x. Raises: whatever the compiler raises."""
    import torch._inductor.config as inductor

    compiled = torch.compile(with_own_code(model), fullgraph=True, dynamic=False)

    def run() -> Tensor:
        with torch.no_grad():
            output: Tensor = compiled(x)
            return output

    with inductor.patch(freezing=True):
        run()
    return run


def with_own_code(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """A model behind a function whose code is no other's.

    Compiled graphs are kept by code object, eight at most: networks of one class would push each other out, the anchor too.
    """

    def forward(x: Tensor) -> Tensor:
        output: Tensor = model(x)
        return output

    code = forward.__code__.replace(co_name=f"forward_{next(_names)}")
    return types.FunctionType(code, forward.__globals__, closure=forward.__closure__)


_names = itertools.count()

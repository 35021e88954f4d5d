"""This machine's CPU, networks compiled by torch.compile with their weights frozen in.

Compiling takes 20 s for a small network and over a minute for LITv2-S on two cores; it is reported as `prepare_seconds`.
"""

from __future__ import annotations

import shutil
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
        import torch._inductor.config as inductor

        torch.compiler.reset()  # or graphs of earlier networks pile up, and past eight of them nothing is compiled any more
        compiled = torch.compile(model, fullgraph=True, dynamic=False)
        try:
            with inductor.patch(freezing=True), torch.no_grad():
                output = compiled(x)
        except Exception as error:
            raise ConversionError(f"torch.compile cannot take this model: {error}") from error
        parity = check_parity(self.name, model, x, output, self.dtype)

        def run() -> Tensor:
            with torch.no_grad():  # as it was compiled
                result: Tensor = compiled(x)
                return result

        return Prepared(lambda: run, parity)

    def peak_bytes(self, load: Callable[[], Run]) -> tuple[Run, int | None]:
        return load(), None  # compiling has left its own memory behind

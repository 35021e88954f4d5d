"""This machine's CPU, PyTorch in eager mode."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from search.latency.target import DTYPES, PairedTarget, Prepared, eager_copy


@dataclass
class CpuTarget(PairedTarget):
    """Networks run by PyTorch itself, one operation after the other."""

    name = "cpu"
    backend = "torch eager"
    dtypes = ("float32", "bfloat16")

    def prepare(self, model: nn.Module, x: Tensor) -> Prepared:
        return Prepared(partial(eager_copy, model, x, DTYPES[self.dtype]))

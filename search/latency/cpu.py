"""latency=cpu: PyTorch in eager mode on this machine's CPU."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn

from search.latency.local import local_target
from search.latency.runtime import DTYPES, Converted, Runtime, eager_copy
from search.latency.target import PairedTarget, TargetSettings


def cpu_target(**settings: Any) -> PairedTarget:
    """Build the target. settings: the fields of `TargetSettings`."""
    return local_target(RUNTIME, TargetSettings(**settings))


def convert(model: nn.Module, x: Tensor, dtype: str, num_threads: int) -> Converted:
    return Converted(partial(eager_copy, model, x, DTYPES[dtype]))


RUNTIME = Runtime("cpu", backend="torch eager", convert=convert, dtypes=("float32", "bfloat16"), autotunes=True)

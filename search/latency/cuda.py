"""latency=cuda: PyTorch on an NVIDIA GPU, in eager mode or as a CUDA graph, timed by CUDA events."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from search.latency.local import local_target
from search.latency.protocol import Run, Timer
from search.latency.runtime import DTYPES, Converted, Runtime, check_parity, eager_copy
from search.latency.target import PairedTarget, TargetSettings

WARMUP_RUNS = 3  # before a CUDA graph is captured: https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs


def cuda_target(cuda_graph: bool = False, **settings: Any) -> PairedTarget:
    """Build the target.

    Args:
        cuda_graph: Capture a run once and replay it, without the launch time of each kernel.
        settings: The fields of `TargetSettings`.

    Raises:
        ValueError: If PyTorch has no GPU, or as `local_target`.
    """
    if not torch.cuda.is_available():
        raise ValueError("latency=cuda needs an NVIDIA GPU and a CUDA build of PyTorch; choose latency=cpu")
    runtime = Runtime(
        "cuda",
        backend="torch eager, CUDA graph" if cuda_graph else "torch eager",
        convert=partial(convert, captured_copy if cuda_graph else eager_gpu_copy),
        dtypes=("float32", "float16", "bfloat16"),
        runs_files=False,
    )
    return local_target(runtime, TargetSettings(**settings), CudaGpu())


class CudaGpu:
    """The current GPU of this process."""

    def facts(self) -> dict[str, str | int]:
        properties = torch.cuda.get_device_properties(0)
        return {
            "device": properties.name,
            "cores": properties.multi_processor_count,
            "memory_mib": properties.total_memory // 2**20,
            "cuda": torch.version.cuda or "unknown",
        }

    def timer(self, num_threads: int) -> Timer:
        return Timer(event_seconds)

    def first_copy(self, load: Callable[[], Run]) -> tuple[Run, int | None]:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run = load()
        run()
        torch.cuda.synchronize()
        return run, torch.cuda.max_memory_allocated() - before


def convert(
    make_copy: Callable[[nn.Module, Tensor, str], Callable[[], Tensor]],
    model: nn.Module,
    x: Tensor,
    dtype: str,
    num_threads: int,
) -> Converted:
    output = make_copy(model, x, dtype)()
    return Converted(partial(make_copy, model, x, dtype), check_parity("cuda", model, x, output, dtype))


def eager_gpu_copy(model: nn.Module, x: Tensor, dtype: str) -> Callable[[], Tensor]:
    """Return a run of a copy of a model on the GPU, in eager mode."""
    return eager_copy(model, x, DTYPES[dtype], "cuda")


def captured_copy(model: nn.Module, x: Tensor, dtype: str) -> Callable[[], Tensor]:
    """Return a run of a copy of a model on the GPU, captured as a CUDA graph."""
    run = eager_gpu_copy(model, x, dtype)
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARMUP_RUNS):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = run()

    def replay() -> Tensor:
        graph.replay()
        return output

    replay.owner = run  # type: ignore[attr-defined]  # keeps weights and inputs alive, which the graph only reads
    return replay


def event_seconds(run: Run) -> float:
    """Time one run on the GPU, in seconds."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3

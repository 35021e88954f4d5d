"""An NVIDIA GPU, PyTorch in eager mode or as a CUDA graph, timed by CUDA events."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from search.latency.protocol import Run, Timer
from search.latency.target import DTYPES, PairedTarget, Prepared, check_parity, eager_copy

WARMUP_RUNS = 3  # before a CUDA graph is captured, as PyTorch's manual asks


@dataclass
class CudaTarget(PairedTarget):
    """Networks on the current GPU. cuda_graph: capture a run once and replay it, without the launch time of each kernel."""

    cuda_graph: bool = False

    name = "cuda"
    dtypes = ("float32", "float16", "bfloat16")
    runs_files = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not torch.cuda.is_available():
            raise ValueError("latency=cuda needs an NVIDIA GPU and a CUDA build of PyTorch, and finds none: try latency=cpu")

    @property
    def backend(self) -> str:  # type: ignore[override]
        return "torch eager, CUDA graph" if self.cuda_graph else "torch eager"

    def device(self) -> dict[str, str | int]:
        properties = torch.cuda.get_device_properties(0)
        return {
            "device": properties.name,
            "cores": properties.multi_processor_count,
            "memory_mib": properties.total_memory // 2**20,
            "cuda": torch.version.cuda or "unknown",
        }

    def timer(self) -> Timer:
        return Timer(_event_seconds)

    def prepare(self, model: nn.Module, x: Tensor) -> Prepared:
        output = self._copy(model, x)()
        return Prepared(lambda: self._copy(model, x), check_parity(self.name, model, x, output, self.dtype))

    def peak_bytes(self, load: Callable[[], Run]) -> tuple[Run, int | None]:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run = load()
        run()
        torch.cuda.synchronize()
        return run, torch.cuda.max_memory_allocated() - before

    def _copy(self, model: nn.Module, x: Tensor) -> Callable[[], Tensor]:
        run = eager_copy(model, x, DTYPES[self.dtype], "cuda")
        return self._captured(run) if self.cuda_graph else run

    def _captured(self, run: Callable[[], Tensor]) -> Callable[[], Tensor]:
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

        replay.owner = run  # type: ignore[attr-defined]  # the graph reads weights and inputs that it does not own
        return replay


def _event_seconds(run: Run) -> float:
    """Seconds of a run on the GPU."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3

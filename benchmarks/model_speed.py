"""Compare the speed of `models` with a plain implementation and the machine's limit: `python -m benchmarks.model_speed`.

The plain implementation is benchmarks/plain.py, written from the paper's formulas. Compared are HiLo layers, LITv2-S, M and
B, and the network that the default search measures against, forward pass and training step. Each implementation has a
process of its own; they run in turn on the same cores. A ratio of 1.4 means that the plain one takes 1.4 times as long.
"prepared" is the model as models.deploy prepares it, with kernels chosen here, in a process that keeps freed memory;
"compiled" is the model prepared without that choice, through torch.compile. With `--authors FOLDER`, a checkout of
https://github.com/ziplab/LITv2, HiLo layers are compared with the authors' module instead.

"of its products" is the time over the time that the multiply-accumulates take in matrix products of 1024x1024, measured in
turn with it. Peak memory is without the weights.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import math
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast

import timm
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import models.litv2  # noqa: F401 - registers the variants
from benchmarks.attention import forward
from benchmarks.plain import PlainHiLo, PlainLITv2
from models.architecture import Architecture, StageSpec
from models.complexity import count_macs
from models.deploy import prepare
from models.deploy.autotune import autotune
from models.deploy.memory import keep_freed_memory
from models.hilo import HiLo
from models.litv2 import build
from search.latency.cpu_compiled import compile_frozen
from search.latency.estimate import Estimate
from search.latency.machine import allowed_cores, pin
from search.latency.memory import ResidentMemory
from search.latency.processor import cpu_name
from search.latency.protocol import Run, Timer, time_ratios

HILO = (  # side of the map, dim, heads, window size, alpha, batches
    (14, 384, 12, 2, 0.9, (1, 8)),
    (14, 384, 12, 2, 0.5, (1, 8)),
    (28, 192, 6, 2, 0.5, (1, 8)),
    (56, 96, 3, 4, 0.34, (1, 8)),
    (40, 384, 12, 2, 0.5, (1, 8)),
    (64, 256, 8, 4, 0.5, (1, 8)),
    (8, 64, 4, 2, 0.5, (64,)),
    (7, 768, 24, 1, 1.0, (1, 8)),
)
VARIANTS = ("litv2_s", "litv2_m", "litv2_b")
IMG_SIZES = (224, 384)
SEARCH = Architecture(  # reference network of space=small
    embed_dim=24,
    stages=(StageSpec(2, 0, 0.0, 1), StageSpec(2, 0, 0.0, 1), StageSpec(4, 2, 0.9, 8), StageSpec(2, 1, 1.0, 8)),
    patch_size=4,
    downsample="conv",
)
SEARCH_BATCH = 64
GEMM_SIDE = 1024
BURST_SECONDS = 0.02  # time that an implementation runs in its turn
NUM_LAYERS = 8  # layers that run in turn, as in a network: one alone would keep its weights in the nearest cache
PROFILED_RUNS, SHOWN_OPERATIONS = 20, 7
GROUPS = ("hilo", "litv2", "search")
PARTS = ("forward", "training step")
MEBIBYTE = 2**20
PLAIN = Estimate(1.0, 0.0, math.inf)  # as fast as itself


@dataclass(frozen=True)
class Case:
    """A computation to compare.

    Attributes:
        name: Name in the report.
        make_baseline: Builds the implementation that others are compared with.
        make_fast: Builds the model of `models`.
        input_shape: Shape of the input, with the batch.
        copies: Number of copies of the model that run in turn.
        is_search: Whether this is the network of the search, which trains with an optimizer.
        baseline: Name of the baseline in the report.
    """

    name: str
    make_baseline: Callable[[], nn.Module]
    make_fast: Callable[[], nn.Module]
    input_shape: tuple[int, ...]
    copies: int = 1
    is_search: bool = False
    baseline: str = "plain"

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the forward pass of the batch."""
        return self.input_shape[0] * count_macs(self.make_fast(), self.input_shape[1:])


class AuthorsHiLo(nn.Module):
    """The authors' module on maps.

    Args:
        checkout: Folder of their code.
        dim, num_heads, window_size, alpha: As for `HiLo`.
    """

    def __init__(self, checkout: Path, dim: int, num_heads: int, window_size: int, alpha: float) -> None:
        super().__init__()
        self.attn = authors_module(checkout).HiLo(dim, num_heads, qkv_bias=True, window_size=window_size, alpha=alpha)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to the same shape."""
        return cast(Tensor, self.attn(x.flatten(1, 2), *x.shape[1:3])).view(x.shape)


def authors_module(checkout: Path) -> Any:
    """Import hilo.py of a checkout of the authors' code."""
    spec = importlib.util.spec_from_file_location("authors_hilo", checkout / "hilo.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def hilo_cases(authors: Path | None) -> Iterator[Case]:
    """HiLo layers, beside those of the authors' code if it is there."""
    baseline = PlainHiLo if authors is None else partial(AuthorsHiLo, authors)
    baseline_name = "plain" if authors is None else "authors"
    for side, dim, heads, window, alpha, batches in HILO:
        for batch in batches:
            plain, fast = (partial(layer, dim, heads, window, alpha) for layer in (baseline, HiLo))
            name = f"{side}x{side}, {dim}, {heads}, {window}, {alpha}; batch {batch}"
            yield Case(name, plain, fast, (batch, side, side, dim), copies=NUM_LAYERS, baseline=baseline_name)


def litv2_cases(variants: Sequence[str], img_sizes: Sequence[int], batches: Sequence[int]) -> Iterator[Case]:
    """Published networks."""
    for variant in variants:
        architecture = cast(Architecture, timm.create_model(variant).architecture)
        for size, batch in itertools.product(img_sizes, batches):
            plain, fast = partial(PlainLITv2, architecture), partial(build, architecture)
            yield Case(f"{variant} at {size}; batch {batch}", plain, fast, (batch, 3, size, size))


def search_case() -> Case:
    """Network and batch of the default search."""
    plain, fast = (partial(make, SEARCH, in_chans=1, num_classes=100) for make in (PlainLITv2, build))
    return Case(f"default search; batch {SEARCH_BATCH}", plain, fast, (SEARCH_BATCH, 1, 32, 32), is_search=True)


# In the processes of the implementations.


def serve(connection: Connection, case: Case, implementation: str, part: str, threads: int) -> None:
    """Send the peak memory of a run in bytes, then answer each request with the seconds that one run takes."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    run = prepare_run(case, implementation, part)
    for _ in range(case.copies):
        run()  # memory that libraries allocate once is not counted
    memory = ResidentMemory()
    for _ in range(3):
        run()
    peak = memory.growth()
    clock = time.process_time if threads == 1 else time.perf_counter
    connection.send(peak)
    while connection.recv():
        run()  # not timed: the other implementations used the caches in between
        runs, start = 0, clock()
        while not runs or clock() - start < BURST_SECONDS:
            run()
            runs += 1
        connection.send((clock() - start) / runs)


def prepare_run(case: Case, implementation: str, part: str) -> Run:
    """Build an implementation. Returns a function that runs it once."""
    if implementation == "products":
        a, b = torch.rand(GEMM_SIDE, GEMM_SIDE), torch.rand(GEMM_SIDE, GEMM_SIDE)
        return partial(torch.mm, a, b)
    if implementation in ("prepared", "compiled") or (case.is_search and implementation != case.baseline):
        keep_freed_memory()  # as in deployment and in the search
    make = case.make_baseline if implementation == case.baseline else case.make_fast
    x = torch.rand(case.input_shape)
    copies = [make() for _ in range(case.copies)]
    if implementation in ("prepared", "compiled"):
        copies = [prepare(copy) for copy in copies]
    if implementation == "prepared":
        autotune(nn.Sequential(*copies), x)
    runs = itertools.cycle([run_of(model, x, case, implementation, part) for model in copies])
    return lambda: next(runs)()


def run_of(model: nn.Module, x: Tensor, case: Case, implementation: str, part: str) -> Run:
    """Return a function that runs a model once, as it is timed."""
    if part == "training step":
        return training_step(model.train(), x, case.is_search)
    return compile_frozen(model, x) if implementation == "compiled" else forward(model.eval(), x)


def training_step(model: nn.Module, x: Tensor, with_optimizer: bool) -> Run:
    """Return a function that runs the forward and backward pass, of a layer also to its input, and the optimizer's step."""
    x.requires_grad_(isinstance(model, HiLo | PlainHiLo | AuthorsHiLo))
    with torch.no_grad():
        gradient = torch.rand_like(model(x))
    optimizer = torch.optim.AdamW(model.parameters(), fused=True) if with_optimizer else None

    def run() -> None:
        model.zero_grad()
        x.grad = None
        model(x).backward(gradient)
        if optimizer is not None:
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()

    return run


# In the process that compares them.


@dataclass(frozen=True)
class Compared:
    """Result of one implementation of a case.

    Attributes:
        implementation: Its name.
        milliseconds: Time of one run.
        speedup: How many times as fast as the baseline it is.
        of_limit: Time over the time of its multiply-accumulates in large matrix products.
        peak: Peak memory of a run without the weights, in bytes.
    """

    implementation: str
    milliseconds: float
    speedup: Estimate
    of_limit: float
    peak: int


@contextmanager
def processes(case: Case, implementations: Sequence[str], part: str, threads: int) -> Iterator[dict[str, tuple[Run, int]]]:
    """Start a process for each implementation. Yields functions that time one run in seconds, and peak memory in bytes."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.plain", "models.deploy", "search.training.task"])  # slow to import
    started = []
    try:
        running: dict[str, tuple[Run, int]] = {}
        for implementation in implementations:
            connection, other_end = context.Pipe()
            process = context.Process(target=serve, args=(other_end, case, implementation, part, threads), daemon=True)
            process.start()
            other_end.close()
            started.append((process, connection))
            peak = connection.recv()
            running[implementation] = (partial(request_run, connection), peak)
        yield running
    finally:
        for process, connection in started:
            process.terminate()
            process.join()
            connection.close()


def request_run(connection: Connection) -> float:
    """Let a process run its implementation. Returns the seconds that one run takes."""
    connection.send(True)
    return float(connection.recv())


def compare(case: Case, implementations: Sequence[str], part: str, threads: int, seconds: float) -> list[Compared]:
    """Time implementations in turn with the baseline. Returns their results, that of the baseline first."""
    with processes(case, [case.baseline, *implementations, "products"], part, threads) as running:
        runs = {name: run for name, (run, _) in running.items()}
        plain = runs.pop(case.baseline)
        series = time_ratios([[run] for run in runs.values()], [plain], 0.0, seconds, Timer(time_run=lambda run: run()))  # type: ignore[arg-type, return-value]
    series_of = dict(zip(runs, series, strict=True))
    macs = case.macs * (3 if part == "training step" else 1)  # backward computes two products for each of forward's
    limit = series_of.pop("products").estimate.value * macs / GEMM_SIDE**3  # relative to the baseline
    plain_ms = statistics.median(ms for s in series_of.values() for r in s.rounds for ms in r.anchor_ms)
    rows = [Compared(case.baseline, plain_ms, PLAIN, 1 / limit, running[case.baseline][1])]
    for name, measured in series_of.items():
        ratio = measured.estimate
        rows.append(Compared(name, ratio.value * plain_ms, PLAIN.over(ratio), ratio.value / limit, running[name][1]))
    return rows


def profile(case: Case, implementation: str, part: str) -> str:
    """Profile an implementation in this process. Returns the operations with the largest shares of its time."""
    run = prepare_run(case, implementation, part)
    for _ in range(3):
        run()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        for _ in range(PROFILED_RUNS):
            run()
    events = sorted(profiler.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    parts = [f"{event.key.split('::')[-1]} {event.self_cpu_time_total / total:.0%}" for event in events[:SHOWN_OPERATIONS]]
    return f"{case.name}, {implementation}, {part}: {', '.join(parts)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=GROUPS, help=f"of {', '.join(GROUPS)} (default all)")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS)
    parser.add_argument("--img-sizes", nargs="+", type=int, default=IMG_SIZES)
    parser.add_argument("--batches", nargs="+", type=int, default=[1], help="of the published networks (default 1)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=8.0, help="time for one implementation of one case (default 8)")
    parser.add_argument("--compiled", action="store_true", help="also compile LITv2, which takes a minute or more each")
    parser.add_argument("--authors", type=Path, help="a checkout of the authors' code, to compare HiLo layers with")
    parser.add_argument("--profile", action="store_true", help="show which operations take the time instead")
    arguments = parser.parse_args()
    if unknown := set(arguments.what) - set(GROUPS):  # argparse would check its default against choices too
        parser.error(f"{', '.join(sorted(unknown))}: choose from {', '.join(GROUPS)}")
    if arguments.authors is not None and not (arguments.authors / "hilo.py").is_file():
        parser.error(f"--authors {arguments.authors}: there is no hilo.py in this folder")
    torch.set_num_threads(arguments.threads)
    pin(allowed_cores(), arguments.threads)
    console = Console(width=120)
    console.print(f"{cpu_name()}, {arguments.threads} thread(s), float32, torch {torch.__version__}")
    groups: dict[str, tuple[str, Callable[[], Iterable[Case]]]] = {
        "hilo": ("HiLo: map, dim, heads, window, alpha", partial(hilo_cases, arguments.authors)),
        "litv2": ("LITv2", partial(litv2_cases, arguments.variants, arguments.img_sizes, arguments.batches)),
        "search": ("search", lambda: [search_case()]),
    }
    for group in arguments.what:
        title, cases = groups[group]
        for part in arguments.parts:
            implementations = ["eager"] if part == "training step" else ["eager", "prepared"]
            if arguments.compiled and group == "litv2" and part == "forward":
                implementations.append("compiled")
            if arguments.profile:
                for case, name in itertools.product(cases(), [None, *implementations]):
                    console.print(profile(case, name or case.baseline, part), soft_wrap=True, highlight=False)
                continue
            console.print(
                report(f"{title}, {part}", list(cases()), implementations, part, arguments.threads, arguments.seconds)
            )


def report(
    title: str, cases: Sequence[Case], implementations: Sequence[str], part: str, threads: int, seconds: float
) -> Table:
    """Compare in every case. Returns a table that ends with the geometric mean and the smallest of the speed-ups."""
    table = Table(title=title, title_justify="left")
    for header in ("case", "implementation", "ms", "times as fast", "95 % CI", "of its products", "peak, MB"):
        table.add_column(header, justify="left" if header in ("case", "implementation") else "right")
    speedups: dict[str, list[float]] = {name: [] for name in implementations}
    for case in cases:
        for row in compare(case, implementations, part, threads, seconds):
            plain = row.implementation == case.baseline
            interval = "" if plain else f"{row.speedup.low:.2f} to {row.speedup.high:.2f}"
            name = case.name if plain else ""
            speedup, peak = f"{row.speedup.value:.2f}", f"{row.peak / MEBIBYTE:.1f}"
            table.add_row(
                name, row.implementation, f"{row.milliseconds:.2f}", speedup, interval, f"{row.of_limit:.2f}", peak
            )
            if not plain:
                speedups[row.implementation].append(row.speedup.value)
    for name, values in speedups.items():
        mean = math.exp(statistics.fmean(map(math.log, values)))
        table.add_row("geometric mean, smallest", name, "", f"{mean:.2f}", f"{min(values):.2f}", "", "")
    return table


if __name__ == "__main__":
    main()

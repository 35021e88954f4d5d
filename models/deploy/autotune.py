"""Choose the kernel that each layer of a prepared model runs on a CPU, by timing its kernels inside the model.

The fastest kernel depends on the processor: oneDNN's matrix product is faster than PyTorch's default on one and slower on
the next, and the same goes for chunks that stay in the cache. It also depends on what the other layers leave in the cache,
so layers are timed in the model: in each pass every layer runs another of its kernels. A kernel replaces that of the
reference model only if its median ratio to it is below 0.95 by more than a standard error: what gains less here can lose in
a process whose memory lies elsewhere. Equal layers share a kernel.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from models.deploy.fused import FusedConvFFN, FusedHiLo
from models.deploy.kernels import BY_SIZE, FastLinear, Kernel

Layer = FastLinear | FusedConvFFN | FusedHiLo
Kernels = Mapping[str, str]
"""Names of the chosen kernels, by layer and input shape; plain data."""
NO_KERNELS: Kernels = MappingProxyType({})

WHOLE_LAYER = Kernel(chunks=1)
MIN_SECONDS, MIN_PASSES = 2.0, 30  # time limit: the longer one of so many seconds and so many passes of the model
MIN_TURNS, MAX_TURNS = 5, 40  # of every kernel of a layer; a further one before them warms up
MAX_RATIO = 0.95  # kernels that were 1 to 5 % faster when they were chosen were up to 6 % slower in other processes (EPYC)
MIN_STANDARD_ERRORS = 1.0  # by which a ratio is below it
MEDIAN_ERROR = 1.2533 * 1.4826  # standard error of a median of n normal values, over their median deviation / sqrt(n)


def autotune(model: nn.Module, example: Tensor, known: Kernels = NO_KERNELS) -> dict[str, str]:
    """Choose the kernel of each layer of a prepared model, in place.

    Takes about two seconds or the time of 30 to 60 passes, whichever is longer; less for small models, whose kernels need no
    more turns, and no time for layers whose kernel is known.

    Args:
        model: The model, from `models.deploy.prepare`, on the CPU. The layers inside of a layer are chosen before it.
        example: An input of the size and the batch that it is to be fast for, (B, C, H, W).
        known: Kernels that were chosen before, on the same machine and with as many threads.

    Returns:
        Kernel names by layer and input shape; pass them as `known` to reuse them.
    """
    layers = [module for module in model.modules() if isinstance(module, Layer)]
    for layer in layers:
        layer.kernel = WHOLE_LAYER  # runs all layers inside of it
    kernels: dict[str, str] = {}
    inputs: dict[Layer, Tensor] = {}
    run = partial(model, example)
    try:
        if layers:
            with torch.inference_mode():
                inputs, seconds = inputs_of(run, layers)
                num_passes = max(MIN_PASSES, int(MIN_SECONDS / seconds)) // 2
                for types in (FastLinear, (FusedConvFFN, FusedHiLo)):
                    of_types = {layer: x for layer, x in inputs.items() if isinstance(layer, types)}
                    kernels |= choose_kernels(of_types, run, num_passes, known)
    finally:
        for layer in layers:
            if layer not in inputs or key_of(layer, inputs[layer]) not in kernels:
                layer.kernel = BY_SIZE  # the example does not reach it
    return kernels


def inputs_of(run: Callable[[], Any], layers: Sequence[Layer]) -> tuple[dict[Layer, Tensor], float]:
    """Return an input of each layer that a model runs, and the seconds that the model takes."""
    inputs: dict[Layer, Tensor] = {}

    def keep(layer: Layer, arguments: tuple[Any, ...]) -> None:
        if arguments:  # a model may pass them by name
            inputs[layer] = arguments[0]

    with removing_hooks([layer.register_forward_pre_hook(keep) for layer in layers]):
        run()
    start = time.perf_counter()
    run()
    return inputs, time.perf_counter() - start


def choose_kernels(
    inputs: Mapping[Layer, Tensor], run: Callable[[], Any], num_passes: int, known: Kernels
) -> dict[str, str]:
    """Set the kernel of each layer: the known one of equal layers, or the fastest.

    Args:
        inputs: The layers, with an input of each.
        run: Runs the model.
        num_passes: Number of passes, as far as `MIN_TURNS` and `MAX_TURNS` allow.
        known: As in `autotune`.

    Returns:
        Kernel names of these layers.
    """
    keys = {layer: key_of(layer, x) for layer, x in inputs.items()}
    candidates = {layer: candidate_kernels(known.get(keys[layer]), layer.kernels(x)) for layer, x in inputs.items()}
    longest = max(map(len, candidates.values()), default=1)
    num_turns = 1 + min(MAX_TURNS, max(MIN_TURNS, num_passes // longest - 1)) if longest > 1 else 0
    ratios: dict[str, dict[Kernel, list[float]]] = defaultdict(lambda: defaultdict(list))
    for layer, times in time_kernels(run, candidates, num_turns).items():
        for kernel, ratio in ratios_to(candidates[layer][0], times):
            ratios[keys[layer]][kernel].append(ratio)
    chosen = {keys[layer]: fastest_kernel(kernels[0], ratios[keys[layer]]) for layer, kernels in candidates.items()}
    for layer, key in keys.items():
        layer.kernel = chosen[key]
    return {key: str(kernel) for key, kernel in chosen.items()}


def key_of(layer: Layer, x: Tensor) -> str:
    """Return the key under which equal layers share a kernel."""
    return f"{layer.describe()}, input {'x'.join(map(str, x.shape))}"


def candidate_kernels(name: str | None, kernels: list[Kernel]) -> list[Kernel]:
    """Return the kernel with a name, or all of them if there is no such kernel here."""
    return [kernel for kernel in kernels if str(kernel) == name] or kernels


def time_kernels(
    run: Callable[[], Any], candidates: Mapping[Layer, Sequence[Kernel]], num_turns: int
) -> dict[Layer, list[tuple[Kernel, float]]]:
    """Run a model so often that every kernel of every layer has had its turns.

    Returns:
        The kernels of each layer that has several, in the order in which it ran them, with their seconds.
    """
    to_time = {layer: kernels for layer, kernels in candidates.items() if len(kernels) > 1}
    times: dict[Layer, list[tuple[Kernel, float]]] = {layer: [] for layer in to_time}
    for number in range(num_turns * max(map(len, to_time.values()), default=0)):
        for index, (layer, kernels) in enumerate(to_time.items()):  # not all of them the same kernel at a time
            layer.kernel = kernels[(number + index) % len(kernels)]
        for layer, seconds in time_layers(run, list(to_time)).items():
            times[layer].append((layer.kernel, seconds))
    return times


def time_layers(run: Callable[[], Any], layers: Sequence[Layer]) -> dict[Layer, float]:
    """Run a model. Returns the seconds that each layer took: of the processor, where one thread computes."""
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    starts, seconds = {}, {}

    def start(layer: Layer, arguments: tuple[Any, ...]) -> None:
        starts[layer] = clock()

    def stop(layer: Layer, arguments: tuple[Any, ...], output: Tensor) -> None:
        seconds[layer] = clock() - starts[layer]

    before = [layer.register_forward_pre_hook(start) for layer in layers]
    with removing_hooks(before + [layer.register_forward_hook(stop) for layer in layers]):
        run()
    return seconds


@contextmanager
def removing_hooks(handles: Sequence[Any]) -> Iterator[None]:
    """Remove hooks when the context ends."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def ratios_to(reference: Kernel, times: Sequence[tuple[Kernel, float]]) -> Iterator[tuple[Kernel, float]]:
    """Divide the seconds of a layer's kernels by those of the reference in the same turn, but for the first turn."""
    num_kernels = max(1, len({kernel for kernel, _ in times}))
    for start in range(num_kernels, len(times), num_kernels):
        turn = times[start : start + num_kernels]
        seconds = dict(turn)
        if len(turn) == num_kernels and all(seconds.values()):  # longer than the clock's resolution
            yield from ((kernel, value / seconds[reference]) for kernel, value in turn if kernel != reference)


def fastest_kernel(reference: Kernel, ratios: Mapping[Kernel, Sequence[float]]) -> Kernel:
    """Return the kernel with the smallest ratio of those that are faster than the reference, or the reference."""
    faster = {kernel: statistics.median(values) for kernel, values in ratios.items() if is_faster(values)}
    return min(faster, key=faster.__getitem__, default=reference)


def is_faster(ratios: Sequence[float]) -> bool:
    """True if the median of the ratios is below `MAX_RATIO` by more than its error."""
    median = statistics.median(ratios)
    deviation = statistics.median(abs(ratio - median) for ratio in ratios)
    return median + MIN_STANDARD_ERRORS * MEDIAN_ERROR * deviation / math.sqrt(len(ratios)) < MAX_RATIO

"""Which kernel each layer of a prepared model runs on a CPU, chosen by timing them in the model.

What is fastest depends on the processor: oneDNN's product is faster than MKL's on one and slower on the next, and so it is
with chunks that stay in the cache. It also depends on what the model leaves in the cache, so layers are timed where they
are: in each pass of the model every layer runs another one of its kernels, the plain one in turn with the others. One of
them takes its place only if it is surely faster. Layers that are alike share one choice.
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
from models.deploy.kernels import FastLinear, Kernel

Layer = FastLinear | FusedConvFFN | FusedHiLo
Kernels = Mapping[str, str]
"""Names of the kernels that were chosen, by layer and shape; plain data."""
NOTHING: Kernels = MappingProxyType({})

WHOLE = Kernel(chunks=1)
MIN_SECONDS, MIN_PASSES = 2.0, 30  # time limit: the longer one of so many seconds and so many passes of the model
MIN_TURNS, MAX_TURNS = 3, 40  # of every kernel of a layer; the first one warms up and does not count
SURELY = 1.0  # standard errors by which a kernel has to be faster than the plain one
MEDIAN_ERROR = 1.2533 * 1.4826  # standard error of a median of n normal values, over their median deviation / sqrt(n)


def autotune(model: nn.Module, example: Tensor, known: Kernels = NOTHING) -> dict[str, str]:
    """Choose the kernel of each layer of a prepared model, in place.

    Takes about two seconds or the time of 30 passes, whichever is longer; no time for layers whose kernel is known.

    Args:
        model: The model, from `models.deploy.prepare`, on the CPU. The layers inside of a layer are chosen before it.
        example: An input of the size and the batch that it is to be fast for, (B, C, H, W).
        known: Choices for other models, on the same machine and with as many threads.

    Returns:
        The choices for this model.
    """
    layers = [module for module in model.modules() if isinstance(module, Layer)]
    if not layers:
        return {}
    for layer in layers:
        layer.kernel = WHOLE  # runs all layers inside of it
    kernels: dict[str, str] = {}
    run = partial(model, example)
    with torch.inference_mode():
        inputs, seconds = inputs_of(run, layers)
        for types in (FastLinear, (FusedConvFFN, FusedHiLo)):
            of_types = {layer: x for layer, x in inputs.items() if isinstance(layer, types)}
            num_passes = max(MIN_PASSES, int(MIN_SECONDS / seconds)) // 2
            kernels |= choose(of_types, run, num_passes, known)
    return kernels


def inputs_of(run: Callable[[], Any], layers: Sequence[Layer]) -> tuple[dict[Layer, Tensor], float]:
    """Return an input of each layer that a model runs, and the seconds that the model takes."""
    inputs: dict[Layer, Tensor] = {}

    def keep(layer: Layer, arguments: tuple[Any, ...]) -> None:
        inputs[layer] = arguments[0]

    with hooks([layer.register_forward_pre_hook(keep) for layer in layers]):
        run()
    start = time.perf_counter()
    run()
    return inputs, time.perf_counter() - start


def choose(inputs: Mapping[Layer, Tensor], run: Callable[[], Any], num_passes: int, known: Kernels) -> dict[str, str]:
    """Set the kernel of each layer: the one that is known for layers like it, or the fastest.

    Args:
        inputs: The layers, with an input of each.
        run: Runs the model.
        num_passes: How often, within limits that every kernel has as many turns as tell something.
        known: As in `autotune`.

    Returns:
        The choices for these layers.
    """
    keys = {layer: key_of(layer, x) for layer, x in inputs.items()}
    candidates = {layer: known_kernels(known.get(keys[layer]), layer.kernels(x)) for layer, x in inputs.items()}
    longest = max(map(len, candidates.values()), default=1)
    num_turns = 1 + min(MAX_TURNS, max(MIN_TURNS, num_passes // longest - 1)) if longest > 1 else 0
    ratios: dict[str, dict[Kernel, list[float]]] = defaultdict(lambda: defaultdict(list))
    for layer, times in time_kernels(run, candidates, num_turns).items():
        for kernel, ratio in ratios_to_plain(times):
            ratios[keys[layer]][kernel].append(ratio)
    chosen = {keys[layer]: fastest(kernels[0], ratios[keys[layer]]) for layer, kernels in candidates.items()}
    for layer, key in keys.items():
        layer.kernel = chosen[key]
    return {key: str(kernel) for key, kernel in chosen.items()}


def key_of(layer: Layer, x: Tensor) -> str:
    """Return what the time of a layer depends on."""
    return f"{layer.describe()}, input {'x'.join(map(str, x.shape))}"


def known_kernels(name: str | None, kernels: list[Kernel]) -> list[Kernel]:
    """Return the kernel that is known, or all of them if it is none of those that there are here."""
    return [kernel for kernel in kernels if str(kernel) == name] or kernels


def time_kernels(
    run: Callable[[], Any], candidates: Mapping[Layer, Sequence[Kernel]], num_turns: int
) -> dict[Layer, list[tuple[Kernel, float]]]:
    """Run a model so often that every kernel of every layer has had its turns.

    Returns:
        The kernels of each layer that has several, in the order in which it ran them, with their seconds.
    """
    several = {layer: kernels for layer, kernels in candidates.items() if len(kernels) > 1}
    times: dict[Layer, list[tuple[Kernel, float]]] = {layer: [] for layer in several}
    for number in range(num_turns * max(map(len, several.values()), default=0)):
        for layer, kernels in several.items():
            layer.kernel = kernels[number % len(kernels)]
        for layer, seconds in time_layers(run, list(several)).items():
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
    with hooks(before + [layer.register_forward_hook(stop) for layer in layers]):
        run()
    return seconds


@contextmanager
def hooks(handles: Sequence[Any]) -> Iterator[None]:
    """Remove hooks when the context ends."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def ratios_to_plain(times: Sequence[tuple[Kernel, float]]) -> Iterator[tuple[Kernel, float]]:
    """Divide the times of a layer's kernels by the plain one's in the same turn, of which it is the first.

    The first turn is left out.
    """
    plain_kernel, plain = times[0]
    num_kernels = len({kernel for kernel, _ in times})
    for kernel, seconds in times[num_kernels:]:
        if kernel == plain_kernel:
            plain = seconds
        else:
            yield kernel, seconds / plain


def fastest(plain: Kernel, ratios: Mapping[Kernel, Sequence[float]]) -> Kernel:
    """Return the kernel that is surely faster than the plain one, by most; or the plain one."""
    sure = {kernel: statistics.median(each) for kernel, each in ratios.items() if is_surely_faster(each)}
    return min(sure, key=sure.__getitem__, default=plain)


def is_surely_faster(ratios: Sequence[float]) -> bool:
    """True if the median of the times of a kernel over those of the plain one is below 1 by more than its error."""
    median = statistics.median(ratios)
    deviation = statistics.median(abs(ratio - median) for ratio in ratios)
    return median + SURELY * MEDIAN_ERROR * deviation / math.sqrt(len(ratios)) < 1

"""Which kernel each layer of a prepared model runs on a CPU, chosen by timing them at the layer's shapes.

What is fastest depends on the processor: oneDNN's product is faster than MKL's on one and slower on the next, and so it is
with chunks that stay in the cache. Each kernel of a layer takes turns with the plain one, which another takes the place of
only if it is surely faster. Layers that are alike share one choice.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from models.deploy.fused import FusedConvFFN, FusedHiLo
from models.deploy.kernels import FastLinear, Kernel

Layer = FastLinear | FusedConvFFN | FusedHiLo
Kernels = Mapping[str, str]
"""Names of the kernels that were chosen, by layer and shape; plain data."""
WHOLE = Kernel(chunks=1)
NOTHING: Kernels = MappingProxyType({})

MIN_SECONDS, MIN_PASSES = 2.0, 30  # time limit: the longer one of so many seconds and so many passes of the model
MIN_ROUNDS, MAX_ROUNDS = 5, 60
NUM_FINALISTS = 2  # kernels of a layer that are timed again
NUM_SHARES = 4  # of the time: inner and outer layers, all kernels and finalists
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
    kernels: dict[str, str] = {}
    if not any(isinstance(module, Layer) for module in model.modules()):
        return kernels
    with torch.inference_mode():
        inputs, seconds = inputs_of(model, example)
        for types in (FastLinear, (FusedConvFFN, FusedHiLo)):
            layers = {layer: x for layer, x in inputs.items() if isinstance(layer, types)}
            kernels |= choose(layers, max(MIN_SECONDS, MIN_PASSES * seconds) / NUM_SHARES, known)
    return kernels


def inputs_of(model: nn.Module, example: Tensor) -> tuple[dict[Layer, Tensor], float]:
    """Return an input of each layer that has a choice, and the seconds that the model takes."""
    inputs: dict[Layer, Tensor] = {}

    def keep(layer: Layer, arguments: tuple[Any, ...]) -> None:
        inputs[layer] = arguments[0]

    layers = [module for module in model.modules() if isinstance(module, Layer)]
    for layer in layers:
        layer.kernel = WHOLE  # runs all layers inside of it
    with hooks(layers, keep):
        model(example)
    start = time.perf_counter()
    model(example)
    return inputs, time.perf_counter() - start


@contextmanager
def hooks(layers: list[Layer], hook: Any) -> Iterator[None]:
    """Call a function with each layer and its arguments before it runs."""
    handles = [layer.register_forward_pre_hook(hook) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def choose(inputs: dict[Layer, Tensor], seconds: float, known: Kernels) -> dict[str, str]:
    """Set the kernel of each layer: the one that is known for layers like it, or the fastest.

    Args:
        inputs: The layers, with an input of each.
        seconds: Time limit.
        known: As in `autotune`.

    Returns:
        The choices for these layers.
    """
    different = {key_of(layer, x): (layer, x) for layer, x in inputs.items()}
    chosen = {key: kernel for key, each in different.items() if (kernel := kernel_named(known.get(key), *each)) is not None}
    unknown = {key: each for key, each in different.items() if key not in chosen}
    rounds = num_rounds(sum(seconds_of_round(*each) for each in unknown.values()), seconds)
    chosen |= {key: fastest(*each, rounds) for key, each in unknown.items()}
    for layer, x in inputs.items():
        layer.kernel = chosen[key_of(layer, x)]
    return {key: str(kernel) for key, kernel in chosen.items()}


def key_of(layer: Layer, x: Tensor) -> str:
    """Return what the time of a layer depends on."""
    return f"{layer.describe()}, input {'x'.join(map(str, x.shape))}"


def kernel_named(name: str | None, layer: Layer, x: Tensor) -> Kernel | None:
    """Return the kernel of a layer that has a name; None if there is none here."""
    return next((kernel for kernel in layer.kernels(x) if str(kernel) == name), None)


def seconds_of_round(layer: Layer, x: Tensor) -> float:
    """Run each kernel of a layer twice: once to warm up. Returns the seconds that they take together."""
    candidates = layer.kernels(x)
    for kernel in candidates:
        run(layer, x, kernel)
    return sum(run(layer, x, kernel) for kernel in candidates) if len(candidates) > 1 else 0.0


def num_rounds(seconds_each: float, seconds: float) -> int:
    """Return how many rounds there is time for, within limits."""
    return MAX_ROUNDS if not seconds_each else min(MAX_ROUNDS, max(MIN_ROUNDS, int(seconds / seconds_each)))


def fastest(layer: Layer, x: Tensor, rounds: int) -> Kernel:
    """Return the kernel of a layer that is surely faster than the plain one, by most; or the plain one.

    All kernels are timed first, then those that were fastest as many times again as the time of all allows.
    """
    plain, *others = layer.kernels(x)
    first = ratios(layer, x, plain, others, rounds)
    finalists = sorted(others, key=lambda kernel: statistics.median(first[kernel]))[:NUM_FINALISTS]
    if len(finalists) == len(others):
        final = first
    else:
        final = ratios(layer, x, plain, finalists, rounds * (1 + len(others)) // (1 + len(finalists)))
    sure = {kernel: statistics.median(final[kernel]) for kernel in finalists if is_surely_faster(final[kernel])}
    return min(sure, key=sure.__getitem__, default=plain)


def ratios(layer: Layer, x: Tensor, plain: Kernel, others: Sequence[Kernel], rounds: int) -> dict[Kernel, list[float]]:
    """Run a layer by several kernels in turn. Returns the times of each over those of the plain one, by round."""
    if not others:
        return {}
    times = [[run(layer, x, kernel) for kernel in (plain, *others)] for _ in range(rounds)]
    return {kernel: [row[number] / row[0] for row in times] for number, kernel in enumerate(others, start=1)}


def is_surely_faster(ratios: Sequence[float]) -> bool:
    """True if the median of the times of a kernel over those of the plain one is below 1 by more than its error."""
    median = statistics.median(ratios)
    deviation = statistics.median(abs(ratio - median) for ratio in ratios)
    return median + SURELY * MEDIAN_ERROR * deviation / math.sqrt(len(ratios)) < 1


def run(layer: Layer, x: Tensor, kernel: Kernel) -> float:
    """Run a layer by one of its kernels. Returns the seconds: of the processor, where it is one thread's."""
    layer.kernel = kernel
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    layer(x)
    return clock() - start

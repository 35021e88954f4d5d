"""Peak memory of a training step, known before it runs.

A step of a network without data, on tensors that have a shape and no storage (PyTorch's fake tensors), allocates what the
real one does. Only what operations use inside themselves is missing, such as the copies that a convolution library makes.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from search import one_line

log = logging.getLogger(__name__)
COPIES = 4  # of the weights: themselves, their gradients, and the two moments of AdamW
GIB = 2**30


@dataclass(frozen=True)
class StepMemory:
    """Peak memory of a training step, beside what PyTorch itself and the images of the dataset take.

    Args:
        weights_bytes: Weights, gradients, and moments of the optimiser.
        activations_bytes: Everything else at the peak, for a batch.
        batch_size: Number of images of the batch.
    """

    weights_bytes: int
    activations_bytes: int
    batch_size: int

    @property
    def peak_bytes(self) -> int:
        return self.weights_bytes + self.activations_bytes

    def __str__(self) -> str:
        parts = (self.peak_bytes, self.weights_bytes, self.activations_bytes)
        total, weights, activations = (f"{part / GIB:.2f} GiB" for part in parts)
        return (
            f"a training step takes about {total}: {weights} for weights, gradients and optimiser, {activations} for "
            f"{self.batch_size} images"
        )


def log_step_memory(
    networks: Iterable[nn.Module],
    weights: nn.Module,
    images: tuple[int, int, int, int],
    device: torch.device,
    precision: str,
) -> None:
    """Log in one line what a training step takes, and warn if that is more than there is.

    Args:
        networks: Of which the largest counts; they are left as they are, and may have no storage.
        weights: What the optimiser updates.
        images: Shape of a batch, (B, C, H, W).
        device: That trains.
        precision: As in `lightning.Trainer`.
    """
    try:
        memory = step_memory(networks, weights, images, device, precision)
    except Exception as error:  # from operations without a fake form; the training itself does not need any
        log.debug("the memory of a training step is not known: %s", one_line(error))
        return
    log.info("%s", memory)
    if memory.peak_bytes > (available := available_bytes(device)):
        log.warning(
            "a training step takes about %.2f GiB, and %.2f GiB are available on %s; lower train.batch_size=%d, and raise "
            "train.accumulate by the same factor",
            memory.peak_bytes / GIB, available / GIB, device, memory.batch_size,
        )  # fmt: skip


def step_memory(
    networks: Iterable[nn.Module],
    weights: nn.Module,
    images: tuple[int, int, int, int],
    device: torch.device,
    precision: str,
) -> StepMemory:
    """Compute the peak memory of a training step; arguments as in `log_step_memory`."""
    weights_bytes = COPIES * sum(parameter.nbytes for parameter in weights.parameters())
    activations = max(activation_bytes(network, images, device, precision) for network in networks)
    return StepMemory(weights_bytes, activations, images[0])


def activation_bytes(network: nn.Module, images: tuple[int, int, int, int], device: torch.device, precision: str) -> int:
    """Return the peak memory of a forward and a backward pass, beside the weights; arguments as in `log_step_memory`."""
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    with torch.random.fork_rng(devices=[]), FakeTensorMode():
        state = {name: torch.empty(tensor.shape, dtype=tensor.dtype, device=device) for name, tensor in tensors.items()}
        for name, tensor in network.named_parameters():
            state[name].requires_grad_(tensor.requires_grad)
        batch = torch.empty(images, device=device)
        allocations = _Allocations((*state.values(), batch))
        with allocations:
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16-mixed"):
                logits = functional_call(network, state, (batch,), strict=True)
            logits.float().log_softmax(1).mean().backward()
    return int(batch.nbytes) + allocations.peak


def available_bytes(device: torch.device) -> int:
    """Return the memory that is free on a device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


class _Allocations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Count the bytes of the tensors that operations return and that are still in use.

    Args:
        known: Tensors that are there before, which do not count.

    Attributes:
        peak: Largest number of bytes at a time.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.current = self.peak = 0
        self.storages = {id(storage): storage for storage in (tensor.untyped_storage() for tensor in known)}
        self.alive: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        number = id(storage)
        if number in self.storages or number in self.alive:
            return
        num_bytes = storage.nbytes()
        self.alive[number] = weakref.ref(storage, partial(self._free, number, num_bytes))
        self.current += num_bytes
        self.peak = max(self.peak, self.current)

    def _free(self, number: int, num_bytes: int, _reference: object) -> None:
        del self.alive[number]
        self.current -= num_bytes

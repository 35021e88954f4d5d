"""Cost of a network that does not depend on a machine: parameters and multiply-accumulates.

Multiply-accumulates are counted as in the official LITv2 table: those of matrix products, of convolutions (deformable ones
too) and of the two products of attention, and one for each element that a norm layer reads. Biases, activations, pooling and
the bilinear sampling of deformable convolutions are not counted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, TypeVar, cast

import torch
import torchvision.ops  # noqa: F401 - registers the deformable convolution that CUSTOM_FLOPS names
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from models.architecture import NUM_STAGES, Architecture, StageSpec
from models.litv2 import Block, Stage, build

Model = TypeVar("Model", bound=nn.Module)

NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)


def count_params(model: nn.Module) -> int:
    """Count the parameters of a model."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: nn.Module, input_size: tuple[int, ...]) -> int:
    """Count the multiply-accumulates of one forward pass in evaluation mode.

    Args:
        model: Any model, which is left as it is.
        input_size: Shape of the input without the batch, such as (3, 224, 224).
    """
    modes = [(module, module.training) for module in model.modules()]
    like = next(model.parameters())
    norm_elements = 0

    def count_norm(module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal norm_elements
        norm_elements += output.numel()

    hooks = [module.register_forward_hook(count_norm) for module in model.modules() if isinstance(module, NORMS)]
    counter = FlopCounterMode(display=False, custom_mapping=CUSTOM_FLOPS)
    try:
        with torch.no_grad(), counter:
            model.eval()(torch.zeros(1, *input_size, device=like.device, dtype=like.dtype))
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes:
            module.training = training
    return int(counter.get_total_flops()) // 2 + norm_elements


def cost(architecture: Architecture, in_chans: int, num_classes: int, img_size: int) -> tuple[int, int]:
    """Count the parameters and multiply-accumulates of an LITv2, as `count_params` and `count_macs` do.

    They are the sum over its blocks and the rest, each of which is built and counted once: a network of a search takes
    0.1 ms where building and counting it takes 45 ms.

    Args:
        architecture: The network.
        in_chans: Number of channels of the images.
        num_classes: Number of classes.
        img_size: Side of the images, in pixels, where the network has none of its own.

    Returns:
        Number of parameters, number of multiply-accumulates.
    """
    side = architecture.side(img_size)
    rest = _rest(architecture.embed_dim, architecture.patch_size, architecture.downsample, in_chans, num_classes, side)
    num_params, num_macs = rest.num_params, rest.num_macs
    for stage, dim, map_size in zip(architecture.canonical().stages, architecture.dims, rest.map_sizes, strict=True):
        block_params, block_macs = _block_cost(dim, replace(stage, depth=1), map_size)
        num_params += stage.depth * block_params
        num_macs += stage.depth * block_macs
    return num_params, num_macs


@dataclass(frozen=True)
class _Rest:
    """Cost of a network without blocks, and the (H, W) of the maps that the blocks of each stage would take."""

    num_params: int
    num_macs: int
    map_sizes: tuple[tuple[int, int], ...]


@lru_cache
def _rest(embed_dim: int, patch_size: int, downsample: str, in_chans: int, num_classes: int, img_size: int) -> _Rest:
    architecture = Architecture(embed_dim, (StageSpec(depth=1),) * NUM_STAGES, patch_size, downsample)
    model = _build_zero(lambda: build(architecture, in_chans=in_chans, num_classes=num_classes))
    map_sizes: list[tuple[int, int]] = []
    for stage in model.layers:
        blocks = cast(Stage, stage).blocks = nn.Sequential()
        blocks.register_forward_hook(lambda module, args, output: map_sizes.append(tuple(output.shape[1:3])))
    num_macs = count_macs(model, (in_chans, img_size, img_size))
    return _Rest(count_params(model), num_macs, tuple(map_sizes))


@lru_cache(maxsize=4096)
def _block_cost(dim: int, stage: StageSpec, map_size: tuple[int, int]) -> tuple[int, int]:
    block = _build_zero(lambda: Block(dim, stage))
    return count_params(block), count_macs(block, (*map_size, dim))


def _build_zero(make: Callable[[], Model]) -> Model:
    """Build a module on the CPU, all zero: initialising it would take long, counting on the meta device twice as long."""
    with torch.device("meta"):
        model = make()
    model.to_empty(device="cpu")
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data.zero_()
    return model


def _deform_conv_flops(input_shape: Any, weight_shape: Any, *args: Any, out_shape: Any, **kwargs: Any) -> int:
    out_channels, in_channels, kernel_height, kernel_width = weight_shape
    batch, _, height, width = out_shape
    return int(2 * batch * height * width * out_channels * in_channels * kernel_height * kernel_width)


CUSTOM_FLOPS = {torch.ops.torchvision.deform_conv2d: _deform_conv_flops}

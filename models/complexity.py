"""Cost of a network that does not depend on a machine: parameters and multiply-accumulates.

Multiply-accumulates are counted like the official LITv2 table: matrix products, convolutions (deformable ones too) and the
two attention products one each, and one for every element that a norm layer reads. Biases, activations, pooling and the
bilinear sampling of deformable convolutions are not counted, as there.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torchvision.ops  # noqa: F401 - registers the deformable convolution that CUSTOM_FLOPS names
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from models.layers import HAS_ONEDNN

NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)


def count_params(model: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: nn.Module, input_size: tuple[int, ...]) -> int:
    """Multiply-accumulates of one forward pass.

    input_size: shape of the input without the batch, such as (3, 224, 224).
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


def _deform_conv_flops(input_shape: Any, weight_shape: Any, *args: Any, out_shape: Any, **kwargs: Any) -> int:
    out_channels, in_channels, kernel_height, kernel_width = weight_shape
    batch, _, height, width = out_shape
    return int(2 * batch * height * width * out_channels * in_channels * kernel_height * kernel_width)


def _linear_flops(input_shape: Any, weight_shape: Any, *args: Any, out_shape: Any, **kwargs: Any) -> int:
    return int(2 * math.prod(input_shape) * weight_shape[0])


CUSTOM_FLOPS = {torch.ops.torchvision.deform_conv2d: _deform_conv_flops}
if HAS_ONEDNN:
    CUSTOM_FLOPS[torch.ops.mkldnn._linear_pointwise] = _linear_flops

"""A model for inference alone: each layer that has a faster form is replaced by it.

Projections of LITv2 that read the same tokens become one, BatchNorm becomes part of the convolution before it, weights lie
in the order in which they are read, and eager inference on a CPU computes large layers in chunks that stay in the cache. In
any model, large linear layers on a CPU go through oneDNN. The prepared model compiles and exports like the model.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, cast

from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from models.deploy.autotune import autotune
from models.deploy.fused import FusedConvFFN, FusedHiLo, FusedPatchConv, fast_linear
from models.hilo import HiLo
from models.layers import DeformConv, ImagePatchConv, PatchConv
from models.litv2 import ConvFFN, Downsample

# Of these types exactly: a subclass may compute something else.
FAST_FORMS: dict[type[nn.Module], Callable[[Any], nn.Module]] = {
    nn.Linear: fast_linear,
    PatchConv: FusedPatchConv,
    ImagePatchConv: FusedPatchConv,
    DeformConv: FusedPatchConv,
    HiLo: FusedHiLo,
    ConvFFN: FusedConvFFN,
}


def prepare(model: nn.Module, example: Tensor | None = None) -> nn.Module:
    """Return a copy for inference, in evaluation mode, whose outputs differ from the model's by rounding alone.

    On Linux `models.deploy.memory.keep_freed_memory`, called once in the process, gains as much again.

    Args:
        model: Any model, which is left as it is; those other than LITv2 gain by their linear layers alone.
        example: An input, (B, C, H, W) float32 on the CPU, to choose the kernels of the layers by timing them; they suit
            its size, its batch, this machine and the number of threads. None to choose by what was fast elsewhere.
            `models.deploy.autotune` tells what was chosen, and chooses the same again.
    """
    prepared = prepare_in_place(copy.deepcopy(model))
    if example is not None:
        autotune(prepared, example)
    return prepared


def prepare_in_place(model: nn.Module) -> nn.Module:
    """Prepare like `prepare` without a copy: the model is used up, and the returned one takes its place."""
    model.eval().requires_grad_(False)
    for module in model.modules():
        if isinstance(module, Downsample) and isinstance(module.norm_layer, nn.BatchNorm2d):
            fold_norm(module)
    return replace_layers(model)


def fold_norm(downsample: Downsample) -> None:
    """Make BatchNorm part of the convolution before it."""
    conv, norm = downsample.dconv, downsample.norm_layer
    conv.weight, conv.bias = fuse_conv_bn_weights(
        conv.weight,
        conv.bias,
        cast(Tensor, norm.running_mean),
        cast(Tensor, norm.running_var),
        norm.eps,
        norm.weight,
        norm.bias,
    )
    downsample.norm_layer = nn.Identity()  # type: ignore[assignment]


def replace_layers(module: nn.Module) -> nn.Module:
    """Put the fast form of each layer in its place, the innermost first. Returns the replacement of the module itself."""
    if isinstance(module, FusedPatchConv):  # of a model that is prepared already; the convolution inside has no weights
        return module
    for name, child in module.named_children():
        setattr(module, name, replace_layers(child))
    return FAST_FORMS[type(module)](module) if type(module) in FAST_FORMS else module

"""A model as it is deployed: a copy that computes the same with fewer and faster operations, for inference only.

LITv2's own layers are rebuilt: projections that read the same tokens become one, BatchNorm becomes part of the convolution
before it, weights lie in the order in which they are read. In any model, large linear layers on a CPU go through oneDNN, as
LITv2's do anyway. The copy compiles and exports like the model.

Shape letters as in `models.hilo`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from models.hilo import HiLo, average
from models.layers import DeformConv, ImagePatchConv, Linear, PatchConv, linear
from models.litv2 import Downsample


def prepare(model: nn.Module) -> nn.Module:
    """A copy for inference, in evaluation mode, whose outputs differ by rounding only. The model itself stays as it is.

    Any module is taken; networks other than LITv2 gain by their linear layers alone. On Linux `keep_freed_memory` of
    models.deploy.memory, once in the process, gains as much again.
    """
    return prepare_(copy.deepcopy(model))


def prepare_(model: nn.Module) -> nn.Module:
    """As `prepare`, without a copy: the model is used up."""
    model.eval().requires_grad_(False)
    for module in model.modules():
        if isinstance(module, Downsample) and isinstance(module.norm_layer, nn.BatchNorm2d):
            fold_norm(module)
    return replace(model)


def replace(module: nn.Module) -> nn.Module:
    """Put the fast form of each layer that has one in its place. Returns what takes the module's own place."""
    if isinstance(module, FastPatchConv):
        return module
    if type(module) in FAST_FORMS:  # not a subclass, which may compute something else
        return FAST_FORMS[type(module)](module)
    for name, child in module.named_children():
        setattr(module, name, replace(child))
    return module


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


def fuse(*layers: nn.Linear) -> Linear:
    """One layer for several that have the same input: their outputs one after the other."""
    biases: list[Tensor] = [layer.bias for layer in layers if layer.bias is not None]
    weights: list[Tensor] = [layer.weight for layer in layers]
    return constant_linear(torch.cat(weights), torch.cat(biases) if biases else None)


def constant_linear(weight: Tensor, bias: Tensor | None) -> Linear:
    """weight: (out_features, in_features)."""
    layer = Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach().contiguous(), requires_grad=False)
    layer.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)  # type: ignore[assignment]
    return layer


class FastPatchConv(nn.Module):
    """`PatchConv` and its kinds with the weights in the order of the patches."""

    def __init__(self, conv: PatchConv) -> None:
        super().__init__()
        self.linear = constant_linear(conv.weight.permute(0, 2, 3, 1).flatten(1), conv.bias)  # (out_dim, k * k * C)
        conv.weight = conv.bias = None  # type: ignore[assignment]
        for name, child in conv.named_children():
            setattr(conv, name, replace(child))
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        """x: what the convolution takes. Returns (B, h, w, out_dim)."""
        return cast(Tensor, self.linear(self.conv.patches(x).flatten(-2)))


class FastHiLo(HiLo):
    """`HiLo` whose projections of the same tokens are one: 1.05 to 1.09 times as fast as apart."""

    def __init__(self, attn: HiLo) -> None:
        nn.Module.__init__(self)
        self.window_size, self.head_dim = attn.window_size, attn.head_dim
        self.lo_heads, self.hi_heads = attn.lo_heads, attn.hi_heads
        self.fuses_kv = self.window_size == 1 and self.lo_heads > 0  # keys and values of the tokens themselves
        same = [attn.h_qkv] if self.hi_heads else []
        if self.hi_heads:
            self.h_proj = attn.h_proj
        if self.lo_heads:
            same += [attn.l_q, attn.l_kv] if self.fuses_kv else [attn.l_q]
            self.l_proj = attn.l_proj
            if not self.fuses_kv:
                self.l_kv = attn.l_kv
        self.fused = fuse(*same)

    def project(self, windows: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """windows: (B, G, T, C). Returns what `hifi` takes, and what `lofi` takes; None for what is not needed."""
        hi_dim, lo_dim = 3 * self.hi_heads * self.head_dim, self.lo_heads * self.head_dim
        single_key = windows.shape[1] == 1  # for which no query is needed
        if self.fuses_kv and single_key:
            return None, None, self._part(windows, lo_dim, 3 * lo_dim).squeeze(2)
        if self.fuses_kv:
            q, kv = self.fused(windows).split((lo_dim, 2 * lo_dim), dim=-1)
            return None, q, kv.squeeze(2)
        if not lo_dim:
            return self.fused(windows), None, None
        kv = self.l_kv(average(windows))
        if single_key:
            return self._part(windows, 0, hi_dim) if hi_dim else None, None, kv
        if not hi_dim:
            return None, self.fused(windows), kv
        return *self.fused(windows).split((hi_dim, lo_dim), dim=-1), kv

    def _part(self, windows: Tensor, start: int, stop: int) -> Tensor:
        """Some of the fused projection's outputs."""
        bias = None if self.fused.bias is None else self.fused.bias[start:stop]
        return linear(windows, self.fused.weight[start:stop], bias)


FAST_FORMS: dict[type[nn.Module], Callable[[Any], nn.Module]] = {
    nn.Linear: fuse,
    PatchConv: FastPatchConv,
    ImagePatchConv: FastPatchConv,
    DeformConv: FastPatchConv,
    HiLo: FastHiLo,
}

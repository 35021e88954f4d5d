"""Layers of LITv2 with fewer operations, for inference alone: their weights are rearranged once and then constant.

Shape letters: B batch, C channels, G windows, T tokens of a window, D channels of a head, k kernel = stride, h and w map
after a convolution.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from models.hilo import HiLo, average
from models.kernels import Linear, linear
from models.layers import PatchConv


class FusedPatchConv(nn.Module):
    """`PatchConv` and its subclasses with the weights in the order of the patches.

    Args:
        conv: The convolution, which is used up.
    """

    def __init__(self, conv: PatchConv) -> None:
        super().__init__()
        self.linear = constant_linear(conv.weight.permute(0, 2, 3, 1).flatten(1), conv.bias)  # (out_dim, k * k * C)
        conv.weight = conv.bias = None  # type: ignore[assignment]
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        """Convolve an input of the convolution. Returns (B, h, w, out_dim)."""
        return cast(Tensor, self.linear(self.conv.patches(x).flatten(-2)))


class FusedHiLo(HiLo):
    """`HiLo` whose projections of the same tokens are one: 1.05 to 1.09 times as fast as apart.

    Args:
        attn: The attention, which is used up.
    """

    def __init__(self, attn: HiLo) -> None:
        nn.Module.__init__(self)
        self.window_size, self.head_dim = attn.window_size, attn.head_dim
        self.lo_heads, self.hi_heads = attn.lo_heads, attn.hi_heads
        self.fuses_kv = self.window_size == 1 and self.lo_heads > 0  # keys and values of the tokens themselves
        projections = [attn.h_qkv] if self.hi_heads else []
        if self.hi_heads:
            self.h_proj = attn.h_proj
        if self.lo_heads:
            projections += [attn.l_q, attn.l_kv] if self.fuses_kv else [attn.l_q]
            self.l_proj = attn.l_proj
            if not self.fuses_kv:
                self.l_kv = attn.l_kv
        self.fused = fuse_linear(*projections)

    def project(self, windows: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Compute queries, keys and values, (B, G, T, C), as `HiLo.project` does."""
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
        """Some of the outputs of the fused projection."""
        bias = None if self.fused.bias is None else self.fused.bias[start:stop]
        return linear(windows, self.fused.weight[start:stop], bias)


def fuse_linear(*layers: nn.Linear) -> Linear:
    """Return one layer for several that have the same input; it returns their outputs one after the other."""
    biases: list[Tensor] = [layer.bias for layer in layers if layer.bias is not None]
    weights: list[Tensor] = [layer.weight for layer in layers]
    return constant_linear(torch.cat(weights), torch.cat(biases) if biases else None)


def constant_linear(weight: Tensor, bias: Tensor | None) -> Linear:
    """Return a linear layer with a weight, (out_features, in_features), and a bias, (out_features,) or None."""
    layer = Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach().contiguous(), requires_grad=False)
    layer.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)  # type: ignore[assignment]
    return layer

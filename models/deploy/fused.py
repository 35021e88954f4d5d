"""Layers of LITv2 with fewer or faster operations, for inference alone: their weights are rearranged once and then constant.

Shape letters: B batch, H and W map, C channels, G windows, T tokens of a window, D channels of one head, k kernel = stride,
h and w map after a convolution.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from models.deploy.kernels import (
    BY_SIZE,
    FastLinear,
    Kernel,
    linear,
    num_chunks,
    runs_eagerly_on_cpu,
    writes_onnx,
)
from models.depthwise import DepthwiseConv, depthwise_conv
from models.hilo import HiLo, attend, average, join_windows, to_windows
from models.layers import PatchConv
from models.litv2 import ConvFFN

SMALL = 2**17  # numbers, 512 kB in float32: what is no larger stays in the cache as it is
FEW_CHUNKS = (2, 4)  # numbers of chunks that are tried beside the one that the size tells


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


class FusedConvFFN(nn.Module):
    """`ConvFFN` that computes some hidden channels at a time, so that what lies between its layers stays in the cache.

    The depthwise convolution is one channel at a time anyway. 1.5 times as fast on a map of 56x56x96, where memory for all
    hidden channels would be asked of the system every time.

    Args:
        mlp: The layer, which is used up.

    Attributes:
        kernel: Kernel that computes the layer.
    """

    kernel = BY_SIZE

    def __init__(self, mlp: ConvFFN) -> None:
        super().__init__()
        self.fc1, self.dwconv, self.act, self.fc2 = mlp.fc1, mlp.dwconv, mlp.act, mlp.fc2

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to the same shape."""
        if runs_eagerly_on_cpu(x) and self._has_chunks():
            chunks = self._default_chunks(x) if self.kernel.chunks is None else self.kernel.chunks
            if chunks > 1:
                return self._in_chunks(x, chunks)
        return cast(Tensor, self.fc2(self.act(self.dwconv(self.fc1(x)))))

    def kernels(self, x: Tensor) -> list[Kernel]:
        """Return the kernels that an input may be computed by, that of the reference model first."""
        whole = Kernel(chunks=1)
        if not self._has_chunks() or self._hidden_size(x) <= SMALL:
            return [whole]
        return [whole, *(Kernel(chunks=chunks) for chunks in sorted({*FEW_CHUNKS, self._default_chunks(x)} - {1}))]

    def describe(self) -> str:
        """Return the layer's part of the key under which kernels are shared."""
        return f"feed-forward by {self.fc1.out_features}"

    def _has_chunks(self) -> bool:
        return type(self.fc1) is type(self.fc2) is FastLinear and type(self.dwconv[0]) is DepthwiseConv

    def _hidden_size(self, x: Tensor) -> int:
        return int(x.shape[:3].numel() * self.fc1.out_features)

    def _default_chunks(self, x: Tensor) -> int:
        return num_chunks(self._hidden_size(x))

    def _in_chunks(self, x: Tensor, chunks: int) -> Tensor:
        """Map (B, H, W, C) to the same shape: the sum over chunks of the hidden channels."""
        conv = cast(DepthwiseConv, self.dwconv[0])
        onednn1, onednn2 = (cast(FastLinear, layer).kernel.onednn for layer in (self.fc1, self.fc2))
        parts = (self.fc1.weight, self.fc1.bias, conv.weight, cast(Tensor, conv.bias), self.fc2.weight.t())
        out: Tensor | None = None
        for weight1, bias1, weight, bias, weight2 in zip(*(part.chunk(chunks) for part in parts), strict=True):
            hidden = self.act(depthwise_conv(linear(x, weight1, bias1, onednn1), weight, bias))
            share = linear(hidden, weight2.t().contiguous(), self.fc2.bias if out is None else None, onednn2)
            out = share if out is None else out.add_(share)
        return cast(Tensor, out)


class FusedHiLo(nn.Module):
    """`HiLo` whose projections of the same tokens are one: 1.05 to 1.09 times as fast as apart.

    Batches of large maps are attended some images at a time, so that what lies between its layers stays in the cache: 1.1
    and 1.25 times as fast for 8 maps of 40x40x384 and 64x64x256.

    Args:
        attn: The attention, which is used up.

    Attributes:
        kernel: Kernel that computes the layer.
    """

    kernel = BY_SIZE

    def __init__(self, attn: HiLo) -> None:
        super().__init__()
        self.window_size, self.head_dim = attn.window_size, attn.head_dim
        self.lo_heads, self.hi_heads = attn.lo_heads, attn.hi_heads
        self.fuses_kv = self.window_size == 1 and self.lo_heads > 0  # keys and values of the tokens themselves
        projections = []
        if self.hi_heads:
            projections.append(attn.h_qkv)
            self.h_proj = attn.h_proj
        if self.lo_heads:
            projections += [attn.l_q, attn.l_kv] if self.fuses_kv else [attn.l_q]
            self.l_proj = attn.l_proj
            if not self.fuses_kv:
                self.l_kv = attn.l_kv
        self.num_projections = len(projections)
        self.fused = fuse_linear(*projections)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to the same shape."""
        if self.kernel.chunks != 1 and runs_eagerly_on_cpu(x) and len(x) > 1:
            chunks = num_chunks(x.numel()) if self.kernel.chunks is None else self.kernel.chunks
            if chunks > 1:
                return torch.cat([self._attend(images) for images in x.chunk(chunks)])
        return self._attend(x)

    def kernels(self, x: Tensor) -> list[Kernel]:
        """Return the kernels that an input may be computed by, that of the reference model first."""
        is_large = len(x) > 1 and x.numel() > SMALL
        numbers = sorted({*FEW_CHUNKS, num_chunks(x.numel())} - {1}) if is_large else []
        windows = -(-x.shape[1] // self.window_size) * -(-x.shape[2] // self.window_size)
        apart = [Kernel(chunks=1, fused=False)] if self.num_projections > 1 and windows > 1 else []
        return [*apart, Kernel(chunks=1), *(Kernel(chunks=chunks) for chunks in numbers if chunks <= len(x))]

    def describe(self) -> str:
        """Return the layer's part of the key under which kernels are shared."""
        return f"HiLo {self.hi_heads}+{self.lo_heads} heads of {self.head_dim}, windows of {self.window_size}"

    def _attend(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to the same shape, all images at once."""
        windows = to_windows(x, self.window_size)
        is_apart = not self.kernel.fused and windows.shape[1] > 1 and runs_eagerly_on_cpu(x)
        branches = self._branches_apart(windows) if is_apart else self._branches(windows)
        return join_windows(branches, self.window_size, *x.shape[1:3])

    def _branches(self, windows: Tensor) -> list[Tensor]:
        """Compute what each kind of heads writes, (B, G, T, channels), from projections of all."""
        qkv, q, kv = self.project(windows)
        branches = [] if qkv is None else [self.hifi(qkv)]
        if kv is not None:
            branches.append(self.lofi(q, kv, windows.shape[2]))
        return branches

    def _branches_apart(self, windows: Tensor) -> list[Tensor]:
        """Compute what each kind of heads writes, (B, G, T, channels), one kind after the other, as `HiLo` does."""
        hi_dim, lo_dim = 3 * self.hi_heads * self.head_dim, self.lo_heads * self.head_dim
        branches = [self.hifi(self._part(windows, 0, hi_dim))] if hi_dim else []
        if lo_dim:
            q_end = hi_dim + lo_dim
            kv = self._part(windows, q_end, q_end + 2 * lo_dim).squeeze(2) if self.fuses_kv else self.l_kv(average(windows))
            branches.append(self.lofi(self._part(windows, hi_dim, q_end), kv, windows.shape[2]))
        return branches

    def project(self, windows: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Compute queries, keys and values.

        Args:
            windows: Tokens in window order, (B, G, T, C).

        Returns:
            The argument of `hifi` and the first two of `lofi`; None for each that is not needed.
        """
        hi_dim, lo_dim = 3 * self.hi_heads * self.head_dim, self.lo_heads * self.head_dim
        single_key = windows.shape[1] == 1  # no query is needed
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
        fused = self.fused
        bias = None if fused.bias is None else fused.bias[start:stop]
        return linear(windows, fused.weight[start:stop], bias, fused.kernel.onednn)

    def hifi(self, qkv: Tensor) -> Tensor:
        """Attend inside each window.

        Args:
            qkv: Queries, keys and values of the Hi-Fi heads, (B, G, T, 3 * hi_heads * D).

        Returns:
            (B, G, T, hi_heads * D).
        """
        q, k, v = qkv.flatten(0, 1).chunk(3, dim=-1)  # each (B * G, T, hi_heads * D)
        return cast(Tensor, self.h_proj(fused_attend(q, k, v, self.hi_heads).view(*qkv.shape[:3], -1)))

    def lofi(self, q: Tensor | None, kv: Tensor, num_tokens: int) -> Tensor:
        """Attend from every token to the averages of all windows.

        Args:
            q: Queries of the Lo-Fi heads, (B, G, T, lo_heads * D), or None if there is a single window.
            kv: Keys and values, (B, G, 2 * lo_heads * D).
            num_tokens: T, the number of tokens of a window.

        Returns:
            (B, G, T, lo_heads * D).
        """
        k, v = kv.chunk(2, dim=-1)  # each (B, G, lo_heads * D)
        if q is None:
            return cast(Tensor, self.l_proj(v)).unsqueeze(2).expand(-1, -1, num_tokens, -1)
        return cast(Tensor, self.l_proj(fused_attend(q.flatten(1, 2), k, v, self.lo_heads).view(q.shape)))


def fused_attend(q: Tensor, k: Tensor, v: Tensor, num_heads: int) -> Tensor:
    """Compute `models.hilo.attend`, whose fused attention would become two transposes of the keys in an ONNX file."""
    if not writes_onnx():
        return attend(q, k, v, num_heads)
    q, k, v = (x.reshape(*x.shape[:2], num_heads, -1) for x in (q, k, v))  # (N, tokens, heads, D)
    weights = (q.transpose(1, 2) * q.shape[-1] ** -0.5) @ k.permute(0, 2, 3, 1)  # (N, heads, T, S)
    out = weights.softmax(-1) @ v.transpose(1, 2)
    return cast(Tensor, out.transpose(1, 2).flatten(2))  # (N, heads, T, D) -> (N, T, heads * D)


def fast_linear(layer: nn.Linear) -> FastLinear:
    """Return the fast form of a linear layer, which is used up."""
    return constant_linear(layer.weight, layer.bias)


def fuse_linear(*layers: nn.Linear) -> FastLinear:
    """Return one layer for several that have the same input; it returns their outputs one after the other."""
    biases: list[Tensor] = [layer.bias for layer in layers if layer.bias is not None]
    weights: list[Tensor] = [layer.weight for layer in layers]
    return constant_linear(torch.cat(weights), torch.cat(biases) if biases else None)


def constant_linear(weight: Tensor, bias: Tensor | None) -> FastLinear:
    """Return a linear layer with a weight, (out_features, in_features), and a bias, (out_features,) or None."""
    layer = FastLinear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach().contiguous(), requires_grad=False)
    layer.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)  # type: ignore[assignment]
    return layer

"""HiLo and LITv2 from the paper's formulas: baseline of the speed benchmarks and second implementation for tests.

One line of code for each formula of "Fast Vision Transformers with HiLo Attention" (Sec. 3 and 4, arXiv 2205.13213), without
regard to speed. Between the layers a map is a sequence of tokens, as in the transformers that LITv2 builds on; attention is
softmax(Q K' / sqrt(D)) V with all its weights in memory. Parameters have the names of `models`, so that a state dict of one
loads into the other.

Shape letters: B batch, H and W map, N = H W tokens, C channels, s window size, G windows, D channels of one head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

from models.architecture import Architecture, StageSpec, count_hidden, count_lo_heads


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend with queries, keys and values, (..., heads, N, D) each, where N may differ for the queries.

    Returns:
        (..., N, heads * D).
    """
    weights = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(dim=-1)
    out: Tensor = (weights @ v).transpose(-3, -2).flatten(-2)
    return out


class PlainHiLo(nn.Module):
    """Eq. 1 to 3: Hi-Fi heads in windows, Lo-Fi heads from every token to the averages of the windows."""

    def __init__(self, dim: int, num_heads: int, window_size: int = 2, alpha: float = 0.5) -> None:
        super().__init__()
        self.window_size, self.head_dim = window_size, dim // num_heads
        self.lo_heads = count_lo_heads(num_heads, window_size, alpha)
        self.hi_heads = num_heads - self.lo_heads
        lo_dim, hi_dim = self.lo_heads * self.head_dim, self.hi_heads * self.head_dim
        if self.hi_heads:
            self.h_qkv = nn.Linear(dim, 3 * hi_dim)
            self.h_proj = nn.Linear(hi_dim, hi_dim)
        if self.lo_heads:
            self.l_q = nn.Linear(dim, lo_dim)
            self.l_kv = nn.Linear(dim, 2 * lo_dim)
            self.l_proj = nn.Linear(lo_dim, lo_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to the same shape."""
        _, height, width, _ = x.shape
        x = F.pad(x, (0, 0, 0, -width % self.window_size, 0, -height % self.window_size))
        branches = ([self.hifi(x)] if self.hi_heads else []) + ([self.lofi(x)] if self.lo_heads else [])
        return torch.cat(branches, dim=-1)[:, :height, :width]

    def hifi(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to (B, H, W, hi_heads * D)."""
        batch, height, width, dim = x.shape
        size, rows, columns = self.window_size, height // self.window_size, width // self.window_size
        windows = x.reshape(batch, rows, size, columns, size, dim).transpose(2, 3)  # (B, H/s, W/s, s, s, C)
        windows = windows.reshape(batch, rows * columns, size**2, dim)  # (B, G, s * s, C)
        qkv = self.h_qkv(windows).unflatten(-1, (3, self.hi_heads, self.head_dim))  # (B, G, s * s, 3, heads, D)
        q, k, v = qkv.permute(3, 0, 1, 4, 2, 5)  # (B, G, heads, s * s, D) each
        out = attention(q, k, v).reshape(batch, rows, columns, size, size, -1)
        return self.h_proj(out.transpose(2, 3).reshape(batch, height, width, -1))  # type: ignore[no-any-return]

    def lofi(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to (B, H, W, lo_heads * D)."""
        batch, height, width, _ = x.shape
        q = self.l_q(x).reshape(batch, height * width, self.lo_heads, self.head_dim).transpose(1, 2)  # (B, heads, N, D)
        pooled = F.avg_pool2d(x.permute(0, 3, 1, 2), self.window_size).flatten(2).transpose(1, 2)  # (B, G, C)
        k, v = self.l_kv(pooled).unflatten(-1, (2, self.lo_heads, self.head_dim)).permute(2, 0, 3, 1, 4)  # (B, heads, G, D)
        return self.l_proj(attention(q, k, v).reshape(batch, height, width, -1))  # type: ignore[no-any-return]


class PlainFFN(nn.Module):
    """Linear, 3x3 depthwise convolution, GELU, Linear."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.dwconv = nn.ModuleDict({"dwconv": nn.Conv2d(hidden_dim, hidden_dim, 3, padding=1, groups=hidden_dim)})
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        """Map (B, N, C) to the same shape."""
        x = self.fc1(x).transpose(1, 2).unflatten(2, (height, width))  # (B, C, H, W)
        x = self.dwconv["dwconv"](x).flatten(2).transpose(1, 2)  # (B, N, C)
        return self.fc2(F.gelu(x))  # type: ignore[no-any-return]


class PlainBlock(nn.Module):
    """Residual attention, if the stage has any, and residual feed-forward layer."""

    def __init__(self, dim: int, stage: StageSpec, drop_path: float) -> None:
        super().__init__()
        self.has_attention = stage.window_size > 0
        if self.has_attention:
            self.norm1 = nn.LayerNorm(dim)
            self.attn = PlainHiLo(dim, stage.num_heads, stage.window_size, stage.alpha)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = PlainFFN(dim, count_hidden(dim, stage.mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        """Map (B, N, C) to the same shape."""
        if self.has_attention:
            x = x + self.drop_path(self.attn(self.norm1(x).unflatten(1, (height, width))).flatten(1, 2))
        return x + self.drop_path(self.mlp(self.norm2(x), height, width))  # type: ignore[no-any-return]


class PlainDeformConv(nn.Conv2d):
    """2x2 stride-2 deformable convolution, by torchvision."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__(in_dim, out_dim, kernel_size=2, stride=2)
        self.conv_offset = nn.Conv2d(in_dim, 8, kernel_size=2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return deform_conv2d(x, self.conv_offset(x), self.weight, self.bias, stride=2)  # type: ignore[no-any-return]


class PlainDownsample(nn.Module):
    """Layer between stages: deformable token merging or a convolution, BatchNorm, GELU."""

    def __init__(self, in_dim: int, out_dim: int, kind: str) -> None:
        super().__init__()
        self.dconv = PlainDeformConv(in_dim, out_dim) if kind == "dtm" else nn.Conv2d(in_dim, out_dim, 2, stride=2)
        self.norm_layer = nn.BatchNorm2d(out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, 2 * C, H // 2, W // 2)."""
        return F.gelu(self.norm_layer(self.dconv(x)))


class PlainStage(nn.Module):
    """Modules of a stage under the official names; PlainLITv2 runs them."""

    def __init__(self, blocks: list[PlainBlock], downsample: PlainDownsample | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample


class PlainPatchEmbed(nn.Module):
    """Modules of the patch embedding under the official names; PlainLITv2 runs them."""

    def __init__(self, in_chans: int, dim: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, patch_size, stride=patch_size)
        self.norm = nn.LayerNorm(dim)


class PlainLITv2(nn.Module):
    """The network of Sec. 4; drop_path_rate is that of the last block and grows linearly from 0."""

    def __init__(
        self, architecture: Architecture, in_chans: int = 3, num_classes: int = 1000, drop_path_rate: float = 0.0
    ) -> None:
        super().__init__()
        dims, stages = architecture.dims, architecture.stages
        rates = iter(torch.linspace(0, drop_path_rate, sum(s.depth for s in stages)).tolist())
        self.patch_embed = PlainPatchEmbed(in_chans, dims[0], architecture.patch_size)
        self.layers = nn.ModuleList()
        for i, stage in enumerate(stages):
            last = i == len(stages) - 1
            downsample = None if last else PlainDownsample(dims[i], dims[i + 1], architecture.downsample)
            self.layers.append(PlainStage([PlainBlock(dims[i], stage, next(rates)) for _ in range(stage.depth)], downsample))
        self.norm = nn.LayerNorm(dims[-1])
        self.head = nn.Linear(dims[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Classify images, (B, in_chans, H, W). Returns logits, (B, num_classes)."""
        x = self.patch_embed.proj(x)  # (B, C, H, W)
        height, width = x.shape[2:]
        x = self.patch_embed.norm(x.flatten(2).transpose(1, 2))  # (B, N, C)
        for stage in self.layers:
            for block in stage.blocks:  # type: ignore[union-attr]
                x = block(x, height, width)
            if stage.downsample is not None:  # (B, N, C) -> (B, C, H, W) and back
                x = stage.downsample(x.transpose(1, 2).unflatten(2, (height, width)))  # type: ignore[operator, no-untyped-call]
                height, width = x.shape[2:]
                x = x.flatten(2).transpose(1, 2)
        return self.head(self.norm(x).mean(1))  # type: ignore[no-any-return]

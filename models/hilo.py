"""HiLo attention: some heads attend inside local windows, the others to the window averages of the whole map.

Source: "Fast Vision Transformers with HiLo Attention", Sec. 3, arXiv 2205.13213. Parameter names are the official ones.

Shape letters: B batch, H and W map, C channels, s window size, G windows, T = s * s tokens of a window, D channels of one
head.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.architecture import count_lo_heads
from models.kernels import Linear, num_chunks, runs_eagerly_on_cpu


class HiLo(nn.Module):
    """Multi-head attention split into a high-frequency (Hi-Fi) and a low-frequency (Lo-Fi) branch.

    Hi-Fi heads attend among the tokens of their window. Lo-Fi heads attend from every token to the averages of all
    windows. Window size 1 is plain multi-head attention. Maps that the window does not divide are padded with zeros at the
    right and bottom; as in the official code the padding takes part in the attention.

    Args:
        dim: Number of channels.
        num_heads: Number of heads; must divide `dim`.
        window_size: Side of the windows, in tokens, at least 1.
        alpha: Share of Lo-Fi heads, in [0, 1]; `int(num_heads * alpha)` of them.
        qkv_bias: Whether the query, key and value projections have biases.

    Raises:
        ValueError: If `dim` is not divisible by `num_heads`, or `window_size` or `alpha` is out of range.
    """

    def __init__(self, dim: int, num_heads: int, window_size: int = 2, alpha: float = 0.5, qkv_bias: bool = True) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"dim={dim} must be divisible by num_heads={num_heads}")
        if window_size < 1:
            raise ValueError(f"window_size={window_size} must be at least 1; leave the layer out for no attention")
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha={alpha} must be in [0, 1]")
        self.window_size = window_size
        self.head_dim = dim // num_heads
        self.lo_heads = count_lo_heads(num_heads, window_size, alpha)
        self.hi_heads = num_heads - self.lo_heads
        lo_dim, hi_dim = self.lo_heads * self.head_dim, self.hi_heads * self.head_dim
        if self.hi_heads:
            self.h_qkv = Linear(dim, 3 * hi_dim, bias=qkv_bias)
            self.h_proj = Linear(hi_dim, hi_dim)
        if self.lo_heads:
            self.l_q = Linear(dim, lo_dim, bias=qkv_bias)
            self.l_kv = Linear(dim, 2 * lo_dim, bias=qkv_bias)
            self.l_proj = Linear(lo_dim, lo_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Attend.

        Args:
            x: Tokens, (B, H, W, C).

        Returns:
            Tokens of the same shape; Hi-Fi heads write the first channels, Lo-Fi heads the last.
        """
        if runs_eagerly_on_cpu(x) and len(x) > 1 and (chunks := num_chunks(x.numel())) > 1:
            return torch.cat([self._attend(images) for images in x.chunk(chunks)])
        return self._attend(x)

    def _attend(self, x: Tensor) -> Tensor:
        _, height, width, _ = x.shape
        size = self.window_size
        if height % size or width % size:  # padding by nothing would copy the map
            x = F.pad(x, (0, 0, 0, -width % size, 0, -height % size))
        padded_height, padded_width = x.shape[1:3]
        # Both branches read window order, so the map is rearranged twice a layer and not once a branch.
        maps = [from_windows(branch, size, padded_height, padded_width) for branch in self.branches(to_windows(x, size))]
        # Joined while in windows still, so that joining also brings the tokens back into the map's order.
        out = maps[0] if len(maps) == 1 else torch.cat(maps, dim=-1)
        return out.reshape(x.shape)[:, :height, :width]

    def branches(self, windows: Tensor) -> list[Tensor]:
        """Attend with each branch that has heads.

        Args:
            windows: Tokens in window order, (B, G, T, C).

        Returns:
            Outputs of the Hi-Fi and of the Lo-Fi heads, (B, G, T, heads * D) each.
        """
        qkv, q, kv = self.project(windows)
        hi = [self.hifi(qkv)] if qkv is not None else []
        return hi if kv is None else [*hi, self.lofi(q, kv, windows.shape[2])]

    def project(self, windows: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Compute queries, keys and values.

        Args:
            windows: Tokens in window order, (B, G, T, C).

        Returns:
            The argument of `hifi` and the first two of `lofi`; None for each that is not needed.
        """
        qkv = self.h_qkv(windows) if self.hi_heads else None
        if not self.lo_heads:
            return qkv, None, None
        kv = self.l_kv(average(windows))
        return qkv, self.l_q(windows) if kv.shape[1] > 1 else None, kv

    def hifi(self, qkv: Tensor) -> Tensor:
        """Attend inside each window.

        Args:
            qkv: Queries, keys and values of the Hi-Fi heads, (B, G, T, 3 * hi_heads * D).

        Returns:
            (B, G, T, hi_heads * D).
        """
        q, k, v = qkv.flatten(0, 1).chunk(3, dim=-1)  # each (B * G, T, hi_heads * D)
        return self.h_proj(attend(q, k, v, self.hi_heads).view(*qkv.shape[:3], -1))  # type: ignore[no-any-return]

    def lofi(self, q: Tensor | None, kv: Tensor, num_tokens: int) -> Tensor:
        """Attend from every token to the averages of all windows.

        The softmax over the one key of a single window is 1 whatever the query: it is not read and gets no gradient.

        Args:
            q: Queries of the Lo-Fi heads, (B, G, T, lo_heads * D), or None if there is a single window.
            kv: Keys and values, (B, G, 2 * lo_heads * D).
            num_tokens: T, the number of tokens of a window.

        Returns:
            (B, G, T, lo_heads * D).
        """
        k, v = kv.chunk(2, dim=-1)  # each (B, G, lo_heads * D)
        if kv.shape[1] == 1:
            value: Tensor = self.l_proj(v)
            return value.unsqueeze(2).expand(-1, -1, num_tokens, -1)
        assert q is not None
        return self.l_proj(attend(q.flatten(1, 2), k, v, self.lo_heads).view(q.shape))  # type: ignore[no-any-return]


def attend(q: Tensor, k: Tensor, v: Tensor, num_heads: int) -> Tensor:
    """Compute softmax(Q K' / sqrt(D)) V of each head.

    On a CPU two products and a softmax are 0.6 to 1.0 times as fast as the fused attention for the maps of LITv2, and for 8
    to 32 keys 1.0 to 1.15 times in training: not worth a second way.

    Args:
        q: Queries, (N, T, heads * D).
        k: Keys, (N, S, heads * D).
        v: Values, (N, S, heads * D).
        num_heads: Number of heads.

    Returns:
        (N, T, heads * D).
    """
    q, k, v = (x.reshape(*x.shape[:2], num_heads, -1) for x in (q, k, v))  # (N, tokens, heads, D)
    if torch.onnx.is_in_onnx_export():  # the fused attention would become two transposes of the keys
        weights = (q.transpose(1, 2) * q.shape[-1] ** -0.5) @ k.permute(0, 2, 3, 1)  # (N, heads, T, S)
        out = weights.softmax(-1) @ v.transpose(1, 2)
    else:
        out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return cast(Tensor, out.transpose(1, 2).flatten(2))  # (N, heads, T, D) -> (N, T, heads * D)


def average(windows: Tensor) -> Tensor:
    """Average the tokens of each window: (B, G, T, C) -> (B, G, C)."""
    return windows.mean(2) if windows.shape[2] > 1 else windows.squeeze(2)


def to_windows(x: Tensor, size: int) -> Tensor:
    """Bring a map whose sides are divisible by the window size into window order: (B, H, W, C) -> (B, G, T, C)."""
    batch, height, width, dim = x.shape
    x = x.reshape(batch, height // size, size, width // size, size, dim)
    x = x.transpose(2, 3)  # (B, H/s, W/s, s, s, C)
    return x.reshape(batch, (height // size) * (width // size), size * size, dim)


def from_windows(windows: Tensor, size: int, height: int, width: int) -> Tensor:
    """Bring windows back into the order of the map: (B, G, T, C) -> a view (B, H/s, s, W/s, s, C), to be reshaped."""
    batch, _, _, dim = windows.shape
    windows = windows.reshape(batch, height // size, width // size, size, size, dim)
    return windows.transpose(2, 3)  # (B, H/s, s, W/s, s, C)

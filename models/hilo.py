"""HiLo attention: some heads attend inside local windows, the others to the window averages of the whole map.

Source: "Fast Vision Transformers with HiLo Attention", Sec. 3, arXiv 2205.13213. Parameter names are the official ones.

Shape letters: B batch, H and W map, C channels, s window size, G windows, T = s * s tokens of a window, D channels of one
head.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_module
from torch import Tensor, nn

from models.architecture import count_lo_heads


@register_notrace_module  # its padding depends on the size of the map, which torch.fx does not know
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
            self.h_qkv = nn.Linear(dim, 3 * hi_dim, bias=qkv_bias)
            self.h_proj = nn.Linear(hi_dim, hi_dim)
        if self.lo_heads:
            self.l_q = nn.Linear(dim, lo_dim, bias=qkv_bias)
            self.l_kv = nn.Linear(dim, 2 * lo_dim, bias=qkv_bias)
            self.l_proj = nn.Linear(lo_dim, lo_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Attend.

        Args:
            x: Tokens, (B, H, W, C).

        Returns:
            Tokens of the same shape; Hi-Fi heads write the first channels, Lo-Fi heads the last.
        """
        windows = to_windows(x, self.window_size)
        branches = []
        if self.hi_heads:
            branches.append(self.hifi(windows))
        if self.lo_heads:
            branches.append(self.lofi(windows))
        return join_windows(branches, self.window_size, *x.shape[1:3])

    def hifi(self, windows: Tensor) -> Tensor:
        """Attend inside each window.

        Args:
            windows: Tokens in window order, (B, G, T, C).

        Returns:
            Output of the Hi-Fi heads, (B, G, T, hi_heads * D).
        """
        q, k, v = self.h_qkv(windows).flatten(0, 1).chunk(3, dim=-1)  # each (B * G, T, hi_heads * D)
        out = attend(q, k, v, self.hi_heads)
        return cast(Tensor, self.h_proj(out.view(*windows.shape[:3], -1)))

    def lofi(self, windows: Tensor) -> Tensor:
        """Attend from every token to the averages of all windows.

        Args:
            windows: Tokens in window order, (B, G, T, C).

        Returns:
            Output of the Lo-Fi heads, (B, G, T, lo_heads * D).
        """
        _, num_windows, num_tokens, _ = windows.shape
        k, v = self.l_kv(average(windows)).chunk(2, dim=-1)  # each (B, G, lo_heads * D)
        if num_windows == 1:  # the softmax over a single key is 1 whatever the query
            return cast(Tensor, self.l_proj(v)).unsqueeze(2).expand(-1, -1, num_tokens, -1)
        q = self.l_q(windows)
        out = attend(q.flatten(1, 2), k, v, self.lo_heads)
        return cast(Tensor, self.l_proj(out.view(q.shape)))


def attend(q: Tensor, k: Tensor, v: Tensor, num_heads: int) -> Tensor:
    """Compute softmax(Q K' / sqrt(D)) V of each head.

    Args:
        q: Queries, (N, T, heads * D).
        k: Keys, (N, S, heads * D).
        v: Values, (N, S, heads * D).
        num_heads: Number of heads.

    Returns:
        (N, T, heads * D).
    """
    q, k, v = (x.reshape(*x.shape[:2], num_heads, -1).transpose(1, 2) for x in (q, k, v))  # (N, heads, tokens, D)
    out = F.scaled_dot_product_attention(q, k, v)
    return out.transpose(1, 2).flatten(2)  # (N, heads, T, D) -> (N, T, heads * D)


def average(windows: Tensor) -> Tensor:
    """Average the tokens of each window: (B, G, T, C) -> (B, G, C)."""
    return windows.mean(2) if windows.shape[2] > 1 else windows.squeeze(2)


def to_windows(x: Tensor, size: int) -> Tensor:
    """Bring a map into window order, padded with zeros at the right and bottom to whole windows.

    Args:
        x: Map, (B, H, W, C).
        size: s, the side of the windows.

    Returns:
        (B, G, T, C).
    """
    batch, height, width, dim = x.shape
    if height % size or width % size:  # padding by nothing would copy the map
        x = F.pad(x, (0, 0, 0, -width % size, 0, -height % size))
    rows, columns = -(-height // size), -(-width // size)
    x = x.reshape(batch, rows, size, columns, size, dim).transpose(2, 3)  # (B, rows, columns, s, s, C)
    return x.reshape(batch, rows * columns, size * size, dim)


def join_windows(branches: list[Tensor], size: int, height: int, width: int) -> Tensor:
    """Concatenate channels and bring windows back into the order of the map, without its padding.

    Args:
        branches: Parts of the channels in window order, (B, G, T, C_i) each.
        size: s, the side of the windows.
        height: H, the height of the map.
        width: W, the width of the map.

    Returns:
        (B, H, W, sum of C_i).
    """
    batch, rows, columns = branches[0].shape[0], -(-height // size), -(-width // size)
    # Views, (B, rows, s, columns, s, C_i) each: concatenating them also copies the tokens into the order of the map.
    maps = [windows.reshape(batch, rows, columns, size, size, -1).transpose(2, 3) for windows in branches]
    out = maps[0] if len(maps) == 1 else torch.cat(maps, dim=-1)
    return out.reshape(batch, rows * size, columns * size, -1)[:, :height, :width]

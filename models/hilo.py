"""HiLo attention: some heads attend inside local windows, the others to window averages of the whole map.

Source: "Fast Vision Transformers with HiLo Attention", Sec. 3, arXiv 2205.13213. Parameter names are the official ones.

Shape letters: B batch, H and W map, C channels, G windows, T tokens in a window, D channels of one head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.architecture import count_lo_heads


class HiLo(nn.Module):
    """Multi-head attention split into a high-frequency (Hi-Fi) and a low-frequency (Lo-Fi) branch.

    Hi-Fi heads attend among the `window_size**2` tokens of their window. Lo-Fi heads attend from every token to the
    averages of all windows. Window size 1 is plain multi-head attention. Maps that the window does not divide are
    padded with zeros at the right and bottom; as in the official code the padding takes part in the attention.

    alpha: share of Lo-Fi heads; `int(num_heads * alpha)` of them.
    qkv_bias: give the query, key and value projections a bias.
    Raises: ValueError if dim is not divisible by num_heads, or window_size or alpha are out of range.
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
        """x: tokens, (B, H, W, C). Returns the same shape."""
        _, height, width, _ = x.shape
        size = self.window_size
        if height % size or width % size:  # padding by nothing would copy the map
            x = F.pad(x, (0, 0, 0, -width % size, 0, -height % size))
        padded_height, padded_width = x.shape[1:3]
        # Both branches read window order, so the map is rearranged twice a layer and not once a branch.
        windows = to_windows(x, size)
        if not self.lo_heads:
            out = self.hifi(windows)
        elif not self.hi_heads:
            out = self.lofi(windows)
        else:
            out = torch.cat((self.hifi(windows), self.lofi(windows)), dim=-1)
        out = from_windows(out, size, padded_height, padded_width)
        return out[:, :height, :width]

    def hifi(self, windows: Tensor) -> Tensor:
        """windows: (B, G, T, C). Returns (B, G, T, hi_heads * D)."""
        batch, num_windows, tokens, _ = windows.shape
        qkv = self.h_qkv(windows).reshape(batch * num_windows, tokens, 3, self.hi_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B * G, heads, T, D)
        out = F.scaled_dot_product_attention(q, k, v)
        out = out.transpose(1, 2).reshape(batch, num_windows, tokens, self.hi_heads * self.head_dim)
        return self.h_proj(out)  # type: ignore[no-any-return]

    def lofi(self, windows: Tensor) -> Tensor:
        """windows: (B, G, T, C). Returns (B, G, T, lo_heads * D)."""
        batch, num_windows, tokens, _ = windows.shape
        q = self.l_q(windows).reshape(batch, num_windows * tokens, self.lo_heads, self.head_dim)
        pooled = windows.mean(2)
        kv = self.l_kv(pooled).reshape(batch, num_windows, 2, self.lo_heads, self.head_dim)
        k, v = kv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, heads, G, D)
        out = F.scaled_dot_product_attention(q.transpose(1, 2), k, v)
        out = out.transpose(1, 2).reshape(batch, num_windows, tokens, self.lo_heads * self.head_dim)
        return self.l_proj(out)  # type: ignore[no-any-return]


def to_windows(x: Tensor, size: int) -> Tensor:
    """(B, H, W, C) with H and W divisible by size -> (B, H/size * W/size, size**2, C)."""
    batch, height, width, dim = x.shape
    x = x.reshape(batch, height // size, size, width // size, size, dim)
    return x.transpose(2, 3).reshape(batch, (height // size) * (width // size), size * size, dim)


def from_windows(windows: Tensor, size: int, height: int, width: int) -> Tensor:
    """Inverse of `to_windows`: (B, G, size**2, C) -> (B, height, width, C)."""
    batch, _, _, dim = windows.shape
    x = windows.reshape(batch, height // size, width // size, size, size, dim)
    return x.transpose(2, 3).reshape(batch, height, width, dim)

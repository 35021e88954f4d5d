"""Compare the speed of HiLo with the attentions that it replaces: `python -m benchmarks.attention`.

One attention layer of each kind at equal width, heads and map, forward pass and training step, timed in turn with HiLo by
the latency protocol: a ratio of 1.4 means that HiLo is 1.4 times as fast. The other layers are timm's: Swin's window
attention (7x7 windows), PVTv2's spatial-reduction attention (keys and values reduced 2x2) and plain multi-head attention.
HiLo has 2x2 windows and alpha 0.9. The authors' figures are for 14x14 tokens, width 768, 12 heads, batch 64 on an
i9-10900X: 1.4 times spatial reduction and 1.6 times local windows (arXiv 2205.13213; HubHop/vit-attention-benchmark).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from timm.models.pvt_v2 import Attention as SpatialReductionAttention
from timm.models.swin_transformer import WindowAttention, window_partition, window_reverse
from timm.models.vision_transformer import Attention
from torch import Tensor, nn

from models.complexity import count_macs
from models.hilo import HiLo
from search.latency.machine import allowed_cores, pin
from search.latency.processor import cpu_name
from search.latency.protocol import Run, Series, Timer, time_ratios, timed_by

DIM, HEADS = 768, 12
AUTHORS = {"HiLo": 1029, "spatial reduction (PVTv2)": 710, "local windows (Swin)": 631, "plain": 505}  # images/s at 14x14
MAPS = ((14, 16), (28, 4), (56, 1))  # tokens a side, images: the same number of tokens in all


class Swin(nn.Module):
    """Swin's window attention with the partition into windows that it needs."""

    def __init__(self, window_size: int = 7) -> None:
        super().__init__()
        self.window_size = (window_size, window_size)
        self.attn = WindowAttention(DIM, HEADS, window_size=window_size)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to the same shape."""
        _, height, width, _ = x.shape
        windows = window_partition(x, self.window_size).flatten(1, 2)
        attended = self.attn(windows).unflatten(1, self.window_size)
        result: Tensor = window_reverse(attended, self.window_size, height, width)
        return result


class Pvt(nn.Module):
    """PVTv2's spatial-reduction attention."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = SpatialReductionAttention(DIM, HEADS, sr_ratio=2)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to (B, H * W, C)."""
        result: Tensor = self.attn(x.flatten(1, 2), x.shape[1:3])
        return result


class Plain(nn.Module):
    """Multi-head attention."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = Attention(DIM, HEADS, qkv_bias=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to (B, H * W, C)."""
        result: Tensor = self.attn(x.flatten(1, 2))
        return result


KINDS: dict[str, Callable[[], nn.Module]] = {
    "HiLo": lambda: HiLo(DIM, HEADS, window_size=2, alpha=0.9),
    "spatial reduction (PVTv2)": Pvt,
    "local windows (Swin)": Swin,
    "plain": Plain,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=16, help="images of 14x14 tokens; larger maps take fewer (default 16)")
    parser.add_argument("--seconds", type=float, default=30.0, help="limit for timing one layer (default 30)")
    parser.add_argument(
        "--tolerance", type=float, default=0.025, help="half-width of the 95 % confidence interval to stop at, relative"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    pin(allowed_cores(), arguments.threads)
    console = Console(width=120)
    console.print(f"{cpu_name()}, {arguments.threads} thread(s), float32, width {DIM}, {HEADS} heads")
    for side, images in MAPS:
        batch = max(1, images * arguments.batch // MAPS[0][1])
        console.print(compare(side, batch, arguments.seconds, arguments.tolerance, arguments.threads))


def compare(side: int, batch: int, seconds: float, tolerance: float, threads: int) -> Table:
    """Time HiLo and the other kinds on maps of side x side tokens. Returns a table of how many times as fast HiLo is."""
    table = Table(title=f"{side}x{side} tokens, batch {batch}", title_justify="left")
    for header in ("attention", "GMACs", "forward", "95 % CI", "training step", "95 % CI", "authors, forward"):
        table.add_column(header, justify="left" if header == "attention" else "right")
    torch.manual_seed(0)
    layers = {kind: make().eval() for kind, make in KINDS.items()}
    x = torch.rand(batch, side, side, DIM)
    timer = Timer(timed_by(time.process_time if threads == 1 else time.perf_counter))
    series_of: dict[str, dict[str, Series]] = {}
    for part, prepare in (("forward", forward), ("training step", training_step)):
        runs = {kind: prepare(layer, x) for kind, layer in layers.items()}
        others = [kind for kind in runs if kind != "HiLo"]
        series = time_ratios([[runs[kind]] for kind in others], [runs["HiLo"]], tolerance, seconds, timer)
        series_of[part] = dict(zip(others, series, strict=True))
    for kind, layer in layers.items():
        macs = f"{count_macs(layer, (side, side, DIM)) / 1e9:.2f}"
        if kind == "HiLo":
            table.add_row(kind, macs, "1.00", "", "1.00", "", "1.00" if side == 14 else "")
            continue
        ratios = [series_of[part][kind].estimate for part in ("forward", "training step")]
        cells = [cell for r in ratios for cell in (f"{r.value:.2f}", f"{r.low:.2f} to {r.high:.2f}")]
        table.add_row(kind, macs, *cells, f"{AUTHORS['HiLo'] / AUTHORS[kind]:.2f}" if side == 14 else "")
    return table


def forward(layer: nn.Module, x: Tensor) -> Run:
    """Return a function that runs the forward pass without gradient."""

    def run() -> None:
        with torch.inference_mode():
            layer(x)

    return run


def training_step(layer: nn.Module, x: Tensor) -> Run:
    """Return a function that runs the forward pass and the backward pass to the parameters and the input."""
    inputs = x.clone().requires_grad_()

    def run() -> None:
        layer.zero_grad()
        inputs.grad = None
        layer(inputs).sum().backward()

    return run


if __name__ == "__main__":
    main()

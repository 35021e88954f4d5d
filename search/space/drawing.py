"""SVG parts of the picture of a stage: blocks, the map with its windows, attention heads (results/picture.py joins them)."""

from __future__ import annotations

import math

from models.architecture import StageSpec

PANEL, MARGIN, TOP = 190, 12, 54  # pixels: width of a stage's panel, its left margin, the upper edge of the map
MAP, HEAD, MAX_LINES = 72, 11, 16  # pixels: side of the map, diameter of a head; lines drawn at most
BELOW_MAP = TOP + MAP
FRAME = "#c3ccd6"
HI, LO, NONE = "#0b7285", "#e08e0b", "#8a94a3"  # Hi-Fi heads, Lo-Fi heads, no attention


def draw_blocks(stage: StageSpec, side: int) -> str:
    """One bar per block, beside the map."""
    step = min(14.0, (MAP - 4) / stage.depth)
    return "".join(
        f'<rect x="{MARGIN + MAP + 12}" y="{TOP + step * i:.1f}" width="60" height="{step - 3:.1f}" rx="2" fill="{FRAME}"/>'
        for i in range(stage.depth)
    )


def draw_windows(stage: StageSpec, side: int) -> str:
    """The map of side x side tokens with its windows."""
    lines = [f'<rect x="{MARGIN}" y="{TOP}" width="{MAP}" height="{MAP}" fill="none" stroke="{FRAME}" stroke-width="2"/>']
    windows = math.ceil(side / stage.window_size) if stage.window_size > 1 else 1
    for i in range(1, min(windows, MAX_LINES)):
        at = min(MAP, i * stage.window_size * MAP / side)
        lines.append(f'<path d="M{MARGIN + at:.1f} {TOP}v{MAP}M{MARGIN} {TOP + at:.1f}h{MAP}" stroke="{FRAME}"/>')
    kinds = {0: "no attention", 1: "plain attention"}
    text = kinds.get(stage.window_size, f"windows of {stage.window_size}x{stage.window_size}")
    return "".join(lines) + f'<text x="{MARGIN}" y="{BELOW_MAP + 18}">{side}x{side} tokens, {text}</text>'


def draw_heads(stage: StageSpec, side: int) -> str:
    """One dot per head, Hi-Fi heads first."""
    top = BELOW_MAP + 34
    if not stage.window_size:
        return f'<text x="{MARGIN}" y="{top + 9}" fill="{NONE}">convolution and MLP alone</text>'
    hi_heads = stage.num_heads - stage.lo_heads
    step = min(HEAD + 3.0, (PANEL - 2 * MARGIN - 60) / stage.num_heads)
    dots = "".join(
        f'<circle cx="{MARGIN + HEAD / 2 + step * i:.1f}" cy="{top + 5}" r="{min(HEAD, step) / 2 - 0.5:.1f}" '
        f'fill="{HI if i < hi_heads else LO}"/>'
        for i in range(stage.num_heads)
    )
    label = f"{hi_heads} Hi, {stage.lo_heads} Lo" if stage.window_size > 1 else f"{stage.num_heads} heads"
    x = MARGIN + HEAD / 2 + step * stage.num_heads + 2
    return dots + f'<text x="{x:.1f}" y="{top + 9}" font-size="10">{label}</text>'

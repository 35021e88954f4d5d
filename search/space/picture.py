"""An architecture as a picture: four stages with their blocks, heads and windows, as SVG."""

from __future__ import annotations

import math

from models.architecture import Architecture, StageSpec

PANEL, HEIGHT, MARGIN = 190, 190, 12  # pixels
MAP, HEAD, MAX_LINES = 72, 11, 16
INK, PAPER, FRAME = "#1c2430", "#f7f9fb", "#c3ccd6"
HI, LO, NONE = "#0b7285", "#e08e0b", "#8a94a3"


def picture(architecture: Architecture, img_size: int) -> str:
    """On a ground of its own, legible on light and dark pages. img_size: of the input, in pixels."""
    panels = []
    for index, (stage, dim) in enumerate(zip(architecture.stages, architecture.dims, strict=True)):
        side = max(1, img_size // architecture.patch_size // 2**index)
        panels.append(f'<g transform="translate({index * PANEL},0)">{_panel(index + 1, stage, dim, side)}</g>')
    width = PANEL * len(panels) + MARGIN
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{HEIGHT}" viewBox="0 0 {width} {HEIGHT}" '
        f'font-family="sans-serif" font-size="12" fill="{INK}">'
        f'<rect width="{width}" height="{HEIGHT}" rx="8" fill="{PAPER}"/>{"".join(panels)}</svg>'
    )


def _panel(number: int, stage: StageSpec, dim: int, side: int) -> str:
    blocks = "block" if stage.depth == 1 else "blocks"
    return (
        f'<text x="{MARGIN}" y="22" font-weight="bold">stage {number}</text>'
        f'<text x="{MARGIN}" y="40">{stage.depth} {blocks}, width {dim}</text>'
        f"{_depth(stage.depth)}{_map(stage, side)}{_heads(stage)}"
    )


def _depth(depth: int) -> str:
    """A bar for each block, beside the map."""
    step = min(14.0, (MAP - 4) / depth)
    return "".join(
        f'<rect x="{MARGIN + MAP + 12}" y="{54 + step * i:.1f}" width="60" height="{step - 3:.1f}" rx="2" fill="{FRAME}"/>'
        for i in range(depth)
    )


def _map(stage: StageSpec, side: int) -> str:
    """The map of tokens with its windows."""
    lines = [f'<rect x="{MARGIN}" y="54" width="{MAP}" height="{MAP}" fill="none" stroke="{FRAME}" stroke-width="2"/>']
    windows = math.ceil(side / stage.window_size) if stage.window_size > 1 else 1
    for i in range(1, min(windows, MAX_LINES)):
        at = min(MAP, i * stage.window_size * MAP / side)
        lines.append(f'<path d="M{MARGIN + at:.1f} 54v{MAP}M{MARGIN} {54 + at:.1f}h{MAP}" stroke="{FRAME}"/>')
    kinds = {0: "no attention", 1: "plain attention"}
    text = kinds.get(stage.window_size, f"windows of {stage.window_size}x{stage.window_size}")
    return "".join(lines) + f'<text x="{MARGIN}" y="{54 + MAP + 18}">{side}x{side} tokens, {text}</text>'


def _heads(stage: StageSpec) -> str:
    """A dot for each head: Hi-Fi first, then Lo-Fi."""
    top = 54 + MAP + 34
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
    return (
        dots + f'<text x="{MARGIN + HEAD / 2 + step * stage.num_heads + 2:.1f}" y="{top + 9}" font-size="10">{label}</text>'
    )

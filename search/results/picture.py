"""An architecture as a picture: four stages with their blocks, heads and windows, as SVG."""

from __future__ import annotations

from models.architecture import Architecture, StageSpec
from search.space import dimensions
from search.space.drawing import BELOW_MAP, MARGIN, PANEL

HEIGHT, LINE = 190, 16  # pixels
INK, PAPER = "#1c2430", "#f7f9fb"


def picture(architecture: Architecture, img_size: int) -> str:
    """Draw a network on a background of its own, legible on light and dark pages.

    Args:
        img_size: side of the input, in pixels, where the network has none of its own.
    """
    panels = []
    for index, (stage, dim) in enumerate(zip(architecture.stages, architecture.dims, strict=True)):
        side = max(1, architecture.side(img_size) // architecture.patch_size // 2**index)
        panels.append(f'<g transform="translate({index * PANEL},0)">{_panel(index + 1, stage, dim, side)}</g>')
    width = PANEL * len(panels) + MARGIN
    height = HEIGHT + LINE * max(len(_texts(stage)) for stage in architecture.stages)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'font-family="sans-serif" font-size="12" fill="{INK}">'
        f'<rect width="{width}" height="{height}" rx="8" fill="{PAPER}"/>{"".join(panels)}</svg>'
    )


def _panel(number: int, stage: StageSpec, dim: int, side: int) -> str:
    blocks = "block" if stage.depth == 1 else "blocks"
    drawn = "".join(d.draw(stage, side) for d in dimensions.STAGE_DIMENSIONS if d.draw is not None)
    texts = "".join(
        f'<text x="{MARGIN}" y="{BELOW_MAP + 60 + LINE * line}">{text}</text>' for line, text in enumerate(_texts(stage))
    )
    return (
        f'<text x="{MARGIN}" y="22" font-weight="bold">stage {number}</text>'
        f'<text x="{MARGIN}" y="40">{stage.depth} {blocks}, width {dim}</text>{drawn}{texts}'
    )


def _texts(stage: StageSpec) -> list[str]:
    """Values that are not drawn, where they are not the default."""
    return [text for d in dimensions.STAGE_DIMENSIONS if d.draw is None and (text := d.describe(stage).strip())]

"""The architecture of an LITv2 network as plain data: proposed by a search, written by an export, built by `models.litv2`.

Standard library only, so that a configuration can be read and checked anywhere, without torch.

A further choice for each stage is one more field of `StageSpec`: its check, its canonical form and its part of the key are
methods of that class.

Source of the hyperparameters: "Fast Vision Transformers with HiLo Attention", Sec. 3 and 4, arXiv 2205.13213.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, replace
from functools import cached_property
from typing import Any, Final

NUM_STAGES: Final = 4
DOWNSAMPLES: Final = ("dtm", "conv")
# Far above any published variant; they keep a mistyped or hostile file from asking for terabytes.
MAX_DEPTH: Final = 128
MAX_EMBED_DIM: Final = 4096
MAX_PATCH_SIZE: Final = 64
MAX_IMG_SIZE: Final = 4096
MAX_WINDOW_SIZE: Final = 256
MAX_MLP_RATIO: Final = 16.0
MAX_INT: Final = 2**63 - 1


def count_hidden(dim: int, mlp_ratio: float) -> int:
    """Return the hidden width of a feed-forward layer on a map of `dim` channels."""
    return int(dim * mlp_ratio)


def count_lo_heads(num_heads: int, window_size: int, alpha: float) -> int:
    """Return the number of Lo-Fi heads; window size 1 is plain attention, where every head is Lo-Fi whatever alpha is."""
    return num_heads if window_size == 1 else int(num_heads * alpha)


@dataclass(frozen=True)
class StageSpec:
    """Choices of one of the four stages.

    Attributes:
        depth: Number of blocks, at least 1.
        window_size: 0 for a stage without attention, 1 for plain multi-head attention, s > 1 for HiLo with windows of
            s x s tokens.
        alpha: Share of the heads given to low frequencies, in [0, 1]; `int(num_heads * alpha)` heads are Lo-Fi.
        num_heads: Number of attention heads; must divide the width of the stage.
        mlp_ratio: Hidden width of the feed-forward layer over the width of the stage.
    """

    depth: int
    window_size: int = 0
    alpha: float = 0.0
    num_heads: int = 1
    mlp_ratio: float = 4.0

    @property
    def lo_heads(self) -> int:
        """Number of Lo-Fi heads, 0 without attention."""
        return count_lo_heads(self.num_heads, self.window_size, self.alpha) if self.window_size else 0

    def check(self, name: str, dim: int) -> None:
        """Check that the stage can be built.

        Args:
            name: Name of the stage for the error message.
            dim: Width of the stage, in channels.

        Raises:
            ValueError: If a value has the wrong type or range, or the heads do not divide the width.
        """
        check_int(f"{name}: depth", self.depth, 1, MAX_DEPTH)
        check_int(f"{name}: window_size", self.window_size, 0, MAX_WINDOW_SIZE)
        check_int(f"{name}: num_heads", self.num_heads, 1, MAX_EMBED_DIM)
        check_number(f"{name}: alpha", self.alpha, 0.0, 1.0)
        check_number(f"{name}: mlp_ratio", self.mlp_ratio, 1 / dim, MAX_MLP_RATIO)
        if self.window_size and dim % self.num_heads:
            raise ValueError(
                f"{name}: dim={dim} is not divisible by num_heads={self.num_heads}; change embed_dim or num_heads"
            )

    def canonical(self) -> StageSpec:
        """Return the same stage with every value that does not change the network set to a fixed one."""
        if self.window_size == 0:  # choices of the attention keep their defaults
            return StageSpec(self.depth, mlp_ratio=self.mlp_ratio)
        # The smallest four-digit alpha with this number of Lo-Fi heads: `int(num_heads * alpha)` gives it back.
        alpha = round(self.lo_heads / self.num_heads, 4)
        while int(self.num_heads * alpha) < self.lo_heads:
            alpha = round(alpha + 1e-4, 4)
        return replace(self, alpha=alpha)

    def key(self, dim: int) -> str:
        """Return a string that is equal for two canonical stages of width `dim` exactly if they are the same network.

        A choice added later has to leave the key as it is at its default: results are stored under these keys.
        """
        heads = f"h{self.num_heads}l{self.lo_heads}" if self.window_size else ""
        return f"d{self.depth}w{self.window_size}{heads}m{count_hidden(dim, self.mlp_ratio)}"


@dataclass(frozen=True)
class Architecture:
    """A whole network; stage i (from 0) is `embed_dim * 2**i` channels wide.

    Attributes:
        embed_dim: Width of the first stage, in channels.
        stages: Choices of each of the four stages.
        patch_size: Side of the patches of the image that become tokens, in pixels.
        downsample: Layer between stages, "dtm" (deformable token merging) or "conv" (a plain convolution).
        img_size: Side of the images that the network is for, in pixels; None where that is not a choice, but that of whoever
            uses the network.

    Raises:
        ValueError: If such a network cannot be built; the message names the stage, the value and the remedy.
    """

    embed_dim: int
    stages: tuple[StageSpec, ...]
    patch_size: int = 4
    downsample: str = "dtm"
    img_size: int | None = None

    def __post_init__(self) -> None:
        check_int("embed_dim", self.embed_dim, 1, MAX_EMBED_DIM)
        check_int("patch_size", self.patch_size, 1, MAX_PATCH_SIZE)
        if self.downsample not in DOWNSAMPLES:
            raise ValueError(f"downsample={self.downsample!r} is unknown; choose one of {', '.join(DOWNSAMPLES)}")
        if len(self.stages) != NUM_STAGES:
            raise ValueError(f"an architecture has {NUM_STAGES} stages, got {len(self.stages)}")
        for number, (stage, dim) in enumerate(zip(self.stages, self.dims, strict=True), start=1):
            stage.check(f"stage {number}", dim)
        if self.img_size is not None:
            check_int("img_size", self.img_size, 1, MAX_IMG_SIZE)
            check_image_fits("img_size", self.img_size, self.patch_size)

    @property
    def dims(self) -> tuple[int, ...]:
        """Width of each stage, in channels."""
        return tuple(self.embed_dim * 2**i for i in range(NUM_STAGES))

    @property
    def stride(self) -> int:
        """Input pixels for each cell of the last map: the smallest side that an image may have."""
        return smallest_image(self.patch_size)

    def canonical(self) -> Architecture:
        """Return the same network with every value that does not change it set to a fixed one."""
        return replace(self, stages=tuple(stage.canonical() for stage in self.stages))

    def side(self, default: int) -> int:
        """Return the side of the network's images in pixels, which is the default where the network has none of its own."""
        return default if self.img_size is None else self.img_size

    @cached_property
    def key(self) -> str:
        """String that is equal for two architectures exactly if they are the same network at the same image size."""
        return self.weights_key if self.img_size is None else f"{self.weights_key}@{self.img_size}"

    @cached_property
    def weights_key(self) -> str:
        """String that is equal for two architectures exactly if they are the same network by construction."""
        canonical = self.canonical()
        stages = (stage.key(dim) for stage, dim in zip(canonical.stages, canonical.dims, strict=True))
        return "-".join([f"c{canonical.embed_dim}p{canonical.patch_size}{canonical.downsample}", *stages])

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, ready for YAML or JSON; the image size only if the network has one."""
        data = {**asdict(self), "stages": [asdict(stage) for stage in self.stages]}
        if self.img_size is None:
            del data["img_size"]
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Architecture:
        """Build an architecture from plain data, the inverse of `to_dict`; nothing in it is run or looked up.

        Raises:
            ValueError: If a key is unknown or missing, or a value has the wrong type or range.
        """
        _check_keys("architecture", data, cls)
        stages = data["stages"]
        if not isinstance(stages, Sequence) or isinstance(stages, str):
            raise ValueError(f"stages={stages!r} must be a list of {NUM_STAGES} stages")
        specs = []
        for number, stage in enumerate(stages, start=1):
            _check_keys(f"stage {number}", stage, StageSpec)
            specs.append(StageSpec(**stage))
        return cls(**{**data, "stages": tuple(specs)})

    @classmethod
    def from_key(cls, key: str) -> Architecture:
        """Build an architecture from its key, which files of weights hold.

        Raises:
            ValueError: If it is not a key, or such a network cannot be built.
        """
        weights_key, _, size = key.partition("@")
        first, *stage_keys = weights_key.split("-")
        network = re.fullmatch(r"c(\d+)p(\d+)([a-z]+)", first)
        stages = [re.fullmatch(r"d(\d+)w(\d+)(?:h(\d+)l(\d+))?m(\d+)", stage) for stage in stage_keys]
        if network is None or not all(stages):
            raise ValueError(f"{key!r} is not the key of an architecture of this version")
        embed_dim, patch_size = int(network[1]), int(network[2])
        specs = []
        for index, stage in enumerate(filter(None, stages)):
            depth, window_size, heads, lo_heads, hidden = (int(value or 0) for value in stage.groups())
            alpha = min(1.0, (lo_heads + 0.5) / heads) if heads else 0.0
            specs.append(StageSpec(depth, window_size, alpha, max(1, heads), _mlp_ratio(embed_dim * 2**index, hidden)))
        img_size = int(size) if size.isdecimal() else None
        architecture = cls(embed_dim, tuple(specs), patch_size, network[3], img_size).canonical()
        if architecture.key != key:
            raise ValueError(f"{key!r} is not the key of an architecture")
        return architecture

    def scaled(self, width_multiplier: float) -> Architecture:
        """Return the same pattern at another width, rounded so that every stage stays divisible by its heads."""
        step = math.lcm(*(_width_step(stage, i) for i, stage in enumerate(self.stages)))
        return replace(self, embed_dim=max(step, round(self.embed_dim * width_multiplier / step) * step))


def _mlp_ratio(dim: int, hidden: int) -> float:
    """A ratio of hidden channels that `count_hidden` gives back."""
    ratio = hidden / max(dim, 1)
    return ratio if count_hidden(dim, ratio) == hidden else (hidden + 0.5) / dim


def smallest_image(patch_size: int) -> int:
    """Return the side of the smallest image whose last map is not empty, in pixels."""
    return int(patch_size * 2 ** (NUM_STAGES - 1))


def check_image_fits(name: str, img_size: int, patch_size: int) -> None:
    """Check that an image leaves the last stage a map.

    Raises:
        ValueError: If it is too small; the message names it.
    """
    if img_size < (smallest := smallest_image(patch_size)):
        raise ValueError(f"{name}={img_size} is below {smallest}, the smallest image for patches of {patch_size} pixels")


def _width_step(stage: StageSpec, index: int) -> int:
    """Smallest step of embed_dim that keeps stage `index` (from 0) divisible by its heads."""
    return stage.num_heads // math.gcd(stage.num_heads, 2**index) if stage.window_size else 1


def check_int(name: str, value: object, low: int, high: int = MAX_INT) -> None:
    """Check a whole number.

    Raises:
        ValueError: If the value is not an `int` from `low` to `high`; the message names it.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        bounds = f"from {low} to {high}" if high < MAX_INT else f"of at least {low}"
        raise ValueError(f"{name}={value!r} must be a whole number {bounds}")


def check_number(name: str, value: object, low: float, high: float = math.inf) -> None:
    """Check a number.

    Raises:
        ValueError: If the value is not a finite `int` or `float` from `low` to `high`; the message names it.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high or value == math.inf:
        bounds = f"from {low:g} to {high:g}" if high < math.inf else f"of at least {low:g}"
        raise ValueError(f"{name}={value!r} must be a number {bounds}")


def _check_keys(name: str, data: object, cls: type[Any]) -> None:
    """Check that data is a mapping from names of the fields of a dataclass, with all that have no default."""
    names = {field.name for field in fields(cls)}
    if not isinstance(data, Mapping):
        raise ValueError(f"{name}={data!r} must be a mapping with the keys {', '.join(field.name for field in fields(cls))}")
    if unknown := set(data) - names:
        raise ValueError(
            f"{name}: unknown {', '.join(map(str, sorted(unknown, key=str)))}; valid keys are {', '.join(sorted(names))}"
        )
    required = {field.name for field in fields(cls) if field.default is MISSING}
    if missing := required - set(data):
        raise ValueError(f"{name}: {', '.join(sorted(missing))} missing")

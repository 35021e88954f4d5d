"""An LITv2 network as plain data: what a search proposes, an export writes and `models.litv2.build` builds.

Standard library only, so that a configuration can be read and checked anywhere, without torch.
Source of the hyperparameters: "Fast Vision Transformers with HiLo Attention", arXiv 2205.13213, Sec. 3 and 4.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from typing import Any, Final

NUM_STAGES: Final = 4
DOWNSAMPLES: Final = ("dtm", "conv")
# Far above any published variant; they keep a mistyped or hostile file from asking for terabytes.
MAX_DEPTH: Final = 128
MAX_EMBED_DIM: Final = 4096
MAX_WINDOW_SIZE: Final = 256
MAX_MLP_RATIO: Final = 16.0
MAX_INT: Final = 2**63 - 1


def count_hidden(dim: int, mlp_ratio: float) -> int:
    """Hidden width of a feed-forward layer."""
    return int(dim * mlp_ratio)


def count_lo_heads(num_heads: int, window_size: int, alpha: float) -> int:
    """Number of Lo-Fi heads. Window size 1 is plain attention: every head is Lo-Fi, whatever alpha says."""
    return num_heads if window_size == 1 else int(num_heads * alpha)


@dataclass(frozen=True)
class StageSpec:
    """One of the four stages.

    depth: number of blocks, at least 1.
    window_size: 0 for a stage without attention, 1 for plain multi-head attention, s > 1 for HiLo with s x s windows.
    alpha: share of the heads given to low frequencies, in [0, 1]; `int(num_heads * alpha)` heads are Lo-Fi.
    mlp_ratio: hidden width of the feed-forward layer over the width of the stage.
    """

    depth: int
    window_size: int = 0
    alpha: float = 0.0
    num_heads: int = 1
    mlp_ratio: float = 4.0

    @property
    def lo_heads(self) -> int:
        return count_lo_heads(self.num_heads, self.window_size, self.alpha) if self.window_size else 0

    def canonical(self) -> StageSpec:
        """The one way to write this stage: values that do not change the network get a fixed value."""
        if self.window_size == 0:
            return replace(self, alpha=0.0, num_heads=1)
        # The smallest four-digit alpha with this number of Lo-Fi heads: `int(num_heads * alpha)` gives it back.
        alpha = round(self.lo_heads / self.num_heads, 4)
        while int(self.num_heads * alpha) < self.lo_heads:
            alpha = round(alpha + 1e-4, 4)
        return replace(self, alpha=alpha)


@dataclass(frozen=True)
class Architecture:
    """A whole network; stage i is `embed_dim * 2**i` wide.

    Raises: ValueError naming the stage, the value and the remedy if such a network cannot be built.
    """

    embed_dim: int
    stages: tuple[StageSpec, ...]
    patch_size: int = 4
    downsample: str = "dtm"

    def __post_init__(self) -> None:
        check_int("embed_dim", self.embed_dim, 1, MAX_EMBED_DIM)
        check_int("patch_size", self.patch_size, 1, 64)
        if self.downsample not in DOWNSAMPLES:
            raise ValueError(f"downsample={self.downsample!r} is unknown; choose one of {', '.join(DOWNSAMPLES)}")
        if len(self.stages) != NUM_STAGES:
            raise ValueError(f"an architecture has {NUM_STAGES} stages, got {len(self.stages)}")
        for number, (stage, dim) in enumerate(zip(self.stages, self.dims, strict=True), start=1):
            _check_stage(f"stage {number}", stage, dim)

    @property
    def dims(self) -> tuple[int, ...]:
        """Width of each stage, in channels."""
        return tuple(self.embed_dim * 2**i for i in range(NUM_STAGES))

    @property
    def stride(self) -> int:
        """Input pixels per cell of the last map: the smallest side that an image may have."""
        return int(self.patch_size * 2 ** (NUM_STAGES - 1))

    def canonical(self) -> Architecture:
        """The same network with everything that does not matter set to a fixed value."""
        return replace(self, stages=tuple(stage.canonical() for stage in self.stages))

    @cached_property
    def key(self) -> str:
        """Equal for two architectures exactly if they are the same network by construction."""
        canon = self.canonical()
        stages = (
            f"d{s.depth}w{s.window_size}"
            + (f"h{s.num_heads}l{s.lo_heads}" if s.window_size else "")
            + f"m{count_hidden(dim, s.mlp_ratio)}"
            for s, dim in zip(canon.stages, canon.dims, strict=True)
        )
        return "-".join([f"c{canon.embed_dim}p{canon.patch_size}{canon.downsample}", *stages])

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for YAML or JSON."""
        return {**asdict(self), "stages": [asdict(stage) for stage in self.stages]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Architecture:
        """Inverse of `to_dict`. Builds nothing but numbers and strings from `data`.

        Raises: ValueError if a key is unknown or missing, or a value has the wrong type or range.
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

    def scaled(self, width_multiplier: float) -> Architecture:
        """The same pattern at another width, rounded so that every stage stays divisible by its heads."""
        step = math.lcm(*(_width_step(stage, i) for i, stage in enumerate(self.stages)))
        return replace(self, embed_dim=max(step, round(self.embed_dim * width_multiplier / step) * step))


def _width_step(stage: StageSpec, index: int) -> int:
    """Smallest step of embed_dim that keeps stage `index` (from 0) divisible by its heads."""
    return stage.num_heads // math.gcd(stage.num_heads, 2**index) if stage.window_size else 1


def _check_stage(name: str, stage: StageSpec, dim: int) -> None:
    check_int(f"{name}: depth", stage.depth, 1, MAX_DEPTH)
    check_int(f"{name}: window_size", stage.window_size, 0, MAX_WINDOW_SIZE)
    check_int(f"{name}: num_heads", stage.num_heads, 1, MAX_EMBED_DIM)
    check_number(f"{name}: alpha", stage.alpha, 0.0, 1.0)
    check_number(f"{name}: mlp_ratio", stage.mlp_ratio, 1 / dim, MAX_MLP_RATIO)
    if stage.window_size and dim % stage.num_heads:
        raise ValueError(f"{name}: dim={dim} is not divisible by num_heads={stage.num_heads}; change embed_dim or num_heads")


def check_int(name: str, value: object, low: int, high: int = MAX_INT) -> None:
    """Raises: ValueError naming the value unless it is a whole number in the range."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        bounds = f"from {low} to {high}" if high < MAX_INT else f"of at least {low}"
        raise ValueError(f"{name}={value!r} must be a whole number {bounds}")


def check_number(name: str, value: object, low: float, high: float = math.inf) -> None:
    """Raises: ValueError naming the value unless it is a finite number in the range."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high or value == math.inf:
        bounds = f"from {low:g} to {high:g}" if high < math.inf else f"of at least {low:g}"
        raise ValueError(f"{name}={value!r} must be a number {bounds}")


def _check_keys(name: str, data: object, cls: type[Any]) -> None:
    if not isinstance(data, Mapping):
        raise ValueError(f"{name}={data!r} must be a mapping of {', '.join(f.name for f in fields(cls))}")
    known = {f.name for f in fields(cls)}
    if unknown := set(data) - known:
        raise ValueError(
            f"{name}: unknown {', '.join(map(str, sorted(unknown, key=str)))}; known are {', '.join(sorted(known))}"
        )
    required = {"embed_dim", "stages"} if cls is Architecture else {"depth"}
    if missing := required - set(data):
        raise ValueError(f"{name}: {', '.join(sorted(missing))} missing")

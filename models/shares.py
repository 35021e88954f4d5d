"""Which part of a supernet's shared weights each network takes.

Without an order, a network takes leading parts, as in "Once-for-All" (Sec. 3, arXiv 1908.09791) and "AutoFormer" (Sec. 3.2,
arXiv 2107.00651): of each stage its first blocks, of each layer its first channels, of either branch of attention its first
heads, and of each head the first channels. Hi-Fi heads write the first channels of the feature map and Lo-Fi heads the last:
row i of either output projection writes channel i.

With an order, a network takes the most important blocks, channels and heads instead, and computes them in the order in which
the shared weights have them. So no weight is moved to another place, and heads keep their identity: with H heads of which h
are Hi-Fi, the shared Hi-Fi weights of the first h and the shared Lo-Fi weights of the last H - h are used, whatever h is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, Self, cast

import torch
from torch import Tensor

from models.architecture import NUM_STAGES
from models.hilo import HiLo
from models.litv2 import Block, LITv2, Stage

CACHED_INDICES = 1024


@dataclass(frozen=True)
class StageBounds:
    """Largest values that any network takes in a stage.

    Attributes:
        depth: Number of blocks.
        hi_heads: Number of Hi-Fi heads, 0 if no network has attention in this stage.
        lo_heads: Number of Lo-Fi heads, 0 if no network has attention in this stage.
        head_dim: Number of channels of a head, 0 if no network has attention in this stage.
        mlp_ratio: Hidden width of the feed-forward layers over the width of the stage.
    """

    depth: int
    hi_heads: int
    lo_heads: int
    head_dim: int
    mlp_ratio: float


Positions = tuple[int, ...]
"""Positions in shared weights, the most important ones first."""


@dataclass(frozen=True, eq=False)  # an order is long, and only equal to itself
class BlockOrder:
    """What is important in a block of the shared weights.

    Attributes:
        hidden: Hidden channels of the feed-forward layer.
        queries: Of each head, the channels of queries and keys.
        values: Of each head, the channels of values.
    """

    hidden: Positions
    queries: tuple[Positions, ...]
    values: tuple[Positions, ...]


@dataclass(frozen=True, eq=False)
class StageOrder:
    """What is important in a stage of the shared weights.

    Attributes:
        blocks: The blocks.
        channels: The channels of the map.
        heads: The heads, all of which either branch holds. Empty without attention.
        within: What is important in each of the blocks, in the order in which they are computed.
    """

    blocks: Positions
    channels: Positions
    heads: Positions
    within: tuple[BlockOrder, ...]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Build from plain data, the inverse of `dataclasses.asdict`."""
        within = [
            BlockOrder(tuple(block["hidden"]), *(tuple(map(tuple, block[name])) for name in ("queries", "values")))
            for block in data["within"]
        ]
        return cls(tuple(data["blocks"]), tuple(data["channels"]), tuple(data["heads"]), tuple(within))


Order = tuple[StageOrder, ...]


@dataclass(frozen=True)
class Channels:
    """Consecutive channels along one axis of a shared tensor, from `start` up to `stop`."""

    stop: int
    start: int = 0

    def of(self, shared: Tensor, axis: int) -> Tensor:
        """Return a view of these channels."""
        return shared.narrow(axis, self.start, self.stop - self.start)


@dataclass(frozen=True)
class ChosenChannels:
    """Channels at some positions along one axis of a shared tensor."""

    positions: tuple[int, ...]

    def of(self, shared: Tensor, axis: int) -> Tensor:
        """Return a copy of these channels."""
        return shared.index_select(axis, _indices(self.positions, shared.device))


@dataclass(frozen=True)
class HeadChannels:
    """First channels of the first heads along one axis of a shared tensor, ordered (query/key/value, head, channel).

    Attributes:
        heads: Number of heads of the network.
        head_dim: Number of channels of each head of the network.
        shared_heads: Number of heads of the shared tensor.
        shared_head_dim: Number of channels of each head of the shared tensor.
    """

    heads: int
    head_dim: int
    shared_heads: int
    shared_head_dim: int

    def of(self, shared: Tensor, axis: int) -> Tensor:
        """Return these channels in the order of the axis, a copy unless they are consecutive."""
        split = shared.unflatten(axis, (-1, self.shared_heads, self.shared_head_dim))  # type: ignore[no-untyped-call]
        heads = split.narrow(axis + 1, 0, self.heads).narrow(axis + 2, 0, self.head_dim)
        return cast(Tensor, heads.flatten(axis, axis + 2))


Part = Channels | ChosenChannels | HeadChannels


class Share(NamedTuple):
    """A parameter or buffer of a network: the shared tensor it is part of, and the part to take along each axis."""

    name: str
    parts: tuple[Part, ...]

    def of(self, shared: Tensor) -> Tensor:
        """Return the part of the shared tensor."""
        for axis, part in enumerate(self.parts):
            shared = part.of(shared, axis)
        return shared


SharePlan = dict[str, Share]
"""By the name of each parameter and buffer of a network."""


def chosen(positions: Sequence[int]) -> Channels | ChosenChannels:
    """Return the channels at some rising positions; a view is enough if they are consecutive."""
    start, stop = (positions[0], positions[-1] + 1) if positions else (0, 0)
    return Channels(stop, start) if stop - start == len(positions) else ChosenChannels(tuple(positions))


def leading(order: Sequence[int], count: int) -> list[int]:
    """Return the positions of the `count` most important ones, in the order in which they are computed."""
    return sorted(order[:count])


def share_plan(network: LITv2, bounds: Sequence[StageBounds], order: Order | None = None) -> SharePlan:
    """For each parameter and buffer of a network, return which part of which shared tensor it is.

    Args:
        network: The network; its weights are not read.
        bounds: Size of the shared weights of each stage, which must hold the network.
        order: What is important in the shared weights; None for what comes first.
    """
    maps = [
        list(range(dim)) if order is None else leading(order[i].channels, dim)
        for i, dim in enumerate(network.architecture.dims)
    ]
    plan: SharePlan = {}
    for name, tensor in network.state_dict().items():
        stages = stages_of_axes(name)
        parts = [chosen(maps[stages[axis]]) if axis in stages else Channels(size) for axis, size in enumerate(tensor.shape)]
        plan[name] = Share(name, tuple(parts))
    for i, stage in enumerate(network.layers):
        blocks = cast(Stage, stage).blocks
        positions = list(range(len(blocks))) if order is None else leading(order[i].blocks, len(blocks))
        for j, block in enumerate(blocks):
            within = None if order is None else order[i].within[positions[j]]
            heads = () if order is None else order[i].heads
            prefix, shared_prefix = f"layers.{i}.blocks.{j}.", f"layers.{i}.blocks.{positions[j]}."
            parts_of = _block_parts(cast(Block, block), maps[i], bounds[i], heads, within)
            for name in [name for name in plan if name.startswith(prefix)]:
                layer = name.removeprefix(prefix)
                plan[name] = Share(shared_prefix + layer, parts_of.get(layer, plan[name].parts))
    return plan


def _block_parts(
    block: Block, positions: Sequence[int], bounds: StageBounds, heads: Positions, order: BlockOrder | None
) -> dict[str, tuple[Part, ...]]:
    """Return the parts that are the parameters of a block, for those that are not leading channels alone.

    Args:
        block: The block.
        positions: Channels of the map, by their positions in the shared weights.
        bounds: Size of the shared weights of the stage.
        heads: The heads, the most important ones first.
        order: What is important in the block; None for what comes first.
    """
    parts: dict[str, tuple[Part, ...]] = {}
    if block.has_attention:
        branches = _leading_branches(block.attn, bounds) if order is None else _branches(block.attn, bounds, heads, order)
        num_hi, inputs = block.attn.hi_heads * block.attn.head_dim, chosen(positions)
        outputs = {"h_proj": chosen(positions[:num_hi]), "l_proj": chosen(positions[num_hi:])}
        for layer, rows in branches.items():
            parts[f"attn.{layer}.weight"] = (outputs[layer], rows) if layer in outputs else (rows, inputs)
            parts[f"attn.{layer}.bias"] = (outputs.get(layer, rows),)
    if order is not None:
        hidden = chosen(leading(order.hidden, block.mlp.fc1.out_features))
        parts |= {
            "mlp.fc1.weight": (hidden, chosen(positions)),
            "mlp.fc1.bias": (hidden,),
            "mlp.dwconv.dwconv.bias": (hidden,),
        }
        parts["mlp.dwconv.dwconv.weight"] = (hidden, Channels(1), Channels(3), Channels(3))
        parts["mlp.fc2.weight"] = (chosen(positions), hidden)
    return parts


def _leading_branches(attn: HiLo, bounds: StageBounds) -> dict[str, Part]:
    """Return the part of each layer of attention along its axis of heads: the first heads of either branch."""
    hi = HeadChannels(attn.hi_heads, attn.head_dim, bounds.hi_heads, bounds.head_dim)
    lo = HeadChannels(attn.lo_heads, attn.head_dim, bounds.lo_heads, bounds.head_dim)
    return {"h_qkv": hi, "h_proj": hi, "l_q": lo, "l_kv": lo, "l_proj": lo}


def _branches(attn: HiLo, bounds: StageBounds, order: Positions, within: BlockOrder) -> dict[str, Part]:
    """Return the part of each layer of attention along its axis of heads: the most important heads and channels."""
    heads = leading(order, attn.hi_heads + attn.lo_heads)

    def rows(branch: Sequence[int], channels: Sequence[Positions]) -> list[int]:
        return [head * bounds.head_dim + channel for head in branch for channel in leading(channels[head], attn.head_dim)]

    def stacked(num_heads: int, *layers: list[int]) -> Part:
        size = num_heads * bounds.head_dim
        return chosen([index * size + row for index, layer in enumerate(layers) for row in layer])

    hi, lo = heads[: attn.hi_heads], heads[attn.hi_heads :]
    hi_query, hi_value = rows(hi, within.queries), rows(hi, within.values)
    lo_query, lo_value = rows(lo, within.queries), rows(lo, within.values)
    return {
        "h_qkv": stacked(bounds.hi_heads, hi_query, hi_query, hi_value),
        "h_proj": chosen(hi_value),
        "l_q": chosen(lo_query),
        "l_kv": stacked(bounds.lo_heads, lo_query, lo_value),
        "l_proj": chosen(lo_value),
    }


def stages_of_axes(name: str) -> dict[int, int]:
    """Return the axes of a parameter that are channels of a feature map, and the stage (from 0) of each of these maps."""
    path = name.split(".")
    if path[0] == "patch_embed":
        return {0: 0}
    if path[0] == "norm":
        return {0: NUM_STAGES - 1}
    if path[0] == "head":
        return {1: NUM_STAGES - 1}
    stage, layer = int(path[1]), path[2:]
    if layer[0] == "downsample":
        if "conv_offset" in layer:
            return {1: stage}
        return {0: stage + 1, 1: stage}
    if layer[2].startswith("norm") or layer[2:4] == ["mlp", "fc2"]:
        return {0: stage}
    return {1: stage} if layer[2:4] == ["mlp", "fc1"] else {}


@lru_cache(CACHED_INDICES)
def _indices(positions: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(positions, device=device)

"""A supernet that contains a trained network: with its architecture active it computes what the network computes.

Its weights are as wide as the network, even where the networks of the space are narrower. What the network lacks starts so
that it changes nothing: attention and blocks have output projections of zero, and what the network has reads zero times what
it has not. The rest starts at random.

Heads keep their identity. Either branch of attention holds all heads: one that the network has as a Hi-Fi head computes
queries, keys and values with the same weights as a Lo-Fi head, and writes the same channels. Heads of different branches do
not mix in LITv2, so the terms of an output projection that mix them, which are needed when a head moves, start from zero: a
moved head writes what it wrote before.

Networks that are smaller than the trained one start with its most important blocks, heads and channels (`importance.py`),
as in "Once-for-All" (Sec. 3.3, arXiv 1908.09791).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from models.architecture import Architecture, StageSpec, count_hidden
from models.elastic import Bounds, ElasticLITv2
from models.hilo import HiLo
from models.importance import Importance
from models.litv2 import LITv2, Stage, build
from models.shares import BlockOrder, Channels, HeadChannels, Part, Positions, StageBounds, StageOrder, share_plan


def supernet_of(
    network: LITv2, networks: Iterable[Architecture], importance: Importance, drop_path_rate: float
) -> ElasticLITv2:
    """Make a supernet that contains a trained network and some architectures.

    Args:
        network: The trained network.
        networks: Architectures that get shares of its weights.
        importance: Of the parts of the trained network.
        drop_path_rate: Stochastic depth of each network in training.

    Raises:
        ValueError: If the networks differ in patch size or kind of downsampling.
    """
    architectures = [network.architecture, *networks]
    bounds = bounds_of(architectures)
    order = tuple(
        order_of_stage(i, network.architecture, bounds, follows_width(i, architectures), importance)
        for i in range(len(bounds.stages))
    )
    elastic = ElasticLITv2(bounds, network.in_chans, network.num_classes, drop_path_rate, order)
    fill(elastic, network)
    return elastic


def bounds_of(architectures: Sequence[Architecture]) -> Bounds:
    """Return the bounds of some networks; either branch of attention that any of them has holds all heads."""
    bounds = Bounds.of(architectures)
    stages = zip(*(architecture.stages for architecture in architectures), strict=True)
    num_heads = [max((spec.num_heads for spec in specs if spec.window_size), default=0) for specs in stages]
    return replace(bounds, stages=tuple(map(with_all_heads, bounds.stages, num_heads)))


def with_all_heads(bounds: StageBounds, num_heads: int) -> StageBounds:
    """Return the bounds of a stage if either branch that it has holds all heads."""
    return replace(bounds, hi_heads=num_heads if bounds.hi_heads else 0, lo_heads=num_heads if bounds.lo_heads else 0)


def follows_width(index: int, architectures: Sequence[Architecture]) -> bool:
    """Whether narrower networks have fewer heads in a stage, and not narrower ones."""
    return len({a.dims[index] // a.stages[index].num_heads for a in architectures if a.stages[index].window_size}) == 1


def order_of_stage(
    index: int, architecture: Architecture, bounds: Bounds, heads_follow_width: bool, importance: Importance
) -> StageOrder:
    """Order the blocks, heads and channels of a stage by importance; what the trained network lacks comes last.

    With attention, narrower networks take whole heads, with the channels that these write, or the most important channels
    that each head writes: so the first channels of their maps are still written by Hi-Fi heads, and the last by Lo-Fi heads.

    Args:
        index: Of the stage.
        architecture: Of the trained network.
        bounds: Of the shared weights.
        heads_follow_width: Whether narrower networks have fewer heads in this stage.
        importance: Of the parts of the trained network.
    """
    stage, dim, shared = architecture.stages[index], architecture.dims[index], bounds.stages[index]
    blocks = torch.stack([importance[f"layers.{index}.blocks.{j}.block"] for j in range(stage.depth)])
    channels, num_heads, heads = importance[f"layers.{index}.channels"], 1, torch.zeros(1)
    if stage.window_size:
        num_heads = stage.num_heads
        heads = sum((importance[f"layers.{index}.blocks.{j}.heads"] for j in range(stage.depth)), torch.zeros(num_heads))
    head_dim = dim // num_heads
    ranks = channels.view(num_heads, head_dim).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    head_ranks = heads.argsort(descending=True, stable=True).argsort()
    shared_dim = bounds.dims[index]
    # Where heads are as many at every width, wider ones take the new channels beside their old ones.
    stride = head_dim if heads_follow_width or shared_dim % num_heads else shared_dim // num_heads
    keys: dict[int, tuple[int, int]] = {}
    for position in range(shared_dim):
        head, channel = divmod(position, stride)
        is_new = head >= num_heads or channel >= head_dim
        if heads_follow_width and stage.window_size:
            keys[position] = (num_heads, position) if is_new else (int(head_ranks[head]), channel)
        else:
            keys[position] = (dim + channel, head) if is_new else (int(ranks[head, channel]), head)
    order = StageOrder(
        blocks=_descending(blocks),
        channels=tuple(sorted(keys, key=keys.__getitem__)),
        heads=_descending(heads) if stage.window_size else (),
        within=tuple(_order_within(f"layers.{index}.blocks.{j}", importance) for j in range(stage.depth)),
    )
    return _extended(order, shared, shared_dim)


def _order_within(block: str, importance: Importance) -> BlockOrder:
    """Order the parts of a block by importance."""
    heads = [importance.get(f"{block}.{part}", torch.zeros(0, 0)) for part in ("queries", "values")]
    return BlockOrder(_descending(importance[f"{block}.hidden"]), *(tuple(map(_descending, scores)) for scores in heads))


def _descending(scores: Tensor) -> Positions:
    """Positions of the largest scores first."""
    return tuple(scores.argsort(descending=True, stable=True).tolist())


@torch.no_grad()
def fill(elastic: ElasticLITv2, network: LITv2) -> None:
    """Write the weights of a network into a new supernet that holds it and has an order."""
    shared = elastic.weights.state_dict()
    for spec in (StageSpec(1, window_size=2, alpha=0.0), StageSpec(1, window_size=1)):  # all heads in one branch
        whole = in_one_branch(network, spec)
        plan = share_plan(whole, elastic.bounds.stages, elastic.order)
        for name, tensor in whole.state_dict().items():
            if plan[name].name in shared:
                write(shared[plan[name].name], plan[name].parts, tensor)
    stages = network.architecture.stages
    _clear_lacking(elastic, [stage.depth for stage in stages], [("h", "l") if stage.window_size else () for stage in stages])


@torch.no_grad()
def continued(elastic: ElasticLITv2, networks: Iterable[Architecture], drop_path_rate: float) -> ElasticLITv2:
    """Make a supernet that starts from the weights of another one and holds further networks.

    Args:
        elastic: The other supernet; all its networks compute in the new one what they compute in it.
        networks: Architectures that get shares of the weights too.
        drop_path_rate: Stochastic depth of each network in training.

    Raises:
        ValueError: If the networks differ from those of the supernet in patch size or kind of downsampling.
    """
    old, weights = elastic.bounds, elastic.weights
    further = list(networks)
    bounds = old.union(Bounds.of(further) if elastic.order is None else bounds_of(further))
    if elastic.order is not None:
        num_heads = [max(stage.hi_heads, stage.lo_heads) for stage in bounds.stages]
        bounds = replace(bounds, stages=tuple(map(with_all_heads, bounds.stages, num_heads)))
    order = None if elastic.order is None else tuple(map(_extended, elastic.order, bounds.stages, bounds.dims))
    larger = ElasticLITv2(bounds, weights.in_chans, weights.num_classes, drop_path_rate, order)
    shared = larger.weights.state_dict()
    for name, tensor in weights.state_dict().items():
        path = name.split(".")
        parts: list[Part] = [Channels(size) for size in tensor.shape]
        if "attn" in path:
            axis, is_hi = int(path[-2].endswith("_proj")), path[-2].startswith("h_")
            few, many = old.stages[int(path[1])], bounds.stages[int(path[1])]
            count, shared_count = (few.hi_heads, many.hi_heads) if is_hi else (few.lo_heads, many.lo_heads)
            if axis < tensor.ndim:
                parts[axis] = HeadChannels(count, few.head_dim, shared_count, many.head_dim)
        write(shared[name], parts, tensor)
    branches = [("h" * bool(stage.hi_heads), "l" * bool(stage.lo_heads)) for stage in old.stages]
    _clear_lacking(larger, [stage.depth for stage in old.stages], branches)
    return larger


def _extended(order: StageOrder, bounds: StageBounds, dim: int) -> StageOrder:
    """Order of larger shared weights; what is new comes last."""
    num_heads = max(bounds.hi_heads, bounds.lo_heads)
    known = [*order.within, *[BlockOrder((), (), ())] * (bounds.depth - len(order.within))]
    within = [
        BlockOrder(
            _with_new(block.hidden, count_hidden(dim, bounds.mlp_ratio)),
            *(
                tuple(_with_new(heads[i] if i < len(heads) else (), bounds.head_dim) for i in range(num_heads))
                for heads in (block.queries, block.values)
            ),
        )
        for block in known
    ]
    blocks, channels = _with_new(order.blocks, bounds.depth), _with_new(order.channels, dim)
    return StageOrder(blocks, channels, _with_new(order.heads, num_heads), tuple(within))


def _with_new(known: Sequence[int], size: int) -> Positions:
    """Positions of known parts by importance, then those of new ones."""
    return (*known, *range(len(known), size))


def _clear_lacking(elastic: ElasticLITv2, depths: Sequence[int], branches: Sequence[Sequence[str]]) -> None:
    """Let what is not inherited change nothing: blocks and attention get output projections of zero.

    Args:
        elastic: The supernet.
        depths: Number of blocks of each stage that are inherited.
        branches: Branches of attention of each stage that are inherited, "h" and "l".
    """
    for stage, depth, inherited in zip(elastic.weights.layers, depths, branches, strict=True):
        for j, block in enumerate(cast(Stage, stage).blocks):
            layers = dict(block.named_modules())
            if j >= depth:
                _clear(layers["mlp.fc2"])
            for branch in ("h", "l"):
                if f"attn.{branch}_proj" in layers and (j >= depth or branch not in inherited):
                    _clear(layers[f"attn.{branch}_proj"])


def _clear(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


def write(shared: Tensor, parts: Sequence[Part], value: Tensor) -> None:
    """Write a part of a shared tensor. What it has written reads zero times everything else."""
    if not shared.ndim:
        shared.copy_(value)
        return
    positions = [part.of(torch.arange(size), 0) for part, size in zip(parts, shared.shape, strict=True)]
    if shared.ndim > 1:
        shared[positions[0]] = 0
    open_mesh = [index.view(-1, *[1] * (shared.ndim - 1 - axis)) for axis, index in enumerate(positions)]
    shared[tuple(open_mesh)] = value


@torch.no_grad()
def in_one_branch(network: LITv2, spec: StageSpec) -> LITv2:
    """Return a network with all heads in one branch of attention; what its projection mixes anew starts from zero.

    spec: window size and alpha that give this branch.
    """
    architecture = network.architecture
    stages = tuple(
        replace(stage, window_size=spec.window_size, alpha=spec.alpha) if stage.window_size else stage
        for stage in architecture.stages
    )
    with torch.device("meta"):
        changed = replace(architecture, stages=stages)
        whole = build(changed, in_chans=network.in_chans, num_classes=network.num_classes)
    state = network.state_dict()
    for name, module in network.named_modules():
        if isinstance(module, HiLo):
            joined = _in_one_branch(module, is_hi=spec.window_size > 1)
            state = {key: value for key, value in state.items() if not key.startswith(f"{name}.")}
            state |= {f"{name}.{key}": value for key, value in joined.items()}
    whole.load_state_dict(state, assign=True)
    return whole


def _in_one_branch(attn: HiLo, is_hi: bool) -> dict[str, Tensor]:
    """Weights of an attention layer with all heads in one branch."""
    branches = []  # of each that there is: weights and biases of query, key, value, projection
    if attn.hi_heads:
        qkv = zip(attn.h_qkv.weight.chunk(3), attn.h_qkv.bias.chunk(3), strict=True)
        branches.append([*qkv, (attn.h_proj.weight, attn.h_proj.bias)])
    if attn.lo_heads:
        kv = zip(attn.l_kv.weight.chunk(2), attn.l_kv.bias.chunk(2), strict=True)
        branches.append([(attn.l_q.weight, attn.l_q.bias), *kv, (attn.l_proj.weight, attn.l_proj.bias)])
    *qkv_layers, projections = zip(*branches, strict=True)
    query, key, value = (tuple(map(torch.cat, zip(*layers, strict=True))) for layers in qkv_layers)
    weights, biases = zip(*projections, strict=True)
    layers = {"h_qkv": [query, key, value]} if is_hi else {"l_q": [query], "l_kv": [key, value]}
    state = {}
    for layer, rows in layers.items():
        state[f"{layer}.weight"], state[f"{layer}.bias"] = map(torch.cat, zip(*rows, strict=True))
    branch = "h_proj" if is_hi else "l_proj"
    projection: Tensor = torch.block_diag(*weights)  # type: ignore[no-untyped-call]
    return {**state, f"{branch}.weight": projection, f"{branch}.bias": torch.cat(biases)}

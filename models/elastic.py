"""One set of weights for every LITv2 of a search space: a supernet.

A network of the space takes the leading blocks of each stage, the leading channels of each layer, the leading hidden
channels of each feed-forward layer, and of the attention layers the leading Hi-Fi and Lo-Fi heads with the leading channels
of each; window sizes need no weights. A channel of the map keeps its row in the attention's output projections whichever
branch writes it. Source of sharing by leading parts: "Once-for-All", Sec. 3, arXiv 1908.09791; "AutoFormer", Sec. 3.2, arXiv
2107.00651.

The networks are computed by `models.litv2` itself, so that there is one way to compute each layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from models.architecture import NUM_STAGES, Architecture, StageSpec
from models.hilo import HiLo
from models.kernels import Linear
from models.litv2 import LAYER_NORM_EPS, Block, LITv2, Stage, arguments_of, build, init_weights

SKELETONS = 256  # networks without weights that are kept
STAGES = 1024  # stages of them


@dataclass(frozen=True)
class StageBounds:
    """The most that any network takes of a stage: no heads, of channels head_dim each, where none has attention there."""

    depth: int
    hi_heads: int
    lo_heads: int
    head_dim: int
    mlp_ratio: float


@dataclass(frozen=True)
class Bounds:
    """The least set of weights that holds some networks."""

    embed_dim: int
    stages: tuple[StageBounds, ...]
    patch_size: int
    downsample: str

    @classmethod
    def of(cls, architectures: Iterable[Architecture]) -> Self:
        """Raises: ValueError if they do not have the same patches and the same kind of downsampling."""
        networks = list(architectures)
        kinds = {(a.patch_size, a.downsample) for a in networks}
        if len(kinds) != 1:
            raise ValueError(f"networks that share weights need one patch_size and downsample, not {sorted(kinds)}")
        ((patch_size, downsample),) = kinds
        stages = tuple(_stage_bounds([(a.stages[i], a.dims[i]) for a in networks]) for i in range(NUM_STAGES))
        return cls(max(a.embed_dim for a in networks), stages, patch_size, downsample)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Inverse of `dataclasses.asdict`."""
        return cls(**{**data, "stages": tuple(StageBounds(**stage) for stage in data["stages"])})

    def check(self, architecture: Architecture) -> None:
        """Raises: ValueError naming what an architecture has more of than there is."""
        own = Bounds.of([architecture])
        if (own.patch_size, own.downsample) != (self.patch_size, self.downsample):
            raise ValueError(f"shared weights are for patch_size={self.patch_size}, downsample={self.downsample}")
        pairs = [("embed_dim", own.embed_dim, self.embed_dim)]
        for number, (stage, most) in enumerate(zip(own.stages, self.stages, strict=True), start=1):
            for name in ("depth", "hi_heads", "lo_heads", "head_dim", "mlp_ratio"):
                pairs.append((f"stage {number}: {name}", getattr(stage, name), getattr(most, name)))
        for name, value, limit in pairs:
            if value > limit:
                raise ValueError(f"{name}={value} is above the {limit} that the shared weights hold")


def _stage_bounds(specs: list[tuple[StageSpec, int]]) -> StageBounds:
    """specs: of one stage, each with the stage's width."""
    attending = [(spec, dim) for spec, dim in specs if spec.window_size]
    return StageBounds(
        depth=max(spec.depth for spec, _ in specs),
        hi_heads=max((spec.num_heads - spec.lo_heads for spec, _ in attending), default=0),
        lo_heads=max((spec.lo_heads for spec, _ in attending), default=0),
        head_dim=max((dim // spec.num_heads for spec, dim in attending), default=0),
        mlp_ratio=max(spec.mlp_ratio for spec, _ in specs),
    )


class ElasticLITv2(nn.Module):
    """The networks of a space, one of them active.

    drop_path_rate: of each network when it is trained. BatchNorm keeps statistics of whatever ran in training mode:
    `recalibrate` an extracted network.
    """

    def __init__(
        self,
        bounds: Bounds,
        in_chans: int = 3,
        num_classes: int = 1000,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.bounds = bounds
        self.weights = _hull(bounds, in_chans, num_classes)
        self.drop_path_rate = drop_path_rate
        self.active: Architecture | None = None

    def activate(self, architecture: Architecture) -> None:
        """From now on compute this network. Copies no weights. Raises: ValueError if the weights do not hold it."""
        self.bounds.check(architecture)
        self.active = architecture

    def forward(self, x: Tensor) -> Tensor:
        """x: image, (B, in_chans, H, W). Returns the active network's logits, (B, num_classes)."""
        if self.active is None:
            raise RuntimeError("no network is active; call activate first")
        skeleton = self._skeleton(self.active).train(self.training)
        return cast(Tensor, functional_call(skeleton, self._share(skeleton), (x,), strict=True))

    def extract(self, architecture: Architecture) -> LITv2:
        """A plain network with a copy of its share of the weights. Raises: ValueError if they do not hold it."""
        self.bounds.check(architecture)
        with torch.device("meta"):
            network = build(architecture, **self._arguments())
        share = self._share(network)
        network.load_state_dict({name: part.detach().clone() for name, part in share.items()}, assign=True)
        return network.train(self.training)

    def _skeleton(self, architecture: Architecture) -> LITv2:
        return _skeleton(architecture, **self._arguments())

    def _arguments(self) -> dict[str, Any]:
        chans, classes = self.weights.in_chans, self.weights.num_classes
        return {"in_chans": chans, "num_classes": classes, "drop_path_rate": self.drop_path_rate}

    def _share(self, skeleton: LITv2) -> dict[str, Tensor]:
        """A network's parameters and buffers, as parts of the shared ones."""
        full = self.weights.state_dict(keep_vars=True)
        share = {}
        for name, own in skeleton.state_dict().items():
            if ".attn." in name:
                index, block = int(name.split(".")[1]), name.partition(".attn.")[0]
                attn = cast(Block, skeleton.get_submodule(block)).attn
                share[name] = attention_part(
                    full[name], name, attn, self.bounds.stages[index], skeleton.architecture.dims[index]
                )
            else:
                share[name] = full[name][tuple(map(slice, own.shape))]  # leading channels, out and in
        return share


@lru_cache(SKELETONS)
def _skeleton(architecture: Architecture, **arguments: Any) -> LITv2:
    """A network without memory for its weights."""
    with torch.device("meta"):
        return _Skeleton(**arguments_of(architecture), **arguments)


class _Skeleton(LITv2):
    """LITv2 that shares its stages with other networks, because building them takes long."""

    def make_stage(
        self, dim: int, next_dim: int | None, spec: StageSpec, drop_paths: tuple[float, ...], downsample: str
    ) -> Stage:
        return _cached_stage(dim, next_dim, spec, drop_paths, downsample)


_cached_stage = lru_cache(STAGES)(Stage)


def attention_part(full: Tensor, name: str, attn: HiLo, most: StageBounds, dim: int) -> Tensor:
    """What a network's attention takes of a shared weight or bias.

    full: rows of the query, key and value projections are (part, head, channel), columns of the output projections
    (head, channel), and their rows the map's channels: Hi-Fi heads write the first ones, Lo-Fi heads the last.
    dim: width of the network's map.
    """
    layer, kind = name.split(".")[-2:]
    heads, all_heads = (attn.hi_heads, most.hi_heads) if layer.startswith("h_") else (attn.lo_heads, most.lo_heads)
    width = heads * attn.head_dim
    if not layer.endswith("_proj"):
        rows = full.view(-1, all_heads, most.head_dim, *full.shape[1:])[:, :heads, : attn.head_dim].flatten(0, 2)
        return rows if kind == "bias" else rows[:, :dim]
    rows = full[:width] if layer == "h_proj" else full[dim - width : dim]
    return rows if kind == "bias" else rows.view(width, all_heads, most.head_dim)[:, :heads, : attn.head_dim].flatten(1)


def _hull(bounds: Bounds, in_chans: int, num_classes: int) -> LITv2:
    """All weights, under the names of a plain network: it holds them and is not run."""
    stages = tuple(StageSpec(stage.depth, mlp_ratio=stage.mlp_ratio) for stage in bounds.stages)
    hull = build(
        Architecture(bounds.embed_dim, stages, bounds.patch_size, bounds.downsample),
        in_chans=in_chans,
        num_classes=num_classes,
    )
    for dim, most, stage in zip(hull.architecture.dims, bounds.stages, hull.layers, strict=True):
        hi_dim, lo_dim = most.hi_heads * most.head_dim, most.lo_heads * most.head_dim
        sizes = {"h_qkv": (dim, 3 * hi_dim), "h_proj": (hi_dim, hi_dim)} if hi_dim else {}
        sizes |= {"l_q": (dim, lo_dim), "l_kv": (dim, 2 * lo_dim), "l_proj": (lo_dim, dim)} if lo_dim else {}
        for block in cast(Stage, stage).blocks if sizes else ():
            block.norm1 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
            block.attn = nn.ModuleDict({layer: Linear(*size) for layer, size in sizes.items()}).apply(init_weights)
    return hull


@torch.no_grad()
def recalibrate(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Give BatchNorm the mean statistics of some batches of images, (B, in_chans, H, W); the weights stay as they are."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta, was_training = [norm.momentum for norm in norms], network.training
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a mean of all batches, each alike
    network.train()
    for images in batches:
        network(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    network.train(was_training)

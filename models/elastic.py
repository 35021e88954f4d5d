"""One set of weights for every LITv2 of a search space: a supernet.

A network takes parts of the shared weights: `models/shares.py` says for each parameter which part of which shared tensor it
is. Window sizes have no weights. A `LITv2` on the meta device, without storage for its weights, is then called with these
parts in place of its parameters.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass, replace
from functools import lru_cache
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from models.architecture import NUM_STAGES, Architecture, StageSpec
from models.litv2 import LAYER_NORM_EPS, LITv2, Stage, arguments_of, build, init_weights
from models.shares import Order, SharePlan, StageBounds, share_plan

CACHED_SKELETONS = 256
CACHED_STAGES = 1024


@dataclass(frozen=True)
class Bounds:
    """Size of the smallest set of weights that holds some networks.

    Attributes:
        embed_dim: Largest width of the first stage, in channels.
        stages: Largest values of each stage.
        patch_size: Patch size of all networks, in pixels.
        downsample: Kind of downsampling of all networks.
    """

    embed_dim: int
    stages: tuple[StageBounds, ...]
    patch_size: int
    downsample: str

    @classmethod
    def of(cls, architectures: Iterable[Architecture]) -> Self:
        """Return the bounds of some networks.

        Raises:
            ValueError: If the networks differ in patch size or kind of downsampling.
        """
        networks = list(architectures)
        kinds = {(a.patch_size, a.downsample) for a in networks}
        if len(kinds) != 1:
            raise ValueError(f"networks that share weights need one patch_size and downsample, not {sorted(kinds)}")
        ((patch_size, downsample),) = kinds
        stages = tuple(_stage_bounds([(a.stages[i], a.dims[i]) for a in networks]) for i in range(NUM_STAGES))
        return cls(max(a.embed_dim for a in networks), stages, patch_size, downsample)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Build bounds from plain data, the inverse of `dataclasses.asdict`."""
        return cls(**{**data, "stages": tuple(StageBounds(**stage) for stage in data["stages"])})

    @property
    def dims(self) -> tuple[int, ...]:
        """Largest width of each stage, in channels."""
        return tuple(self.embed_dim * 2**i for i in range(NUM_STAGES))

    def union(self, other: Bounds) -> Bounds:
        """Return the bounds of weights that hold all networks of both.

        Raises:
            ValueError: If they differ in patch size or kind of downsampling.
        """
        if (self.patch_size, self.downsample) != (other.patch_size, other.downsample):
            raise ValueError(
                f"weights of patch_size={self.patch_size}, downsample={self.downsample} do not fit networks of "
                f"patch_size={other.patch_size}, downsample={other.downsample}"
            )
        stages = []
        for stages_of_both in zip(self.stages, other.stages, strict=True):
            values = zip(*(astuple(stage) for stage in stages_of_both), strict=True)
            stages.append(StageBounds(*map(max, values)))
        return replace(self, embed_dim=max(self.embed_dim, other.embed_dim), stages=tuple(stages))

    def check(self, architecture: Architecture) -> None:
        """Check that the weights hold a network.

        Raises:
            ValueError: If the network is larger in some value; the message names it.
        """
        needed = Bounds.of([architecture])
        if (needed.patch_size, needed.downsample) != (self.patch_size, self.downsample):
            raise ValueError(f"shared weights are for patch_size={self.patch_size}, downsample={self.downsample}")
        limits = [("embed_dim", needed.embed_dim, self.embed_dim)]
        for number, (stage, bounds) in enumerate(zip(needed.stages, self.stages, strict=True), start=1):
            for name in ("depth", "hi_heads", "lo_heads", "head_dim", "mlp_ratio"):
                limits.append((f"stage {number}: {name}", getattr(stage, name), getattr(bounds, name)))
        for name, value, limit in limits:
            if value > limit:
                raise ValueError(f"{name}={value} is above the {limit} that the shared weights hold")


def _stage_bounds(specs: list[tuple[StageSpec, int]]) -> StageBounds:
    """Bounds of one stage of some networks, each given with the width of the stage."""
    attending = [(spec, dim) for spec, dim in specs if spec.window_size]
    return StageBounds(
        depth=max(spec.depth for spec, _ in specs),
        hi_heads=max((spec.num_heads - spec.lo_heads for spec, _ in attending), default=0),
        lo_heads=max((spec.lo_heads for spec, _ in attending), default=0),
        head_dim=max((dim // spec.num_heads for spec, dim in attending), default=0),
        mlp_ratio=max(spec.mlp_ratio for spec, _ in specs),
    )


class ElasticLITv2(nn.Module):
    """All networks of a space, one of them active.

    Its BatchNorm statistics mix all networks that ran in training mode: `recalibrate` an extracted network.

    Args:
        bounds: Size of the weights.
        in_chans: Number of channels of the images.
        num_classes: Number of classes.
        drop_path_rate: Stochastic depth of each network in training, as in LITv2.
        order: What is important in each stage, of weights that started from those of a network; None for what comes first.

    Attributes:
        weights: The shared weights, under the names of a plain LITv2; a module that is not run.
        active: Network that `forward` computes.
    """

    def __init__(
        self,
        bounds: Bounds,
        in_chans: int = 3,
        num_classes: int = 1000,
        drop_path_rate: float = 0.0,
        order: Order | None = None,
    ) -> None:
        super().__init__()
        self.bounds = bounds
        self.order = order
        self.weights = _shared_weights(bounds, in_chans, num_classes, has_all_heads=order is not None)
        self.drop_path_rate = drop_path_rate
        self.active: Architecture | None = None

    def activate(self, architecture: Architecture) -> None:
        """Compute this network from now on; no weights are copied.

        Raises:
            ValueError: If the weights do not hold the network.
        """
        self.bounds.check(architecture)
        self.active = architecture

    def forward(self, x: Tensor) -> Tensor:
        """Classify images, (B, in_chans, H, W), by the active network. Returns logits, (B, num_classes)."""
        if self.active is None:
            raise RuntimeError("no network is active; call activate first")
        network = replace(self.active, img_size=None)  # weights do not depend on it: one skeleton serves all sizes
        skeleton, plan = _skeleton(network, self.bounds, self.order, **self._arguments())
        return cast(Tensor, functional_call(skeleton.train(self.training), self._share(plan), (x,), strict=True))

    def extract(self, architecture: Architecture) -> LITv2:
        """Return a plain network with a copy of its part of the weights.

        Raises:
            ValueError: If the weights do not hold the network.
        """
        self.bounds.check(architecture)
        with torch.device("meta"):
            network = build(architecture, **self._arguments())
        share = self._share(share_plan(network, self.bounds.stages, self.order))
        network.load_state_dict({name: part.detach().clone() for name, part in share.items()}, assign=True)
        return network.train(self.training)

    def _arguments(self) -> dict[str, Any]:
        chans, classes = self.weights.in_chans, self.weights.num_classes
        return {"in_chans": chans, "num_classes": classes, "drop_path_rate": self.drop_path_rate}

    def _share(self, plan: SharePlan) -> dict[str, Tensor]:
        """Parameters and buffers of a network, as parts of the shared tensors."""
        shared = self.weights.state_dict(keep_vars=True)
        return {name: share.of(shared[share.name]) for name, share in plan.items()}


class _Skeleton(LITv2):
    """LITv2 that shares its stages with other networks, because building them takes long."""

    make_stage = staticmethod(lru_cache(CACHED_STAGES)(Stage))


@lru_cache(CACHED_SKELETONS)
def _skeleton(architecture: Architecture, bounds: Bounds, order: Order | None, **arguments: Any) -> tuple[LITv2, SharePlan]:
    """A network without storage for its weights, and its plan."""
    with torch.device("meta"):
        skeleton = _Skeleton(**arguments_of(architecture), **arguments)
    return skeleton, share_plan(skeleton, bounds.stages, order)


def _shared_weights(bounds: Bounds, in_chans: int, num_classes: int, has_all_heads: bool) -> LITv2:
    """The largest network, built without attention; then norm1 and the weights of all heads are added to each block."""
    stages = tuple(StageSpec(stage.depth, mlp_ratio=stage.mlp_ratio) for stage in bounds.stages)
    architecture = Architecture(bounds.embed_dim, stages, bounds.patch_size, bounds.downsample)
    weights = build(architecture, in_chans=in_chans, num_classes=num_classes)
    for dim, stage_bounds, stage in zip(architecture.dims, bounds.stages, weights.layers, strict=True):
        if stage_bounds.head_dim:
            for block in cast(Stage, stage).blocks:
                block.norm1 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
                block.attn = _shared_attention(dim, stage_bounds, has_all_heads)
    return weights


def _shared_attention(dim: int, bounds: StageBounds, has_all_heads: bool) -> nn.ModuleDict:
    """Weights of the largest Hi-Fi and Lo-Fi branches, which together may have more heads than any network.

    has_all_heads: whether a branch holds every head, any of which may be in the other one, so that it writes every channel.
    """
    hi_dim, lo_dim = bounds.hi_heads * bounds.head_dim, bounds.lo_heads * bounds.head_dim
    layers = {}
    if hi_dim:
        layers["h_qkv"] = nn.Linear(dim, 3 * hi_dim)
        layers["h_proj"] = nn.Linear(hi_dim, dim if has_all_heads else min(dim, hi_dim))
    if lo_dim:
        layers["l_q"] = nn.Linear(dim, lo_dim)
        layers["l_kv"] = nn.Linear(dim, 2 * lo_dim)
        layers["l_proj"] = nn.Linear(lo_dim, dim)
    return nn.ModuleDict(layers).apply(init_weights)


@torch.no_grad()
def recalibrate(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Replace the statistics of BatchNorm by the mean of those of some batches; the weights stay as they are.

    Nothing else is in training mode meanwhile, so that neither dropout nor stochastic depth changes what is averaged.

    Args:
        network: Network whose BatchNorm layers are changed in place; all its modules keep their modes.
        batches: Images, (B, in_chans, H, W).
    """
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    modes = [(module, module.training) for module in network.modules()]
    try:
        network.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a mean over all batches, each with the same weight
            norm.train()
        for images in batches:
            network(images)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, training in modes:
            module.training = training

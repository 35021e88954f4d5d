"""LITv2: a hierarchical vision transformer of HiLo attention and convolutional feed-forward layers.

Source: "Fast Vision Transformers with HiLo Attention", Sec. 4 and appendix, arXiv 2205.13213. Parameter names are those
of the official checkpoints, which `checkpoint_filter_fn` loads. The network takes images of any size. It exports with
torch.export; TorchScript, which PyTorch has deprecated in its favour, is not supported.

Longer than other modules, as timm's are: the network, its variants and their registration read best in one place.

Shape letters: B batch, H and W map, C channels. Between the layers a map is (B, H, W, C).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, cast

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import DropPath, SelectAdaptivePool2d, calculate_drop_path_rates, trunc_normal_
from timm.models import build_model_with_cfg, checkpoint_seq, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from models.architecture import Architecture, StageSpec, count_hidden
from models.depthwise import DepthwiseConv
from models.hilo import HiLo
from models.layers import DeformConv, ImagePatchConv, PatchConv

LAYER_NORM_EPS = 1e-5  # the official code keeps torch's default


class ConvFFN(nn.Module):
    """Feed-forward layer: Linear, 3x3 depthwise convolution (which also encodes position), GELU, Linear.

    Args:
        dim: Number of channels.
        hidden_dim: Number of channels between the linear layers.
    """

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.dwconv = nn.Sequential(OrderedDict(dwconv=DepthwiseConv(hidden_dim)))  # mlp.dwconv.dwconv in checkpoints
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to the same shape."""
        return cast(Tensor, self.fc2(self.act(self.dwconv(self.fc1(x)))))


class Block(nn.Module):
    """Residual block with norms first: attention, if the stage has any, then the feed-forward layer.

    Args:
        dim: Number of channels.
        stage: Choices of the stage that the block is part of; the depth does not matter.
        drop_path: Probability of dropping a branch in training (stochastic depth), in [0, 1).
        qkv_bias: Whether the query, key and value projections have biases.
    """

    def __init__(self, dim: int, stage: StageSpec, drop_path: float = 0.0, qkv_bias: bool = True) -> None:
        super().__init__()
        self.has_attention = stage.window_size > 0
        if self.has_attention:
            self.norm1 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
            self.attn = HiLo(dim, stage.num_heads, stage.window_size, stage.alpha, qkv_bias)
        self.norm2 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.mlp = ConvFFN(dim, count_hidden(dim, stage.mlp_ratio))
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to the same shape."""
        if self.has_attention:
            x = x + self.drop_path(self.attn(self.norm1(x)))
        return cast(Tensor, x + self.drop_path(self.mlp(self.norm2(x))))


class Downsample(nn.Module):
    """Layer between stages, which halves the map and doubles its width: 2x2 stride-2 convolution, BatchNorm, GELU.

    Args:
        in_dim: Number of channels of the stage before.
        out_dim: Number of channels of the stage after.
        kind: "dtm" for the official deformable token merging, "conv" for a plain convolution of the same shape.
    """

    def __init__(self, in_dim: int, out_dim: int, kind: str) -> None:
        super().__init__()
        self.dconv = DeformConv(in_dim, out_dim) if kind == "dtm" else PatchConv(in_dim, out_dim, patch_size=2)
        self.norm_layer = nn.BatchNorm2d(out_dim)
        self.act_layer = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to (B, H // 2, W // 2, 2 * C)."""
        x = self.dconv(x).permute(0, 3, 1, 2)  # (B, C, H, W) for BatchNorm, channels last in memory: no copy
        x = self.norm_layer(x).permute(0, 2, 3, 1)  # (B, H, W, C)
        return cast(Tensor, self.act_layer(x))


class PatchEmbed(nn.Module):
    """First layer, from an image to tokens: a convolution whose stride is its kernel, then LayerNorm.

    Args:
        in_chans: Number of channels of the image.
        dim: Number of channels of the tokens.
        patch_size: Side of the patches, in pixels.
    """

    def __init__(self, in_chans: int, dim: int, patch_size: int) -> None:
        super().__init__()
        self.proj = ImagePatchConv(in_chans, dim, patch_size)
        self.norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """Map an image, (B, in_chans, H, W), to (B, H // patch_size, W // patch_size, C)."""
        return cast(Tensor, self.norm(self.proj(x)))


class Stage(nn.Module):
    """Blocks of one width and, but for the last stage, the layer that leads to the next one.

    Args:
        dim: Number of channels.
        next_dim: Number of channels of the next stage; None for the last stage.
        spec: Choices of the stage.
        drop_paths: Probability of stochastic depth of each block.
        downsample: Kind of the layer to the next stage, see `Downsample`.
        qkv_bias: Whether the query, key and value projections have biases.
    """

    def __init__(
        self,
        dim: int,
        next_dim: int | None,
        spec: StageSpec,
        drop_paths: Sequence[float],
        downsample: str,
        qkv_bias: bool = True,
    ) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(Block(dim, spec, drop_path, qkv_bias) for drop_path in drop_paths))
        self.downsample = nn.Identity() if next_dim is None else Downsample(dim, next_dim, downsample)
        self.grad_checkpointing = False

    def forward_blocks(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to the same shape by the blocks alone."""
        if self.grad_checkpointing and self.training:
            return cast(Tensor, checkpoint_seq(self.blocks, x))
        return cast(Tensor, self.blocks(x))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to the first map of the next stage, (B, H // 2, W // 2, 2 * C)."""
        return cast(Tensor, self.downsample(self.forward_blocks(x)))


class LITv2(nn.Module):
    """LITv2 for classification, and as a backbone of four maps.

    Args:
        in_chans: Number of channels of the images.
        num_classes: Number of classes; 0 for no classifier.
        embed_dim: Width of the first stage, in channels; each stage is twice as wide as the one before.
        depths: Number of blocks of each stage.
        num_heads: Number of attention heads of each stage.
        window_sizes: Window size of each stage: 0 for no attention, 1 for plain attention, s > 1 for HiLo.
        alphas: Share of Lo-Fi heads of each stage, in [0, 1].
        mlp_ratio: Hidden width of the feed-forward layers over the width of the stage, for each stage or for all.
        patch_size: Side of the patches of the image that become tokens, in pixels.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last block; it grows linearly from 0 in the first.
        downsample: Layer between stages, "dtm" or "conv", see `Downsample`.
        qkv_bias: Whether the query, key and value projections have biases.
        global_pool: "avg", or "" to leave the last map as it is.
        img_size: Side of the images that the network is for, in pixels, which its architecture records; None for any. It
            computes images of any size.

    Raises:
        ValueError: If such a network cannot be built; the message names the stage and the value.
    """

    make_stage: ClassVar[Callable[..., Stage]] = Stage  # a subclass may return one that networks share

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_sizes: Sequence[int] = (0, 0, 2, 1),
        alphas: Sequence[float] = (0.9, 0.9, 0.9, 0.9),
        mlp_ratio: float | Sequence[float] = 4.0,
        patch_size: int = 4,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        downsample: str = "dtm",
        qkv_bias: bool = True,
        global_pool: str = "avg",
        img_size: int | None = None,
    ) -> None:
        super().__init__()
        self.architecture = architecture_of(
            embed_dim, depths, num_heads, window_sizes, alphas, mlp_ratio, patch_size, downsample, img_size
        )
        dims = self.architecture.dims
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.num_features = self.head_hidden_size = dims[-1]
        self.output_fmt = "NHWC"
        self.feature_info = [
            {"num_chs": dim, "reduction": patch_size * 2**i, "module": f"layers.{i}.blocks"} for i, dim in enumerate(dims)
        ]
        self.patch_embed = PatchEmbed(in_chans, dims[0], patch_size)
        drop_paths = cast(list[list[float]], calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True))
        stages = zip(dims, (*dims[1:], None), self.architecture.stages, map(tuple, drop_paths), strict=True)
        self.layers = nn.ModuleList(self.make_stage(*arguments, downsample, qkv_bias) for arguments in stages)
        self.norm = nn.LayerNorm(dims[-1], eps=LAYER_NORM_EPS)
        self.global_pool = SelectAdaptivePool2d(pool_type=global_pool, flatten=bool(global_pool), input_fmt="NHWC")
        self.head_drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(dims[-1], num_classes) if num_classes else nn.Identity()
        self.apply(init_weights)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters without weight decay, for timm's optimizers; they leave out norms and biases themselves."""
        return set()

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that group parameters by layer, for timm's layer-wise learning rates."""
        blocks = r"^layers\.(\d+)" if coarse else [
            (r"^layers\.(\d+)\.blocks\.(\d+)", None),
            (r"^layers\.(\d+)\.downsample", (0,)),
            (r"^norm", (99999,)),
        ]  # fmt: skip
        return {"stem": r"^patch_embed", "blocks": blocks}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the blocks in the backward pass instead of storing their activations."""
        for stage in self.layers:
            cast(Stage, stage).grad_checkpointing = enable

    def get_classifier(self) -> nn.Module:
        """Return the last linear layer."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by an untrained one.

        Args:
            num_classes: Number of classes; 0 for no classifier.
            global_pool: "avg", "" to leave the last map as it is, or None to keep the present pooling.
        """
        self.num_classes = num_classes
        if global_pool is not None:
            self.global_pool = SelectAdaptivePool2d(pool_type=global_pool, flatten=bool(global_pool), input_fmt="NHWC")
        like = next(self.patch_embed.parameters())
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        self.head.to(device=like.device, dtype=like.dtype).apply(init_weights)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Compute the maps of some stages, before downsampling.

        Args:
            x: Image, (B, in_chans, H, W).
            indices: Indices of the stages; an int for the last n, None for all.
            norm: Whether to apply the final norm to the map of the last stage.
            stop_early: Whether to leave out the stages after the last chosen one.
            output_fmt: Order of the axes of the maps, "NCHW" or "NHWC".
            intermediates_only: Whether to leave out the final map.

        Returns:
            The maps alone, or the final map, (B, H, W, C), and the maps.

        Raises:
            ValueError: If `output_fmt` is neither NCHW nor NHWC.
        """
        if output_fmt not in ("NCHW", "NHWC"):
            raise ValueError(f"output_fmt={output_fmt!r} must be NCHW or NHWC")
        take, last = feature_take_indices(len(self.layers), indices)
        stages = self.layers[: last + 1] if stop_early else self.layers
        maps = []
        x = self.patch_embed(x)
        for i, stage in enumerate(stages):
            x = cast(Stage, stage).forward_blocks(x)
            final = i == len(self.layers) - 1
            if i in take:
                feature = self.norm(x) if norm and final else x
                maps.append(feature.permute(0, 3, 1, 2).contiguous() if output_fmt == "NCHW" else feature)  # (B, C, H, W)
            if final and not intermediates_only:
                x = self.norm(x)
            elif i < len(stages) - 1:
                x = cast(Stage, stage).downsample(x)
        return maps if intermediates_only else (x, maps)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove the layers that the chosen maps do not need.

        Args:
            indices: Indices of the stages; an int for the last n.
            prune_norm: Whether to remove the final norm.
            prune_head: Whether to remove the classifier.

        Returns:
            Indices of the chosen stages.
        """
        take, last = feature_take_indices(len(self.layers), indices)
        self.layers = self.layers[: last + 1]
        cast(Stage, self.layers[-1]).downsample = nn.Identity()
        if prune_norm:
            self.norm = nn.Identity()  # type: ignore[assignment]
        if prune_head:
            self.reset_classifier(0, "")
        return take

    def forward_features(self, x: Tensor) -> Tensor:
        """Compute the normalised last map.

        Args:
            x: Image, (B, in_chans, H, W).

        Returns:
            (B, H // stride, W // stride, num_features).
        """
        x = self.patch_embed(x)
        for stage in self.layers:
            x = stage(x)
        return cast(Tensor, self.norm(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Classify the last map.

        Args:
            x: Last map as `forward_features` returns it.
            pre_logits: Whether to return the pooled features instead, (B, num_features).

        Returns:
            Logits, (B, num_classes).
        """
        x = self.head_drop(self.global_pool(x))
        return x if pre_logits else cast(Tensor, self.head(x))

    def forward(self, x: Tensor) -> Tensor:
        """Classify images, (B, in_chans, H, W). Returns logits, (B, num_classes)."""
        return self.forward_head(self.forward_features(x))


def init_weights(module: nn.Module) -> None:
    """Initialise the parameters of one module as the official code does.

    Linear layers start from a truncated normal distribution, depthwise convolutions from a normal one whose variance is
    2 / fan_out, other convolutions from torch's default, offsets at zero.
    """
    if any(parameter.is_meta for parameter in module.parameters(recurse=False)):
        return  # nothing to fill, and filling meta tensors would take most of the time of building a network
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, DepthwiseConv):
        nn.init.normal_(module.weight, std=math.sqrt(2 / module.weight[0].numel()))  # fan_out: 9, one channel by itself
        nn.init.zeros_(cast(Tensor, module.bias))
    elif isinstance(module, DeformConv):
        module.reset_offset()


def architecture_of(
    embed_dim: int,
    depths: Sequence[int],
    num_heads: Sequence[int],
    window_sizes: Sequence[int],
    alphas: Sequence[float],
    mlp_ratio: float | Sequence[float],
    patch_size: int,
    downsample: str,
    img_size: int | None = None,
) -> Architecture:
    """Return the architecture that constructor arguments of LITv2 describe.

    Raises:
        ValueError: If the arguments have different lengths, or such a network cannot be built.
    """
    ratios = [mlp_ratio] * len(depths) if isinstance(mlp_ratio, int | float) else list(mlp_ratio)
    lengths = {"num_heads": num_heads, "window_sizes": window_sizes, "alphas": alphas, "mlp_ratio": ratios}
    for name, values in lengths.items():
        if len(values) != len(depths):
            raise ValueError(f"{name} has {len(values)} entries, depths has {len(depths)}; give one for each stage")
    stages = map(StageSpec, depths, window_sizes, alphas, num_heads, ratios)
    return Architecture(embed_dim, tuple(stages), patch_size, downsample, img_size)


def arguments_of(architecture: Architecture) -> dict[str, Any]:
    """Return the constructor arguments of LITv2 for an architecture, the inverse of `architecture_of`."""
    stages = architecture.stages
    return {
        "embed_dim": architecture.embed_dim,
        "depths": tuple(s.depth for s in stages),
        "num_heads": tuple(s.num_heads for s in stages),
        "window_sizes": tuple(s.window_size for s in stages),
        "alphas": tuple(s.alpha for s in stages),
        "mlp_ratio": tuple(s.mlp_ratio for s in stages),
        "patch_size": architecture.patch_size,
        "downsample": architecture.downsample,
        "img_size": architecture.img_size,
    }


def build(architecture: Architecture, **kwargs: Any) -> LITv2:
    """Build an untrained network.

    Args:
        architecture: Architecture of the network.
        **kwargs: Further arguments of LITv2, such as num_classes.
    """
    return LITv2(**arguments_of(architecture), **kwargs)


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Return the weights of an official checkpoint, which are under `model`; their names are those of LITv2."""
    for wrapper in ("model", "state_dict"):
        state_dict = state_dict.get(wrapper, state_dict)
    return state_dict


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return {
        "url": "", "num_classes": 1000, "input_size": (3, 224, 224), "pool_size": (7, 7), "crop_pct": 0.875,
        "interpolation": "bicubic", "mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD,
        "first_conv": "patch_embed.proj", "classifier": "head", "license": "apache-2.0", **kwargs,
    }  # fmt: skip


default_cfgs = generate_default_cfgs(
    {"litv2_s.untrained": _cfg(), "litv2_m.untrained": _cfg(), "litv2_b.untrained": _cfg(), "litv2.untrained": _cfg()}
)


def _create(variant: str, pretrained: bool, **kwargs: Any) -> LITv2:
    return build_model_with_cfg(
        LITv2, variant, pretrained, pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": (0, 1, 2, 3), "feature_cls": "getter"}, **kwargs,
    )  # fmt: skip


# Variants: the official configurations. They trained with drop_path_rate 0.2 (S), 0.3 (M) and 0.5 (B).
@register_model
def litv2_s(pretrained: bool = False, **kwargs: Any) -> LITv2:
    """LITv2-S: 27.8 M parameters, 3.7 GMACs at 224."""
    return _create("litv2_s", pretrained, **{"depths": (2, 2, 6, 2), **kwargs})


@register_model
def litv2_m(pretrained: bool = False, **kwargs: Any) -> LITv2:
    """LITv2-M: 48.8 M parameters, 7.5 GMACs at 224."""
    return _create("litv2_m", pretrained, **{"depths": (2, 2, 18, 2), **kwargs})


@register_model
def litv2_b(pretrained: bool = False, **kwargs: Any) -> LITv2:
    """LITv2-B: 86.5 M parameters, 13.2 GMACs at 224."""
    args = {"embed_dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32)}
    return _create("litv2_b", pretrained, **{**args, **kwargs})


@register_model
def litv2(pretrained: bool = False, architecture: Architecture | Mapping[str, Any] | None = None, **kwargs: Any) -> LITv2:
    """Any LITv2.

    Args:
        pretrained: Whether to load weights, as in timm.
        architecture: An Architecture, or the mapping that an export wrote under that name.
        **kwargs: Further arguments of LITv2.
    """
    if isinstance(architecture, Mapping):
        architecture = Architecture.from_dict(architecture)
    args = arguments_of(architecture) if architecture is not None else {}
    return _create("litv2", pretrained, **{**args, **kwargs})

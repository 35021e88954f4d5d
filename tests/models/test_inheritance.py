"""Supernets that contain a trained network."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from models.architecture import Architecture, StageSpec
from models.elastic import ElasticLITv2
from models.hilo import HiLo
from models.importance import MEASURES, importance
from models.inheritance import continued, supernet_of
from models.litv2 import LITv2, arguments_of, build
from models.shares import StageBounds
from search.space.space import Space
from tests.conftest import GOLDEN, load_golden
from tests.models.test_golden import build as build_golden
from tests.models.test_golden import error
from tests.support.networks import enliven

TOLERANCE = 1e-5  # relative to the output's largest value
GOLDEN_NETWORKS = sorted(file.stem for file in GOLDEN.glob("litv2*.safetensors"))


def golden(name: str) -> tuple[LITv2, Tensor]:
    """The network of a golden file with the official weights, and its input."""
    config, state, tensors = load_golden(name)
    network, input_size = build_golden(config)
    assert isinstance(network, LITv2)
    network.load_state_dict(state)
    return network.eval(), tensors["input"].reshape(-1, *input_size)


def space_around(architecture: Architecture, **changes: Any) -> list[Architecture]:
    """Networks of a space that has every window, alpha and depth up to one more than the network's, at three widths."""
    stages: list[dict[str, Any]] = []
    for stage, window in zip(architecture.stages, (4, 2, 2, 1), strict=True):
        heads = max(stage.num_heads, 1)
        alphas = [lo / heads for lo in range(heads + 1)]
        depths, windows = list(range(1, stage.depth + 2)), sorted({0, window, 2})
        stages.append({"depth": depths, "window_size": windows, "alpha": alphas, "num_heads": heads, "mlp_ratio": [2, 4, 6]})
    width = architecture.embed_dim
    space = Space(
        embed_dim=changes.get("embed_dim", [width // 2, width, 2 * width]),
        stages=stages,
        patch_size=architecture.patch_size,
        downsample=architecture.downsample,
    )
    return list(space.covering())


def supernet(network: LITv2, x: Tensor, networks: list[Architecture] | None = None) -> ElasticLITv2:
    scores = importance(network, "fisher", [x])
    return supernet_of(network, space_around(network.architecture) if networks is None else networks, scores, 0.0).eval()


@pytest.mark.parametrize("name", GOLDEN_NETWORKS)
@torch.no_grad()
def test_supernet_computes_what_the_network_computes(name: str) -> None:
    network, x = golden(name)
    elastic = supernet(network, x)
    elastic.activate(network.architecture)
    assert error(elastic(x), network(x)) <= TOLERANCE
    assert error(elastic.extract(network.architecture)(x), network(x)) <= TOLERANCE


@torch.no_grad()
def test_supernet_computes_what_a_new_litv2_s_computes() -> None:
    torch.manual_seed(0)
    network = build(Architecture(96, tuple(map(StageSpec, (2, 2, 6, 2), (0, 0, 2, 1), (0.9,) * 4, (3, 6, 12, 24)))))
    enliven(network)
    x = torch.randn(1, 3, 64, 64)
    narrower = replace(network.architecture, embed_dim=48)
    elastic = supernet(network.eval(), x, [narrower])
    elastic.activate(network.architecture)
    assert error(elastic(x), network(x)) <= TOLERANCE
    assert elastic.bounds.embed_dim == 96  # as wide as the network, though the space is narrower


def heads_of(attn: HiLo) -> dict[str, list[tuple[Tensor, Tensor, Tensor, Tensor]]]:
    """Weights and biases of query, key and value of each head, Hi-Fi heads first, and what each writes."""
    layers = []
    if attn.hi_heads:
        layers.append([*attn.h_qkv.weight.chunk(3), *attn.h_qkv.bias.chunk(3)])
    if attn.lo_heads:
        (key, value), (key_bias, value_bias) = attn.l_kv.weight.chunk(2), attn.l_kv.bias.chunk(2)
        layers.append([attn.l_q.weight, key, value, attn.l_q.bias, key_bias, value_bias])
    names = [f"{part} {kind}" for kind in ("weight", "bias") for part in ("query", "key", "value")]
    return {name: list(torch.cat([layer[i] for layer in layers]).split(attn.head_dim)) for i, name in enumerate(names)}


@pytest.mark.parametrize("name", GOLDEN_NETWORKS)
@torch.no_grad()
def test_heads_keep_their_identity_when_alpha_moves_them(name: str) -> None:
    """Each head has the weights that it has in the trained network, in whichever branch it is, and writes the same."""
    network, x = golden(name)
    elastic = supernet(network, x)
    for index, stage in enumerate(network.architecture.stages):
        if stage.window_size < 2:
            continue
        trained_blocks, head_dim = network.layers[index].blocks, network.architecture.dims[index] // stage.num_heads
        for lo_heads in range(stage.num_heads + 1):
            stages = list(network.architecture.stages)
            stages[index] = replace(stage, alpha=lo_heads / stage.num_heads)
            moved = elastic.extract(replace(network.architecture, stages=tuple(stages)))
            for block, expected in zip(moved.layers[index].blocks, trained_blocks, strict=True):
                assert block.attn.lo_heads == lo_heads
                weights, trained = heads_of(block.attn), heads_of(expected.attn)
                for part, heads in trained.items():
                    assert all(map(torch.equal, weights[part], heads)), part
                projections = [projection_of(attn) for attn in (block.attn, expected.attn)]
                for head in range(stage.num_heads):  # of the channels of a head, what it writes there itself
                    rows = slice(head * head_dim, (head + 1) * head_dim)
                    assert torch.equal(projections[0][rows, rows], projections[1][rows, rows])


def projection_of(attn: HiLo) -> Tensor:
    """The output projection of all heads, zero where heads of different branches do not mix."""
    branches = [getattr(attn, name).weight for name in ("h_proj", "l_proj") if hasattr(attn, name)]
    return torch.block_diag(*branches)


@torch.no_grad()
def test_moved_head_mixes_with_none_at_first() -> None:
    network, x = golden("litv2_attention_everywhere")
    elastic, index = supernet(network, x), 2
    stages = list(network.architecture.stages)
    stages[index] = replace(stages[index], alpha=0.0)  # the Lo-Fi heads become Hi-Fi heads
    (block,) = elastic.extract(replace(network.architecture, stages=tuple(stages))).layers[index].blocks
    (trained,) = network.layers[index].blocks
    size = trained.attn.hi_heads * trained.attn.head_dim
    assert trained.attn.lo_heads
    assert size
    assert not block.attn.h_proj.weight[:size, size:].any()
    assert not block.attn.h_proj.weight[size:, :size].any()
    assert block.attn.h_proj.weight[size:, size:].count_nonzero() == trained.attn.l_proj.weight.count_nonzero()


@torch.no_grad()
def test_what_the_network_lacks_changes_nothing() -> None:
    """More blocks, attention where it has none, more hidden channels."""
    network, x = golden("litv2_tiny")
    elastic = supernet(network, x)
    first, second, third, fourth = network.architecture.stages
    larger = (
        replace(first, window_size=4, depth=first.depth + 1, num_heads=1),
        replace(second, mlp_ratio=6.0),
        replace(third, depth=third.depth + 1),
        fourth,
    )
    elastic.activate(replace(network.architecture, stages=larger))
    assert error(elastic(x), network(x)) <= TOLERANCE


@pytest.mark.parametrize("measure", MEASURES)
@torch.no_grad()
def test_what_does_nothing_is_left_out_first(measure: Any) -> None:
    """Channels that no layer reads and blocks that write nothing are the first that smaller networks lack."""
    torch.manual_seed(0)
    network = build(
        Architecture(8, (StageSpec(3), StageSpec(2, 2, 0.5, 4), StageSpec(1), StageSpec(1, 1, 0.0, 4))), num_classes=7
    )
    enliven(network)
    network.eval()
    for parameter in network.layers[0].blocks[1].mlp.fc2.parameters():  # the second block changes nothing
        parameter.zero_()
    network.layers[0].blocks[0].mlp.fc2.weight[:, [0, 5, 6, 7]] = 0
    x = torch.randn(4, 3, 64, 64)
    stages = list(network.architecture.stages)
    stages[0] = replace(stages[0], depth=2, mlp_ratio=3.5)
    smaller = replace(network.architecture, stages=tuple(stages))
    elastic = supernet_of(network, [smaller], importance(network, measure, [x]), 0.0).eval()
    first, second = elastic.extract(smaller).layers[0].blocks
    assert torch.equal(second.norm2.weight, network.layers[0].blocks[2].norm2.weight)
    remaining = [channel for channel in range(32) if channel not in (0, 5, 6, 7)]
    assert torch.equal(first.mlp.fc2.weight, network.layers[0].blocks[0].mlp.fc2.weight[:, remaining])
    assert torch.equal(first.mlp.fc1.bias, network.layers[0].blocks[0].mlp.fc1.bias[remaining])


@pytest.mark.parametrize("follow", [False, True])
@torch.no_grad()
def test_narrower_networks_take_heads_with_the_channels_that_they_write(follow: bool) -> None:
    torch.manual_seed(0)
    stages = tuple(StageSpec(1, 2, 0.5, heads) for heads in (2, 4, 8, 8))
    network = build(Architecture(16, stages), num_classes=7)
    enliven(network)
    scores = importance(network.eval(), "activation", [torch.randn(2, 3, 64, 64)])
    narrow = tuple(replace(stage, num_heads=stage.num_heads // 2) for stage in stages) if follow else stages
    elastic = supernet_of(network, [Architecture(8, narrow)], scores, 0.0)
    assert elastic.order is not None
    order, head_dim = elastic.order[1], 8
    taken = sorted(order.channels[:16])
    by_head = [[channel for channel in taken if channel // head_dim == head] for head in range(4)]
    if follow:
        assert [len(channels) for channels in by_head] == [8 if head in order.heads[:2] else 0 for head in range(4)]
    else:
        assert [len(channels) for channels in by_head] == [4] * 4
        expected = scores["layers.1.channels"].view(4, 8).topk(4, dim=1).indices.sort(dim=1).values
        assert [[channel % head_dim for channel in channels] for channels in by_head] == expected.tolist()


@torch.no_grad()
def test_extracted_network_matches_the_supernet() -> None:
    network, x = golden("litv2_attention_everywhere")
    networks = space_around(network.architecture)
    elastic = supernet(network, x, networks)
    generator = torch.Generator().manual_seed(0)
    for index in torch.randperm(len(networks), generator=generator)[:30].tolist():
        elastic.activate(networks[index])
        expected = elastic.extract(networks[index])(x)
        assert error(elastic(x), expected) <= TOLERANCE
        plain = LITv2(**arguments_of(networks[index]), num_classes=10)
        assert {k: v.shape for k, v in elastic.extract(networks[index]).state_dict().items()} == {
            k: v.shape for k, v in plain.state_dict().items()
        }


@pytest.mark.parametrize("has_order", [False, True])
@torch.no_grad()
def test_supernet_that_starts_from_another_computes_what_it_computes(has_order: bool) -> None:
    network, x = golden("litv2_tiny")
    networks = space_around(network.architecture)
    elastic = supernet(network, x, networks)
    if not has_order:
        elastic = ElasticLITv2(elastic.bounds, num_classes=10).eval()
        enliven(elastic.weights)
    larger = space_around(replace(network.architecture, embed_dim=2 * network.architecture.embed_dim))
    following = continued(elastic, larger, 0.0).eval()
    assert following.bounds.embed_dim == 4 * network.architecture.embed_dim
    for architecture in [network.architecture, *networks[::17]]:
        elastic.activate(architecture)
        following.activate(architecture)
        assert error(following(x), elastic(x)) <= TOLERANCE
    for architecture in larger[::17]:
        assert following.extract(architecture)(x).isfinite().all()


def test_supernet_of_other_patches_is_refused() -> None:
    network, x = golden("litv2_tiny")
    elastic = supernet(network, x)
    with pytest.raises(ValueError, match="patch_size=4, downsample=dtm do not fit"):
        continued(elastic, [replace(network.architecture, patch_size=2)], 0.0)
    assert isinstance(elastic.bounds.stages[0], StageBounds)

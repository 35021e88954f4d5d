"""LITv2 as a network and as a timm model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.layers import create_feature_extractor, get_graph_node_names
from timm.optim import param_groups_weight_decay

from models.architecture import Architecture, StageSpec
from models.litv2 import LITv2, architecture_of, arguments_of, build
from tests.support.networks import enliven

SMALL = {"embed_dim": 8, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 4, 8)}


def small(**kwargs: Any) -> LITv2:
    model = timm.create_model("litv2", **{**SMALL, **kwargs})
    assert isinstance(model, LITv2)
    return model


def test_arguments_and_architecture_are_inverse(architecture: Architecture) -> None:
    assert architecture_of(**arguments_of(architecture)) == architecture
    assert build(architecture, in_chans=1, num_classes=3).architecture == architecture


@pytest.mark.parametrize("size", [(64, 64), (32, 96), (47, 70)])
def test_any_input_size(size: tuple[int, int]) -> None:
    assert small(num_classes=5)(torch.randn(2, 3, *size)).shape == (2, 5)


def test_one_network_takes_several_sizes() -> None:
    model = small().eval()
    assert model.forward_features(torch.randn(1, 3, 64, 96)).shape == (1, 2, 3, 64)
    assert model.forward_features(torch.randn(1, 3, 128, 32)).shape == (1, 4, 1, 64)


def test_attention_in_every_stage() -> None:
    model = small(window_sizes=(4, 2, 2, 1), alphas=(0.0, 0.5, 0.75, 1.0), downsample="conv")
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 1000)
    assert all(hasattr(stage.blocks[0], "attn") for stage in model.layers)


def test_untrained_dtm_is_a_plain_convolution() -> None:
    dtm, conv = small(downsample="dtm").eval(), small(downsample="conv").eval()
    conv.load_state_dict({k: v for k, v in dtm.state_dict().items() if "conv_offset" not in k})
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(dtm(x), conv(x))


@pytest.mark.parametrize("name", ["litv2_s", "litv2_m", "litv2_b", "litv2"])
def test_registered_with_timm(name: str) -> None:
    assert timm.is_model(name)
    config = timm.get_pretrained_cfg(name)
    assert config is not None
    assert config.input_size == (3, 224, 224)


def test_variant_takes_overrides() -> None:
    model = timm.create_model("litv2_s", depths=(1, 1, 1, 1), alphas=(0.5,) * 4, window_sizes=(0, 0, 2, 2))
    assert [s.depth for s in model.architecture.stages] == [1, 1, 1, 1]
    assert model.architecture.stages[2].lo_heads == 6


def test_projections_may_have_no_biases() -> None:
    with_biases, without = (
        {name for name, _ in timm.create_model("litv2_s", qkv_bias=bias).named_parameters()} for bias in (True, False)
    )
    assert without < with_biases
    assert {name.split("attn.")[1] for name in with_biases - without} == {"h_qkv.bias", "l_q.bias", "l_kv.bias"}


def test_generic_variant_takes_an_architecture(architecture: Architecture) -> None:
    for given in (architecture, architecture.to_dict()):
        model = timm.create_model("litv2", architecture=given, num_classes=3)
        assert model.architecture == architecture


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depths": (1, 1, 1)}, "num_heads has 4 entries, depths has 3"),
        ({"window_sizes": (0, 0, -2, 1)}, "stage 3: window_size=-2"),
        ({"alphas": (0, 0, 2.0, 0)}, "stage 3: alpha=2.0"),
        ({"num_heads": (1, 2, 5, 8)}, "stage 3: dim=32 is not divisible by num_heads=5"),
    ],
)
def test_impossible_networks_name_the_value(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**arguments)


# timm's own generic tests of a hierarchical model, on litv2_s.


@pytest.fixture(scope="module")
def litv2_s() -> LITv2:
    model = timm.create_model("litv2_s").eval()
    assert isinstance(model, LITv2)
    return model


@torch.no_grad()
def test_forward(litv2_s: LITv2) -> None:
    out = litv2_s(torch.randn(1, 3, 224, 224))
    assert out.shape == (1, 1000)
    assert not out.isnan().any()


def test_backward_reaches_every_parameter() -> None:
    model = timm.create_model("litv2_s", num_classes=42).train()
    out = model(torch.randn(2, 3, 128, 128))
    out.mean().backward()
    assert out.shape == (2, 42)
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@torch.no_grad()
def test_default_cfg(litv2_s: LITv2) -> None:
    config = litv2_s.default_cfg
    state = litv2_s.state_dict()
    assert f"{config['classifier']}.weight" in state
    assert f"{config['first_conv']}.weight" in state
    features = litv2_s.forward_features(torch.randn(1, *config["input_size"]))
    assert litv2_s.output_fmt == "NHWC"
    assert tuple(features.shape[1:3]) == tuple(config["pool_size"])
    assert features.shape[3] == litv2_s.num_features


@torch.no_grad()
def test_reset_classifier() -> None:
    model = timm.create_model("litv2_s").eval()
    x = torch.randn(1, 3, 224, 224)
    assert model.get_classifier() is model.head
    model.reset_classifier(7)
    assert model(x).shape == (1, 7)
    model.reset_classifier(0)
    assert model(x).shape == (1, model.num_features)
    model.reset_classifier(0, "")
    assert model(x).shape == (1, 7, 7, model.num_features)
    assert timm.create_model("litv2_s", num_classes=0)(x).shape == (1, model.num_features)


@torch.no_grad()
def test_features_only() -> None:
    model = timm.create_model("litv2_s", features_only=True).eval()
    maps = model(torch.randn(1, 3, 96, 128))
    assert model.feature_info.channels() == [m.shape[1] for m in maps] == [96, 192, 384, 768]
    assert model.feature_info.reduction() == [4, 8, 16, 32]
    assert [tuple(m.shape[2:]) for m in maps] == [(24, 32), (12, 16), (6, 8), (3, 4)]
    chosen = timm.create_model("litv2_s", features_only=True, out_indices=(1, 2)).eval()
    assert [m.shape[1] for m in chosen(torch.randn(1, 3, 96, 96))] == [192, 384]


@torch.no_grad()
def test_forward_intermediates(litv2_s: LITv2) -> None:
    x = torch.randn(1, 3, 96, 96)
    final, maps = litv2_s.forward_intermediates(x)
    torch.testing.assert_close(final, litv2_s.forward_features(x))
    assert [m.shape[1] for m in maps] == [96, 192, 384, 768]
    only = litv2_s.forward_intermediates(x, indices=[1], intermediates_only=True, stop_early=True)
    assert isinstance(only, list)
    torch.testing.assert_close(only[0], maps[1])
    (last,) = litv2_s.forward_intermediates(x, indices=1, norm=True, intermediates_only=True, output_fmt="NHWC")
    torch.testing.assert_close(last, final)
    with pytest.raises(ValueError, match="output_fmt='NLC'"):
        litv2_s.forward_intermediates(x, output_fmt="NLC")


@pytest.mark.parametrize(("name", "size"), [("litv2_s", 96), ("litv2", 64)])
def test_forward_and_backward_of_the_traced_model(name: str, size: int) -> None:
    """timm's tests of models traced by torch.fx: all return nodes in evaluation, and a gradient for every parameter."""
    options = {} if name == "litv2_s" else {**SMALL, "window_sizes": (4, 3, 2, 1), "alphas": (0.5,) * 4}
    model = timm.create_model(name, num_classes=11, **options)
    x = torch.randn(2, 3, size, size)
    train_nodes, eval_nodes = get_graph_node_names(model)
    assert "layers.2.blocks.1.add_1" in eval_nodes
    traced = create_feature_extractor(model.eval(), [eval_nodes[-1]])
    with torch.no_grad():
        torch.testing.assert_close(traced(x)[eval_nodes[-1]], model(x))
    traced = create_feature_extractor(model.train(), [train_nodes[-1]])
    traced(x)[train_nodes[-1]].mean().backward()
    assert [name for name, p in traced.named_parameters() if p.grad is None] == []


@torch.no_grad()
def test_maps_by_torch_fx_are_those_of_the_getter() -> None:
    options = {**SMALL, "features_only": True}
    getter = timm.create_model("litv2", **options).eval()
    traced = timm.create_model("litv2", **options, feature_cls="fx").eval()
    traced.graph_module.load_state_dict(getter.model.state_dict(), strict=False)
    x = torch.randn(1, 3, 96, 128)
    for expected, actual in zip(getter(x), traced(x), strict=True):
        torch.testing.assert_close(actual.permute(0, 3, 1, 2), expected)  # torch.fx returns maps as they are, channels last


def test_gradient_checkpointing_changes_nothing() -> None:
    model = small().train()
    x = torch.randn(2, 3, 64, 64)
    model(x).square().mean().backward()
    plain = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    model.set_grad_checkpointing()
    model(x).square().mean().backward()
    for parameter, expected in zip(model.parameters(), plain, strict=True):
        torch.testing.assert_close(parameter.grad, expected)


@pytest.mark.parametrize("coarse", [False, True])
def test_group_matcher_covers_every_parameter(coarse: bool) -> None:
    model = small()
    groups = timm.models.group_parameters(model, model.group_matcher(coarse), reverse=True)
    assert set(groups) == {name for name, _ in model.named_parameters()}
    assert groups["patch_embed.proj.weight"] == 0
    assert groups["layers.3.blocks.0.mlp.fc1.weight"] > groups["layers.0.blocks.0.mlp.fc1.weight"]


def test_no_weight_decay_leaves_norms_and_biases_to_the_optimiser() -> None:
    groups = param_groups_weight_decay(small(), 0.1)
    assert small().no_weight_decay() == set()
    assert all(p.ndim <= 1 for p in groups[0]["params"])
    assert all(p.ndim > 1 for p in groups[1]["params"])


def test_official_checkpoint_loads_through_the_local_file_overlay(tmp_path: Path) -> None:
    source = small(num_classes=10)
    torch.save({"model": source.state_dict(), "epoch": 299}, tmp_path / "official.pth")
    overlay = {"file": str(tmp_path / "official.pth"), "num_classes": 10}
    loaded = timm.create_model("litv2", pretrained=True, pretrained_cfg_overlay=overlay, num_classes=10, **SMALL)
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(loaded.eval()(x), source.eval()(x))


def test_pretrained_weights_adapt_to_other_classes_and_channels(tmp_path: Path) -> None:
    torch.save({"model": small(num_classes=10).state_dict()}, tmp_path / "official.pth")
    overlay = {"file": str(tmp_path / "official.pth"), "num_classes": 10}
    model = timm.create_model("litv2", pretrained=True, pretrained_cfg_overlay=overlay, num_classes=4, in_chans=1, **SMALL)
    assert model(torch.randn(1, 1, 64, 64)).shape == (1, 4)


def test_drop_path_grows_linearly_to_its_rate() -> None:
    model = small(drop_path_rate=0.4)
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for stage in model.layers for block in stage.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])


@torch.no_grad()
def test_exports_with_torch_export() -> None:
    """In place of TorchScript, which PyTorch has deprecated in favour of it."""
    model = small().eval()
    x = torch.randn(1, 3, 64, 64)
    exported = torch.export.export(model, (x,)).module()
    torch.testing.assert_close(exported(x), model(x))


@pytest.mark.parametrize(("downsample", "training"), [("dtm", False), ("dtm", True), ("conv", False)])
def test_exports_for_any_batch(downsample: str, training: bool) -> None:
    """No layer depends on the number of images, so an exporter keeps the range that is asked for, with gradients or not."""
    stages = {"window_sizes": (4, 2, 2, 1), "alphas": (0.0, 0.5, 0.75, 1.0)}
    model = enliven(small(**stages, downsample=downsample)).train(training)
    shapes = ({0: torch.export.Dim("batch", min=1, max=1024)},)
    with torch.set_grad_enabled(training):
        exported = torch.export.export(model, (torch.randn(2, 3, 64, 64),), dynamic_shapes=shapes)
    (batches,) = exported.range_constraints.values()
    assert (batches.lower, batches.upper) == (1, 1024)
    for num_images in (1, 3, 7):
        x = torch.randn(num_images, 3, 64, 64)
        torch.testing.assert_close(exported.module()(x), model(x))


def test_stage_without_attention_has_no_attention_parameters() -> None:
    names = [name for name, _ in build(Architecture(8, (StageSpec(1),) * 4)).named_parameters()]
    assert not any("attn" in name or "norm1" in name for name in names)

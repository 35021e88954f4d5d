"""The examples run: an exported network under RetinaNet."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from examples.detection import Backbone, build_detector, train
from models.architecture import Architecture
from models.litv2 import build


@pytest.mark.parametrize("size", [(96, 96), (70, 130)])
def test_backbone_gives_a_pyramid_at_any_size(architecture: Architecture, size: tuple[int, int]) -> None:
    maps = Backbone(architecture, None)(torch.rand(1, 3, *size))
    assert len(maps) == 5
    assert {tensor.shape[1] for tensor in maps.values()} == {64}
    heights = [tensor.shape[2] for tensor in maps.values()]
    assert heights == sorted(heights, reverse=True)


@pytest.mark.parametrize("in_chans", [1, 3])
def test_backbone_computes_what_the_trained_network_does(tmp_path: Path, architecture: Architecture, in_chans: int) -> None:
    network = build(architecture, in_chans=in_chans, num_classes=7).eval()
    save_file(network.state_dict(), tmp_path / "network.safetensors")
    backbone = Backbone(architecture, tmp_path / "network.safetensors").eval()
    grey = torch.rand(1, 1, 64, 64)
    with torch.no_grad():
        maps = backbone.features(grey.expand(-1, 3, -1, -1))
        _, expected = network.forward_intermediates(grey.expand(-1, in_chans, -1, -1))
    for tensor, other in zip(maps, expected[1:], strict=True):
        torch.testing.assert_close(tensor, other)


def test_every_parameter_of_the_detector_gets_a_gradient(architecture: Architecture) -> None:
    torch.manual_seed(0)
    model = build_detector(architecture, None, num_classes=2, img_size=96)
    (loss,) = train(model, steps=1, batch_size=4, img_size=96)
    without = [name for name, tensor in model.named_parameters() if tensor.grad is None]
    assert without == []
    assert math.isfinite(loss)

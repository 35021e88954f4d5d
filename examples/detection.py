"""Use an exported network as the backbone of RetinaNet: `python -m examples.detection outputs/NAME/pareto/trial-00003.yaml`.

timm turns the network into a feature extractor; torchvision's FPN and RetinaNet do the rest. A few steps on generated boxes
show that the detector learns. Add `--weights outputs/NAME/pareto/trial-00003.safetensors` to start from trained weights.
"""

from __future__ import annotations

import argparse
from collections import OrderedDict
from pathlib import Path
from typing import cast

import timm
import torch
from safetensors.torch import load_file
from timm.models._features import FeatureGetterNet
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelP6P7

import models.litv2  # noqa: F401 - registers the variants
from models.architecture import Architecture
from search.results import architecture_file

PYRAMID = (1, 2, 3)  # indices of stages: strides 8, 16 and 32
SIZES = tuple((size, round(size * 2 ** (1 / 3)), round(size * 2 ** (2 / 3))) for size in (16, 32, 64, 128, 256))
COLORS = torch.tensor([[0.9, 0.1, 0.1], [0.1, 0.8, 0.2]])  # of the boxes of each class


class Backbone(nn.Module):
    """Feature pyramid of a network: maps of `out_channels` channels at five strides.

    Args:
        architecture: Architecture of the network.
        weights: A .safetensors file with the weights of the network, or None for an untrained one.
        out_channels: Number of channels of the maps.
    """

    def __init__(self, architecture: Architecture, weights: Path | None, out_channels: int = 64) -> None:
        super().__init__()
        self.features = cast(
            FeatureGetterNet,
            timm.create_model("litv2", architecture=architecture, features_only=True, out_indices=PYRAMID),
        )
        if weights is not None:
            load_backbone(self.features.model, load_file(weights))
        self.out_channels = out_channels
        channels = self.features.feature_info.channels()
        self.fpn = FeaturePyramidNetwork(channels, out_channels, LastLevelP6P7(out_channels, out_channels))

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """Compute the maps of images, (B, 3, H, W); each is (B, out_channels, H // stride, W // stride)."""
        maps = self.features(images)
        pyramid: OrderedDict[str, Tensor] = self.fpn(OrderedDict((str(i), feature) for i, feature in enumerate(maps)))
        return pyramid


def load_backbone(network: nn.Module, state: dict[str, Tensor]) -> None:
    """Load the weights of a classifier of colour or grey images into a network for colour images without a head."""
    first = state["patch_embed.proj.weight"]  # (dim, in_chans, patch, patch)
    state = {**state, "patch_embed.proj.weight": first.expand(-1, 3, -1, -1) / (3 // first.shape[1])}
    network.load_state_dict({name: state[name] for name in network.state_dict()})


def build_detector(architecture: Architecture, weights: Path | None, num_classes: int, img_size: int) -> RetinaNet:
    """Build RetinaNet for square images on a network."""
    anchors = AnchorGenerator(SIZES, ((0.5, 1.0, 2.0),) * len(SIZES))
    return RetinaNet(
        Backbone(architecture, weights), num_classes, min_size=img_size, max_size=img_size, anchor_generator=anchors
    )


def draw_boxes(count: int, img_size: int, generator: torch.Generator) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Draw images of noise, (3, H, W), with one coloured box each.

    Returns:
        The images, and the targets of RetinaNet: boxes (1, 4) as left, top, right, bottom and labels (1,).
    """
    images, targets = [], []
    for _ in range(count):
        image = 0.3 * torch.rand(3, img_size, img_size, generator=generator)
        left, top = (int(torch.randint(0, img_size // 2, (), generator=generator)) for _ in range(2))
        width, height = (int(torch.randint(img_size // 6, img_size // 2, (), generator=generator)) for _ in range(2))
        label = int(torch.randint(0, len(COLORS), (), generator=generator))
        image[:, top : top + height, left : left + width] = COLORS[label][:, None, None]
        box = torch.tensor([[left, top, left + width, top + height]], dtype=torch.float32)
        images.append(image)
        targets.append({"boxes": box, "labels": torch.tensor([label])})
    return images, targets


def train(model: RetinaNet, steps: int, batch_size: int, img_size: int, seed: int = 0) -> list[float]:
    """Train on generated boxes. Returns the loss of each step."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    model.train()
    for _ in range(steps):
        loss = sum(model(*draw_boxes(batch_size, img_size, generator)).values())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arch", type=Path, help="an exported architecture, a YAML file")
    parser.add_argument("--weights", type=Path, help="a .safetensors file that search.train wrote")
    parser.add_argument("--img-size", type=int, default=128, help="side of the generated images, in pixels")
    parser.add_argument("--steps", type=int, default=40)
    options = parser.parse_args()
    torch.manual_seed(0)
    architecture, _ = architecture_file.read(options.arch)
    model = build_detector(architecture, options.weights, len(COLORS), options.img_size)
    losses = train(model, options.steps, 4, options.img_size)
    print(f"loss of the first step {losses[0]:.3f}, of the last {losses[-1]:.3f}")


if __name__ == "__main__":
    main()

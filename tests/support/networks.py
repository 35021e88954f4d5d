"""Small networks that together have every kind of layer."""

from __future__ import annotations

import torch
from torch import nn

from models.architecture import Architecture, StageSpec
from models.litv2 import LITv2

NETWORKS = [
    Architecture(8, (StageSpec(2, 0), StageSpec(1, 0), StageSpec(2, 2, 0.9, 4), StageSpec(1, 1, 1.0, 8)), 4, "dtm"),
    Architecture(
        8, (StageSpec(1, 4, 0.5, 2), StageSpec(1, 2, 0.0, 2), StageSpec(1, 2, 1.0, 4), StageSpec(2, 2, 0.5, 8)), 4, "conv"
    ),
    Architecture(
        12, (StageSpec(1, 1, 1.0, 1), StageSpec(1, 3, 0.5, 2, 2.0), StageSpec(1, 2, 0.5, 2), StageSpec(1, 0)), 2, "dtm"
    ),
]


def enliven(model: LITv2) -> LITv2:
    """Change parameters and statistics that start as zero or one, so that every operator has an effect."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 or "conv_offset" in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.5)  # type: ignore[union-attr]
                module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    return model

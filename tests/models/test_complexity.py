"""Costs equal the authors' table, of arXiv 2205.13213 and the official repository."""

from __future__ import annotations

from dataclasses import replace

import pytest
import timm
import torch

import models.litv2  # noqa: F401 - registers the variants
from models.complexity import cost, count_macs, count_params
from models.litv2 import build
from search.space.space import Space

VARIANTS = {"litv2_s": (27.844, 3.734), "litv2_m": (48.830, 7.479), "litv2_b": (86.521, 13.194)}
BY_ALPHA = {
    0.0: (28.090, 3.97), 0.2: (27.844, 3.88), 0.4: (27.697, 3.82), 0.5: (27.647, 3.77),
    0.7: (27.697, 3.74), 0.9: (27.844, 3.73), 1.0: (28.090, 3.746),
}  # fmt: skip


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_match_the_table(name: str) -> None:
    params, macs = VARIANTS[name]
    with torch.device("meta"):
        model = timm.create_model(name)
    assert count_params(model) / 1e6 == pytest.approx(params, rel=1e-3)
    assert count_macs(model, (3, 224, 224)) / 1e9 == pytest.approx(macs, rel=1e-2)


@pytest.mark.parametrize("alpha", BY_ALPHA)
def test_alphas_match_the_table(alpha: float) -> None:
    params, macs = BY_ALPHA[alpha]
    with torch.device("meta"):
        model = timm.create_model("litv2_s", alphas=(alpha,) * 4)
    assert count_params(model) / 1e6 == pytest.approx(params, rel=1e-3)
    assert count_macs(model, (3, 224, 224)) / 1e9 == pytest.approx(macs, rel=1e-2)


def test_large_images_match_the_readme() -> None:
    with torch.device("meta"):
        model = timm.create_model("litv2_b")
    assert count_macs(model, (3, 384, 384)) / 1e9 == pytest.approx(39.7, rel=1e-2)


def test_counting_leaves_the_model_alone() -> None:
    model = timm.create_model("litv2", embed_dim=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1)).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    count_macs(model, (3, 64, 64))
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


SPACE = Space(
    embed_dim=[8, 16],
    stages=[
        {"depth": [1, 3], "window_size": [0, 1, 2, 4], "alpha": [0.0, 0.5, 1.0], "num_heads": [2, 4], "mlp_ratio": [2, 4]}
    ]
    * 4,
    patch_size=4,
    downsample="dtm",
)


@pytest.mark.parametrize(("in_chans", "num_classes", "img_size"), [(3, 10, 64), (1, 7, 77)])
def test_cost_from_blocks_equals_that_of_the_whole_network(in_chans: int, num_classes: int, img_size: int) -> None:
    for number in range(20):
        architecture = SPACE.sample([number])
        with torch.device("meta"):
            model = build(architecture, in_chans=in_chans, num_classes=num_classes)
        expected = count_params(model), count_macs(model, (in_chans, img_size, img_size))
        assert cost(architecture, in_chans, num_classes, img_size) == expected
        assert cost(replace(architecture, img_size=img_size), in_chans, num_classes, 224) == expected

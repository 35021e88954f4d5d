"""Searches that start from a checkpoint of LITv2-S: in its own space, and in that for photos."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models.litv2 import LITv2
from search.accuracy.initial_weights import InitialWeights
from search.commands.cli import build
from search.space.space import Space
from tests.models.test_golden import error
from tests.search.accuracy.test_initial_weights import Images, outputs
from tests.search.commands.test_conf import compose
from tests.support.networks import enliven

TASK = Images(in_chans=3, num_classes=1000)


@pytest.fixture(scope="module")
def published() -> LITv2:
    """LITv2-S with random weights, none of which is zero."""
    torch.manual_seed(0)
    return enliven(LITv2()).eval()


@pytest.fixture(scope="module")
def weights(published: LITv2, tmp_path_factory: pytest.TempPathFactory) -> InitialWeights:
    """The same, read from a file as the authors write it."""
    file = tmp_path_factory.mktemp("weights") / "litv2_s.pth"
    torch.save({"model": published.state_dict()}, file)
    return InitialWeights.read(file)


def images() -> Tensor:
    return torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def space_of(name: str) -> Space:
    space: Space = build(compose(f"space={name}").space)
    return space


@pytest.mark.parametrize("name", ["litv2_s", "photos"])
def test_supernet_of_the_space_contains_the_checkpoint(name: str, published: LITv2, weights: InitialWeights) -> None:
    space = space_of(name)
    elastic = weights.supernet(list(space.covering()), TASK, [images()], 0.0)
    assert error(outputs(elastic.extract(published.architecture), images()), outputs(published, images())) <= 1e-5
    for network in (space.smallest(), space.anchor(), space.largest()):
        assert outputs(elastic.extract(network), images()).isfinite().all()


def test_narrower_networks_take_whole_heads_of_the_checkpoint(published: LITv2, weights: InitialWeights) -> None:
    space = space_of("litv2_s")
    elastic = weights.supernet(list(space.covering()), TASK, [images()], 0.0)
    narrow = elastic.extract(space.architecture(space.baselines()["LITv2 pattern, width 32"]))
    for taken, whole in zip(narrow.layers[3].blocks, published.layers[3].blocks, strict=True):
        for layer in ("l_q", "l_kv"):
            heads, trained = (getattr(block.attn, layer).bias.view(-1, 32) for block in (taken, whole))
            assert len(heads) < len(trained)
            assert all((head == trained).all(1).any() for head in heads)

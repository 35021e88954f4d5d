"""Networks that share one set of weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.architecture import Architecture, StageSpec
from models.elastic import Bounds, ElasticLITv2, recalibrate
from models.litv2 import build
from search.space.space import Space
from tests.support.networks import enliven

STAGES = [
    {"depth": [1, 3], "window_size": [0, 2, 4], "alpha": [0.0, 0.5, 1.0], "num_heads": [1, 2], "mlp_ratio": [2, 4]},
    {"depth": [1, 2], "window_size": [0, 1, 2], "alpha": [0.0, 0.25, 0.75, 1.0], "num_heads": [2, 4], "mlp_ratio": 3},
    {"depth": [2, 4], "window_size": [1, 2], "alpha": [0.0, 0.5, 1.0], "num_heads": [4, 8]},
    {"depth": [1, 2], "window_size": 0, "alpha": 0.9, "num_heads": 8},
]
SPACES = {
    "convolution": Space(embed_dim=[8, 16], stages=STAGES, patch_size=4, downsample="conv"),
    "deformable": Space(
        embed_dim=[8, 12, 16], stages=[{**s, "num_heads": 2} for s in STAGES], patch_size=2, downsample="dtm"
    ),
}

PLAIN = StageSpec(1, mlp_ratio=2)


@pytest.fixture(params=SPACES)
def space(request: pytest.FixtureRequest) -> Space:
    return SPACES[request.param]


def supernet(space: Space) -> ElasticLITv2:
    elastic = ElasticLITv2(Bounds.of(space.covering()), in_chans=1, num_classes=7)
    enliven(elastic.weights)
    return elastic


def images(count: int = 2, side: int = 32) -> Tensor:
    return torch.rand(count, 1, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("training", [False, True])
def test_extracted_network_matches_supernet(space: Space, training: bool) -> None:
    elastic = supernet(space).train(training)
    for number in range(50):  # of each space and mode: 200 in all
        architecture = space.sample([number])
        elastic.activate(architecture)
        with torch.no_grad():
            expected = elastic.extract(architecture)(images())
            torch.testing.assert_close(elastic(images()), expected, rtol=1e-6, atol=1e-6)


def test_extracted_network_is_a_plain_one(space: Space) -> None:
    architecture = space.largest()
    extracted = supernet(space).extract(architecture)
    plain = build(architecture, in_chans=1, num_classes=7)
    assert type(extracted) is type(plain)
    assert {k: v.shape for k, v in extracted.state_dict().items()} == {k: v.shape for k, v in plain.state_dict().items()}


def test_extracted_network_has_weights_of_its_own(space: Space) -> None:
    elastic = supernet(space)
    before = {name: tensor.clone() for name, tensor in elastic.state_dict().items()}
    extracted = elastic.extract(space.sample([0], "smallest"))
    with torch.no_grad():
        for parameter in extracted.parameters():
            parameter.add_(1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in elastic.state_dict().items())


def test_networks_share_their_weights(space: Space) -> None:
    """A step for one network is a step for the others."""
    elastic = supernet(space).train()
    elastic.activate(space.sample([0], "smallest"))
    elastic(images(8)).square().sum().backward()
    with torch.no_grad():
        for parameter in elastic.parameters():
            if parameter.grad is not None:
                parameter.sub_(0.1 * parameter.grad)
    small = elastic.extract(space.sample([0], "smallest"))
    large = elastic.extract(space.largest())
    width = space.sample([0], "smallest").embed_dim
    assert torch.equal(large.patch_embed.proj.weight[:width], small.patch_embed.proj.weight)


def test_statistics_follow_the_network_that_ran(space: Space) -> None:
    elastic = supernet(space).train()
    architecture = space.sample([0], "smallest")
    elastic.activate(architecture)
    before = elastic.extract(architecture).layers[0].downsample.norm_layer.running_mean.clone()
    elastic(images(8))
    assert not torch.equal(elastic.extract(architecture).layers[0].downsample.norm_layer.running_mean, before)


def test_recalibrated_statistics_are_those_of_the_batches(space: Space) -> None:
    network = supernet(space).extract(space.largest()).eval()
    weights = {name: parameter.clone() for name, parameter in network.named_parameters()}
    batches = [images(8), 2 * images(8)]
    recalibrate(network, batches)
    seen: list[Tensor] = []
    norm = network.layers[0].downsample.norm_layer
    norm.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].mean((0, 2, 3))))
    with torch.no_grad():
        for batch in batches:
            network(batch)  # up to the first norm nothing depends on statistics
    torch.testing.assert_close(norm.running_mean, torch.stack(seen).mean(0), rtol=1e-4, atol=1e-5)
    assert not network.training
    assert all(torch.equal(parameter, weights[name]) for name, parameter in network.named_parameters())
    assert all(m.momentum == nn.BatchNorm2d(1).momentum for m in network.modules() if isinstance(m, nn.BatchNorm2d))


def test_stochastic_depth_does_not_change_recalibrated_statistics(space: Space) -> None:
    architecture = space.sample([0], "largest")
    elastic = supernet(space)
    statistics = []
    for rate in (0.0, 0.9):
        elastic.drop_path_rate = rate
        network = elastic.extract(architecture).train()
        recalibrate(network, [images(8)])
        statistics.append(network.layers[2].downsample.norm_layer.running_mean)
    assert torch.equal(*statistics)


def test_modes_are_restored_after_an_error(space: Space) -> None:
    network = supernet(space).extract(space.largest()).train()
    network.layers[0].eval()
    network.layers[1].downsample.norm_layer.eval()
    before = {name: module.training for name, module in network.named_modules()}
    with pytest.raises(RuntimeError):
        recalibrate(network, [images(8), torch.zeros(1, 3, 32, 32)])
    assert {name: module.training for name, module in network.named_modules()} == before
    assert all(m.momentum == nn.BatchNorm2d(1).momentum for m in network.modules() if isinstance(m, nn.BatchNorm2d))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embed_dim": 64}, "embed_dim=64 is above the 16"),
        ({"downsample": "dtm"}, "downsample=conv"),
        ({"stages": (StageSpec(9, mlp_ratio=2), *[PLAIN] * 3)}, "stage 1: depth=9 is above the 3"),
        ({"stages": (*[PLAIN] * 3, StageSpec(1, 1, 1.0, 4))}, "stage 4: lo_heads=4 is above the 0"),
        ({"stages": (StageSpec(1, mlp_ratio=8.0), *[PLAIN] * 3)}, "stage 1: mlp_ratio=8.0 is above the 4"),
    ],
)
def test_network_beyond_the_weights_is_refused(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"embed_dim": 8, "stages": (PLAIN,) * 4, "patch_size": 4, "downsample": "conv", **change}
    elastic = supernet(SPACES["convolution"])
    for use in (elastic.activate, elastic.extract):
        with pytest.raises(ValueError, match=message):
            use(Architecture(**arguments))


def test_networks_of_unlike_kinds_cannot_share() -> None:
    with pytest.raises(ValueError, match="one patch_size and downsample"):
        Bounds.of([SPACES["convolution"].largest(), SPACES["deformable"].largest()])


def test_no_active_network_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="call activate"):
        supernet(SPACES["convolution"])(images())

"""Weights to start from: what is read from which file, what is adapted, and what is refused."""

from __future__ import annotations

import argparse
import pickle
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from models.architecture import Architecture, StageSpec
from models.elastic import Bounds, ElasticLITv2
from models.litv2 import LITv2, arguments_of, build
from search import UserError
from search.accuracy.initial_weights import PUBLISHED, InitialWeights
from search.accuracy.trained_supernet import TrainedSupernet
from search.training.files import save_weights
from search.training.normalisation import Normalisation
from tests.support.networks import NETWORKS, enliven

COLOURS = Normalisation((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


@dataclass
class Images:
    in_chans: int = 3
    num_classes: int = 7


def network(architecture: Architecture = NETWORKS[1], **options: Any) -> LITv2:
    torch.manual_seed(0)
    return enliven(build(architecture, **{"in_chans": 3, "num_classes": 7, **options})).eval()


def images(channels: int = 3) -> Tensor:
    return torch.rand(2, channels, 32, 32, generator=torch.Generator().manual_seed(0))


def outputs(model: LITv2, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model.eval()(x)


@pytest.mark.parametrize("architecture", NETWORKS)
def test_network_of_search_train_is_read(tmp_path: Path, architecture: Architecture) -> None:
    trained, file = network(architecture), tmp_path / "trial-00003.safetensors"
    save_weights(trained, COLOURS, file)
    weights = InitialWeights.read(file)
    assert weights.normalisation_for(3) == COLOURS
    started = weights.network(architecture, Images(), [], 0.0)
    assert started.architecture.key == architecture.key
    assert torch.equal(outputs(started, images()), outputs(trained, images()))


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("wrapper", ["model", "state_dict", None])
def test_official_checkpoint_is_recognised(tmp_path: Path, name: str, wrapper: str | None) -> None:
    with torch.device("meta"):
        shapes = LITv2(**PUBLISHED[name]).state_dict()
    state = {key: torch.zeros(()).expand(tensor.shape) for key, tensor in shapes.items()}  # a few bytes in the file
    if wrapper == "state_dict":
        state = {f"module.{key}": tensor for key, tensor in state.items()}
    file = tmp_path / "litv2.pth"
    torch.save({wrapper: state, "args": argparse.Namespace(lr=1)} if wrapper else state, file)
    weights = InitialWeights.read(file)
    assert isinstance(weights.weights, LITv2)
    depths = tuple(stage.depth for stage in weights.weights.architecture.stages)
    assert depths == PUBLISHED[name].get("depths", (2, 2, 6, 2))
    assert weights.normalisation == Normalisation.imagenet(3)
    assert name in weights.name


def test_supernet_of_an_earlier_study_is_read(tmp_path: Path) -> None:
    elastic = ElasticLITv2(Bounds.of(NETWORKS[1:2]), in_chans=3, num_classes=7)
    enliven(elastic.weights)
    file = tmp_path / "supernet.safetensors"
    TrainedSupernet(elastic, torch.zeros(2, 3, 32, 32, dtype=torch.uint8), COLOURS).save(file)
    weights = InitialWeights.read(file)
    assert weights.normalisation == COLOURS
    following = weights.supernet(NETWORKS[1:2], Images(num_classes=5), [], 0.0)
    share, old = (each.extract(NETWORKS[1]) for each in (following, elastic))
    assert share.head.weight.shape[0] == 5
    assert all(torch.equal(share.state_dict()[key], tensor) for key, tensor in old.state_dict().items() if "head" not in key)


def test_head_is_replaced_and_first_convolution_adapted(tmp_path: Path) -> None:
    trained, file = network(), tmp_path / "network.safetensors"
    save_weights(trained, COLOURS, file)
    weights, grey = InitialWeights.read(file), Images(in_chans=1, num_classes=4)
    started = weights.network(NETWORKS[1], grey, [], 0.0)
    assert started.head.weight.shape == (4, 64)
    torch.testing.assert_close(started.patch_embed.proj.weight, trained.patch_embed.proj.weight.sum(1, keepdim=True))
    assert weights.normalisation_for(1) == Normalisation((0.2,), (0.5,))
    same = [key for key in trained.state_dict() if not key.startswith(("head", "patch_embed.proj.weight"))]
    assert all(torch.equal(started.state_dict()[key], trained.state_dict()[key]) for key in same)
    line = weights.summary(grey, Bounds.of(NETWORKS[1:2]))
    assert "its head for 7 classes is left out, and one for 4 classes is new" in line
    assert "the first convolution is adapted from 3 to 1 channels" in line
    assert "\n" not in line


def test_grey_weights_see_a_grey_image_in_colours_as_before(tmp_path: Path) -> None:
    trained, file = network(in_chans=1), tmp_path / "network.safetensors"
    save_weights(trained, Normalisation((0.4,), (0.3,)), file)
    weights = InitialWeights.read(file)
    started = weights.network(NETWORKS[1], Images(), [], 0.0)
    torch.testing.assert_close(outputs(started, images(1).expand(-1, 3, -1, -1)), outputs(trained, images(1)))
    assert weights.normalisation_for(3) == Normalisation((0.4,) * 3, (0.3,) * 3)


def test_other_network_starts_from_its_share(tmp_path: Path) -> None:
    architecture = NETWORKS[1]
    trained, file = network(architecture), tmp_path / "network.safetensors"
    save_weights(trained, COLOURS, file)
    first, *others = architecture.stages
    deeper = replace(architecture, stages=(replace(first, depth=first.depth + 1), *others))
    narrower = replace(architecture, embed_dim=4)
    weights = InitialWeights.read(file)
    started = weights.network(deeper, Images(), [images()], 0.1)
    torch.testing.assert_close(outputs(started, images()), outputs(trained, images()))  # what is new changes nothing
    assert weights.network(narrower, Images(), [images()], 0.0).patch_embed.proj.weight.shape[0] == 4
    line = weights.summary(Images(), Bounds.of([deeper, replace(architecture, embed_dim=16)]))
    assert "new: 1 more block(s) in stage 1, the channels beyond width 8" in line


def test_half_precision_is_read_as_float(tmp_path: Path) -> None:
    trained, file = network(), tmp_path / "network.safetensors"
    save_weights(trained.half(), COLOURS, file)
    weights = InitialWeights.read(file)
    assert isinstance(weights.weights, LITv2)
    assert weights.weights.head.weight.dtype == torch.float32


class Code:
    """What runs when it is unpickled."""

    def __reduce__(self) -> Any:
        return (print, ("hacked",))


def write_text(file: Path) -> None:
    file.write_text("this is not a checkpoint\n", encoding="utf-8")


def write_code(file: Path) -> None:
    torch.save({"model": Code()}, file)


def write_pickle(file: Path) -> None:
    file.write_bytes(pickle.dumps([1, 2, 3]))


def write_other_model(file: Path) -> None:
    torch.save({"model": {"conv1.weight": torch.zeros(8, 3, 7, 7)}}, file)


def write_unknown_variant(file: Path) -> None:
    torch.save(build(NETWORKS[0]).state_dict(), file)


def write_broken(file: Path) -> None:
    file.write_bytes(b"PK\x03\x04 torn")


def write_empty(file: Path) -> None:
    file.touch()


def write_not_finite(file: Path) -> None:
    state = LITv2().state_dict()
    state["norm.weight"][0] = float("nan")
    torch.save(state, file)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (write_text, "does not hold weights that can be read"),
        (write_code, "does not hold weights that can be read"),
        (write_pickle, "does not hold weights"),
        (write_other_model, "does not hold weights of a LITv2: it has no convolution patch_embed.proj.weight"),
        (write_unknown_variant, "does not say of which network its weights are"),
        (write_broken, "does not hold weights that can be read"),
        (write_empty, "does not hold weights that can be read"),
        (write_not_finite, r"not finite \(norm.weight\)"),
    ],
)
def test_what_fits_nothing_is_refused(tmp_path: Path, write: Any, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "weights.pth"
    write(file)
    with pytest.raises(UserError, match=message) as refused:
        InitialWeights.read(file)
    assert str(file) in str(refused.value)
    assert "\n" not in str(refused.value)
    assert "hacked" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["missing.pth", "trial-00003.yaml", "torn.safetensors"])
def test_file_that_holds_no_weights_is_named(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    if name != "missing.pth":
        file.write_text("torn", encoding="utf-8")
    with pytest.raises(UserError, match=name):
        InitialWeights.read(file)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    save_file(network(NETWORKS[2]).state_dict(), file)
    with pytest.raises(UserError, match="does not hold weights of this network"):
        InitialWeights.read(file, NETWORKS[1])
    save_file(network().state_dict(), file)  # those of the network itself need no description
    assert torch.equal(outputs(InitialWeights.read(file, NETWORKS[1]).network(NETWORKS[1], Images(), [], 0.0), images()),
                       outputs(network(), images()))  # fmt: skip


def test_networks_of_another_kind_are_refused_with_the_remedy(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    save_weights(network(NETWORKS[0]), COLOURS, file)
    with pytest.raises(UserError, match="set space.patch_size=4 space.downsample=dtm"):
        InitialWeights.read(file).supernet(NETWORKS[1:2], Images(), [], 0.0)


def test_equal_weights_give_equal_files(tmp_path: Path) -> None:
    contents = []
    for number in range(4):
        save_weights(network(), COLOURS, tmp_path / f"{number}.safetensors")
        contents.append((tmp_path / f"{number}.safetensors").read_bytes())
    assert len(set(contents)) == 1


def test_arguments_of_published_networks_are_those_of_their_variants() -> None:
    with torch.device("meta"):
        assert arguments_of(LITv2(**PUBLISHED["LITv2-B"]).architecture)["num_heads"] == (4, 8, 16, 32)
    assert StageSpec(1).window_size == 0

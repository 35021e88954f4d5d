"""Every file under conf/ is composed and builds what it names."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from importlib.util import find_spec
from typing import Any

import hydra
import optuna
import pytest
import torch
from omegaconf import DictConfig

from models.complexity import cost
from models.litv2 import LITv2
from search import UserError
from search.commands.cli import build, conf_dir, plain
from search.engine.workers import WorkerEngine
from search.latency.base import LatencyTarget
from search.space.space import Space
from search.study.storage import quiet_experimental
from search.training.augmentation import ShiftAndFlip
from search.training.recipe import Recipe
from search.training.schedule import epochs_within
from search.training.task import TrainSettings
from tests.support.commands import ROOT

CONF = conf_dir()


NEEDED = {
    "ssh": ["latency.host=127.0.0.1", "latency.port=1"],
    "postgresql": ["storage.url=postgresql://me@localhost/studies"],
}
"""What has no default."""


def files(group: str) -> list[str]:
    return sorted(file.stem for file in (CONF / group).glob("*.yaml"))


def compose(*overrides: str, name: str = "config") -> DictConfig:
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose(name, list(overrides))


@pytest.mark.parametrize("name", files("space"))
def test_space(name: str) -> None:
    space = build(compose(f"space={name}").space)
    assert isinstance(space, Space)
    assert space.num_architectures() > 1000
    assert space.baselines()


def test_default_space_varies_width_and_attention() -> None:
    config = compose("+search=cpu_latency")
    space: Space = build(config.space)
    assert min(space.network["embed_dim"]) == 8
    assert max(space.network["embed_dim"]) == 24
    side = config.data.img_size // config.space.patch_size
    for stage in config.space.stages:
        assert 0 in stage.window_size, "a stage may do without attention"
        assert 1 < max(stage.window_size) <= side or side == 2, "and has windows that fit its map"
        side //= 2


def test_litv2_s_is_a_network_of_its_space() -> None:
    space: Space = build(compose("space=litv2_s").space)
    published = space.architecture(space.baselines()["LITv2 pattern, width 96"])
    with torch.device("meta"):
        assert published.key == LITv2().architecture.key
    macs = [cost(network, in_chans=3, num_classes=1000, img_size=224)[1] for network in (space.smallest(), published)]
    assert macs[0] < macs[1] / 20


@pytest.mark.parametrize(("name", "head_dim"), [("litv2_s", 32), ("photos", 16)])
def test_narrower_networks_have_fewer_heads_of_the_same_width(name: str, head_dim: int) -> None:
    space: Space = build(compose(f"space={name}").space)
    assert space.downsample == "dtm"  # as in the authors' checkpoints
    for network in space.covering():
        for stage, dim in zip(network.stages, network.dims, strict=True):
            assert not stage.window_size or stage.num_heads * head_dim == dim


@pytest.mark.parametrize("img_size", range(96, 225, 32))
def test_windows_for_photos_divide_their_maps(img_size: int) -> None:
    config = compose("space=photos").space
    side = img_size // config.patch_size
    for stage in config.stages:
        assert all(window <= side and side % window == 0 for window in stage.window_size if window)
        side //= 2


def test_search_for_photos_fits_any_number_of_them() -> None:
    config = compose("+search=photos", "data.source.path=photos")
    assert config.space == compose("space=photos").space
    train: TrainSettings = build(config.train)
    for num_images, epochs in ((1_000, 40), (10_000, 4), (50_000, 1)):
        num_train = num_images - min(num_images // 5, 5_000)
        assert epochs_within(train.max_epochs, train.max_steps, num_train // train.batch_size) == epochs


@pytest.mark.parametrize(
    ("overrides", "name", "runtime"),
    [
        ((), "config", "onnxruntime"),
        (("+search=cpu_latency",), "config", "onnxruntime"),
        (("+search=onnx_latency",), "config", "onnxruntime"),
        (("+search=eager_latency",), "config", "cpu"),
        (("+search=cpu_latency", "latency=cpu"), "config", "cpu"),
        ((), "export", "onnxruntime"),
        ((), "measure", "onnxruntime"),
    ],
)
def test_latency_is_that_of_the_deployed_form_unless_another_is_chosen(
    overrides: tuple[str, ...], name: str, runtime: str
) -> None:
    latency = compose(*overrides, name=name).latency
    assert latency._target_ == f"search.latency.{runtime}.{runtime}_target"
    assert latency.num_threads == 1


@pytest.mark.parametrize("name", files("data"))
def test_data(name: str) -> None:
    overrides = [f"data={name}", *(["data.source.path=/no/such"] if name in ("imagefolder", "parquet", "idx") else [])]
    config = compose(*overrides).data
    assert config.name == name
    assert callable(build(config.source))
    assert set(config) == {
        "_target_", "name", "source", "img_size", "in_chans", "train_size", "val_size", "seed", "shift", "flip",
        "augment", "cache", "cache_folder",
    }  # fmt: skip


@pytest.mark.parametrize("name", files("augment"))
@pytest.mark.parametrize("entry", ["config", "train", "check", "confirm"])
def test_augment(name: str, entry: str) -> None:
    config = compose(f"augment={name}", "data=cifar10", name=entry)
    assert build(config.data.augment) == build(config.augment)
    expected = {"none": ShiftAndFlip(0, False), "light": ShiftAndFlip(4, True)}
    assert build(config.augment) == expected.get(name, build(config.augment))
    assert build(config.augment).flip == (name != "none")


@pytest.mark.parametrize("name", files("train"))
def test_train(name: str) -> None:
    assert isinstance(build(compose(f"train={name}").train), TrainSettings)


@pytest.mark.parametrize("name", files("recipe"))
def test_recipe(name: str) -> None:
    recipe = build(compose(f"recipe={name}", name="train").recipe)
    assert isinstance(recipe, Recipe)
    json.dumps(asdict(recipe))  # plain data, for reports


@pytest.mark.parametrize("name", files("latency"))
def test_latency(name: str) -> None:
    config = plain(compose(f"latency={name}", *NEEDED.get(name, [])).latency)
    assert [config.pop(key) for key in ("budget_ms", "budget_on", "devices", "objectives")] == [None, "estimate", {}, "all"]
    make = build(config)
    if name == "cuda" and not torch.cuda.is_available():
        with pytest.raises(ValueError, match="needs an NVIDIA GPU"):
            make(img_size=32, in_chans=1, num_classes=10)
        return
    if name == "executorch" and find_spec("executorch") is None:
        with pytest.raises(ValueError, match=r"latency=executorch needs the package executorch.*hilo-nas\[executorch\]"):
            make(img_size=32, in_chans=1, num_classes=10)
        return
    target: LatencyTarget = make(img_size=32, in_chans=1, num_classes=10)
    if name == "ssh":
        with pytest.raises(UserError, match="latency.host=127.0.0.1 cannot be reached"):
            target.fingerprint()
        return
    assert target.fingerprint()["target"] == name
    assert target.fingerprint()["batch_size"] == 1


@pytest.mark.parametrize("name", files("sampler"))
def test_sampler(name: str) -> None:
    with quiet_experimental():
        assert isinstance(build(compose(f"sampler={name}").sampler, seed=3), optuna.samplers.BaseSampler)


@pytest.mark.parametrize(
    ("group", "needed"), [("accuracy", {"data", "dtype", "train"}), ("engine", {"targets", "make_evaluator", "settings"})]
)
def test_partial_roles(group: str, needed: set[str]) -> None:
    for name in files(group):
        role = build(compose(f"{group}={name}")[group])
        arguments = set(role.func.__init__.__annotations__) - {"return"} - set(role.keywords)
        assert arguments == needed


@pytest.mark.parametrize("name", files("engine"))
def test_settings_that_engines_share(name: str) -> None:
    role = build(compose(f"engine={name}").engine)
    common = set(WorkerEngine.__init__.__annotations__) - {"return"}
    specific = set(role.func.__init__.__annotations__) - {"return", "settings"}
    assert common | specific == set(role.keywords) | {"targets", "make_evaluator"}


@pytest.mark.parametrize("name", files("storage"))
def test_storage(name: str) -> None:
    given = NEEDED.get(name, [])
    storage = compose(f"storage={name}", "study.name=abc", *given).storage
    assert storage.url == (given[0].partition("=")[2] if given else "sqlite:///outputs/abc/study.db")
    assert storage.retry_seconds >= 0


@pytest.mark.parametrize("name", files("search"))
def test_ready_made_search(name: str) -> None:
    config = compose(f"+search={name}")
    assert config.study.n_trials >= 20
    assert config.proxy.img_size == config.data.img_size
    assert (config.deploy.img_size == config.proxy.img_size) == (name != "cpu_latency_dense")


@pytest.mark.parametrize("name", sorted(file.stem for file in CONF.glob("*.yaml")))
def test_entry_point_configurations(name: str) -> None:
    config: Any = compose(name=name)
    assert config


GROUPS = sorted(folder.name for folder in CONF.iterdir() if folder.is_dir() and folder.name != "hydra")


def choices() -> list[tuple[str, str]]:
    """Every group and choice that a user may name."""
    return [(group, name) for group in GROUPS for name in files(group)]


@pytest.mark.parametrize(("group", "name"), choices())
def test_every_choice_composes(group: str, name: str) -> None:
    entry = "train" if group == "recipe" else "config"
    plus = "+" if group == "search" else ""
    config = compose(f"{plus}{group}={name}", *NEEDED.get(name, []), name=entry)
    assert group == "search" or config[group]


def keys(node: Any, path: str = "") -> set[str]:
    """Dotted keys of a configuration."""
    if not isinstance(node, DictConfig):
        return {path}
    below = (keys(node._get_node(key), f"{path}.{key}" if path else str(key)) for key in node)
    return set().union(*below) | ({path} if path else set())


OF_OTHERS = ("latency.devices.", "space.stages", "data.source.folder")
"""Documented keys below names that users choose, and one of the example dataset."""


def documented_keys() -> set[str]:
    """Keys that README and documents name in code, such as `latency.budget_ms` or `latency.budget_ms=3`."""
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    code = " ".join(re.findall(r"`[^`]+`|```bash.*?```", text, re.DOTALL))
    entries = "|".join([*GROUPS, "study", "deploy", "proxy", "check", "confirm", "limits", "teacher"])
    named = re.findall(rf"(?<![\w./-])((?:{entries})\.[a-z_.0-9]+?)(?=[=`\s),]|$)", code)
    return {
        key for key in named if not key.endswith((".py", ".md", ".yaml", ".db", ".json")) and not key.startswith("search.")
    }


def test_documented_keys_exist() -> None:
    existing: set[str] = set()
    for entry in ("config", "check", "confirm", "train", "measure", "export"):
        existing |= keys(compose(name=entry))
    for group, name in choices():
        entry = "train" if group == "recipe" else "config"
        plus = "+" if group == "search" else ""
        existing |= keys(compose(f"{plus}{group}={name}", *NEEDED.get(name, []), name=entry))
    named = documented_keys()
    assert len(named) > 30
    unknown = {key for key in named if key not in existing and not key.startswith(OF_OTHERS)}
    assert not unknown

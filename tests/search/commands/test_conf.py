"""Every file under conf/ is composed and builds what it names."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import hydra
import optuna
import pytest
import torch
from omegaconf import DictConfig

from search import UserError
from search.commands.cli import build, conf_dir, plain
from search.engine.base import Engine
from search.latency.base import LatencyTarget
from search.space.space import Space
from search.study.storage import quiet_experimental
from search.training.recipe import Recipe
from search.training.task import TrainSettings

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


def test_every_group_is_tested_here() -> None:
    groups = {folder.name for folder in Path(CONF).iterdir() if folder.is_dir()}
    assert groups == {"space", "data", "train", "accuracy", "latency", "sampler", "storage", "engine", "search", "recipe"}


@pytest.mark.parametrize("name", files("space"))
def test_space(name: str) -> None:
    space = build(compose(f"space={name}").space)
    assert isinstance(space, Space)
    assert space.num_architectures() > 1000
    assert space.known()


def test_default_space_varies_the_width() -> None:
    space: Space = build(compose("+search=cpu_latency").space)
    assert min(space.embed_dim) == 8
    assert max(space.embed_dim) == 32


@pytest.mark.parametrize("name", files("data"))
def test_data(name: str) -> None:
    overrides = [f"data={name}", *(["data.source.path=/no/such"] if name in ("imagefolder", "parquet", "idx") else [])]
    config = compose(*overrides).data
    assert config.name == name
    assert callable(build(config.source))
    assert set(config) == {
        "_target_", "name", "source", "img_size", "in_chans", "train_size", "val_size", "seed", "shift", "flip",
    }  # fmt: skip


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
    assert [config.pop(key) for key in ("budget_ms", "devices", "objectives")] == [None, {}, "all"]
    make = build(config)
    if name == "cuda" and not torch.cuda.is_available():
        with pytest.raises(ValueError, match="needs an NVIDIA GPU"):
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
    ("group", "needed"), [("accuracy", {"data", "train"}), ("engine", {"devices", "make_evaluator", "settings"})]
)
def test_partial_roles(group: str, needed: set[str]) -> None:
    for name in files(group):
        role = build(compose(f"{group}={name}")[group])
        arguments = set(role.func.__init__.__annotations__) - {"return"} - set(role.keywords)
        assert arguments == needed


@pytest.mark.parametrize("name", files("engine"))
def test_settings_that_engines_share(name: str) -> None:
    role = build(compose(f"engine={name}").engine)
    common = set(Engine.__init__.__annotations__) - {"return", "devices"}
    own = set(role.func.__init__.__annotations__) - {"return", "settings"}
    assert common | own == set(role.keywords) | {"devices", "make_evaluator"}


@pytest.mark.parametrize("name", files("storage"))
def test_storage(name: str) -> None:
    given = NEEDED.get(name, [])
    storage = compose(f"storage={name}", "study.name=abc", *given).storage
    assert storage.url == (given[0].partition("=")[2] if given else "sqlite:///outputs/abc/study.db")
    assert storage.patience_seconds >= 0


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


def test_documented_keys_exist() -> None:
    config = compose("+search=cpu_latency")
    for key in [
        "study.name",
        "study.n_trials",
        "study.seed",
        "study.timeout_minutes",
        "data.train_size",
        "data.val_size",
        "train.max_epochs",
        "train.batch_size",
        "latency.budget_ms",
        "latency.max_seconds",
        "latency.num_threads",
        "latency.batch_size",
    ]:
        group, name = key.split(".")
        assert name in config[group]

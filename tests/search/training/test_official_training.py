"""`recipe=imagenet train=imagenet` trains what LITv2's authors train, by what was read in their published code."""

from __future__ import annotations

import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import hydra
import pytest
import torch
from omegaconf import OmegaConf
from timm.optim import param_groups_weight_decay
from timm.scheduler import CosineLRScheduler
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from models.litv2 import LITv2
from search.commands.cli import conf_dir
from search.training.recipe import FullTraining, Recipe
from search.training.task import TrainSettings, ignore_loader_warnings, make_trainer


class Fact(NamedTuple):
    """What the authors' code does with some parameters.

    Attributes:
        pattern: Matches the whole name.
        initial: Initial distribution: "zeros", "ones", "uniform" up to 1 / sqrt(fan_in), or "normal".
        std: Standard deviation of "normal".
        lr: Learning rate over the base rate.
        decays: Whether AdamW decays them.
    """

    pattern: str
    initial: str
    std: float
    lr: float
    decays: bool


LINEAR = r"(h_qkv|h_proj|l_q|l_kv|l_proj)"
FACTS = [
    Fact(r"patch_embed\.proj\.weight", "uniform", 0, 1, True),
    Fact(r"patch_embed\.proj\.bias", "uniform", 0, 1, False),
    Fact(r"(.*\.)?(norm|norm1|norm2|norm_layer)\.weight", "ones", 0, 1, False),
    Fact(r"(.*\.)?(norm|norm1|norm2|norm_layer)\.bias", "zeros", 0, 1, False),
    Fact(rf".*\.attn\.{LINEAR}\.weight", "normal", 0.02, 1, True),
    Fact(rf".*\.attn\.{LINEAR}\.bias", "zeros", 0, 1, False),
    Fact(r".*\.mlp\.(fc1|fc2)\.weight", "normal", 0.02, 1, True),
    Fact(r".*\.mlp\.(fc1|fc2)\.bias", "zeros", 0, 1, False),
    Fact(r".*\.mlp\.dwconv\.dwconv\.weight", "normal", math.sqrt(2 / 9), 1, True),  # fan_out: 3 * 3 * 1
    Fact(r".*\.mlp\.dwconv\.dwconv\.bias", "zeros", 0, 1, False),
    Fact(r".*\.downsample\.dconv\.weight", "uniform", 0, 1, True),
    Fact(r".*\.downsample\.dconv\.bias", "uniform", 0, 1, False),
    Fact(r".*\.downsample\.dconv\.conv_offset\.weight", "zeros", 0, 0.01, True),
    Fact(r".*\.downsample\.dconv\.conv_offset\.bias", "zeros", 0, 1, False),
    Fact(r"head\.weight", "normal", 0.02, 1, True),
    Fact(r"head\.bias", "zeros", 0, 1, False),
]
BASE_LR, LAST_LR, WEIGHT_DECAY = 1e-3, 1e-5, 0.05  # for 1,024 images per step


@pytest.fixture(scope="module")
def model() -> LITv2:
    torch.manual_seed(0)
    heads, alphas = (2, 4, 8, 16), (0.5,) * 4
    return LITv2(1, 100, 32, (1, 1, 2, 1), heads, window_sizes=(2, 2, 2, 1), alphas=alphas, patch_size=4)


def configured(group: str) -> Any:
    """The choice `imagenet` of a configuration group."""
    value = hydra.utils.instantiate(OmegaConf.load(Path(conf_dir()) / group / "imagenet.yaml"))
    assert isinstance(value, TrainSettings | Recipe)
    return value


def parameters_of(model: LITv2, fact: Fact) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in model.named_parameters() if re.fullmatch(fact.pattern, name)}


def test_every_parameter_is_in_the_table_once(model: LITv2) -> None:
    names = [name for fact in FACTS for name in parameters_of(model, fact)]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())


@pytest.mark.parametrize("fact", FACTS, ids=[fact.pattern for fact in FACTS])
def test_parameters_start_from_the_authors_distribution(model: LITv2, fact: Fact) -> None:
    parameters = parameters_of(model, fact)
    if fact.initial in ("zeros", "ones"):
        assert all((parameter == (fact.initial == "ones")).all() for parameter in parameters.values())
        return
    scales = {name: fact.std if fact.initial == "normal" else 1 / math.sqrt(fan_in(model, name)) for name in parameters}
    values = torch.cat([(parameter / scales[name]).flatten() for name, parameter in parameters.items()])
    error = 5 / math.sqrt(2 * len(values))
    if fact.initial == "uniform":
        assert values.abs().max() <= 1
        assert values.std() == pytest.approx(1 / math.sqrt(3), rel=error)
    else:
        assert values.std() == pytest.approx(1, rel=error)
        assert values.abs().max() > 2.5  # a uniform distribution ends at sqrt(3)
    assert values.mean().abs() < 5 / math.sqrt(len(values))


def fan_in(model: LITv2, name: str) -> int:
    """Number of inputs of an output of the layer that has the parameter."""
    weight = model.get_parameter(re.sub(r"\.bias$", ".weight", name))
    return weight[0].numel()


def test_parameters_have_the_authors_learning_rate_and_decay(model: LITv2) -> None:
    task = FullTraining(model, configured("train"), 100, configured("recipe"))
    assert (task.settings.lr, task.settings.weight_decay) == (BASE_LR, WEIGHT_DECAY)
    settings = {
        id(parameter): (group.get("lr", BASE_LR) / BASE_LR, group["weight_decay"])
        for group in task.parameter_groups()
        for parameter in group["params"]
    }
    assert len(settings) == len(list(model.parameters()))
    for fact in FACTS:
        for name in parameters_of(model, fact):
            expected = pytest.approx((fact.lr, WEIGHT_DECAY * fact.decays))
            assert settings[id(model.get_parameter(name))] == expected, name


def test_all_learning_rates_end_at_the_authors_minimum() -> None:
    """Their schedule has one minimum for all parameters: that of the offsets' weights, which therefore stays as it is."""
    task = FullTraining(LITv2(1, 100, 8, (1,) * 4, (1,) * 4), configured("train"), 100, configured("recipe"))
    batches = DataLoader(TensorDataset(torch.randn(6, 1, 32, 32), torch.arange(6)), batch_size=2)
    trainer = make_trainer(task.settings, max_epochs=1, accelerator="cpu")
    with ignore_loader_warnings():
        trainer.fit(task, batches)
    (optimizer,) = trainer.optimizers
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([LAST_LR] * 3)


def test_learning_rates_follow_the_authors_schedule(model: LITv2) -> None:
    """At every step of 300 epochs, within 0.2 % of the peak: their warm-up starts at 1e-6, ours at one step's share."""
    task, num_steps = FullTraining(model, configured("train"), 100, configured("recipe")), 300 * 100
    task.trainer = SimpleNamespace(estimated_stepping_batches=num_steps)  # type: ignore[assignment]
    for peak in (BASE_LR, BASE_LR / 100):
        factor, optimizer = task.learning_rate_factor(peak), torch.optim.SGD([torch.zeros(1)], lr=peak)
        warmup = {"warmup_t": 20 * 100, "warmup_lr_init": 1e-6}
        theirs = CosineLRScheduler(optimizer, num_steps, lr_min=LAST_LR, cycle_limit=1, t_in_epochs=False, **warmup)
        for step in range(0, num_steps, 10):
            assert peak * factor(step) == pytest.approx(theirs._get_lr(step)[0], abs=0.002 * BASE_LR)


def test_offsets_without_a_rate_of_their_own_are_trained_like_the_rest(model: LITv2) -> None:
    recipe: Recipe = configured("recipe")
    task = FullTraining(model, configured("train"), 100, Recipe(**{**vars(recipe), "offset_lr": 1.0}))
    groups = {id(p): group["weight_decay"] for group in task.parameter_groups() for p in group["params"]}
    plain = {id(p): group["weight_decay"] for group in param_groups_weight_decay(model, 0.05) for p in group["params"]}
    assert groups == plain

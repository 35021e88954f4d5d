"""A training step of a supernet: the gradients of all its networks, in the memory of one."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from models.architecture import Architecture
from models.elastic import Bounds, ElasticLITv2
from models.litv2 import build
from search.accuracy.supernet_training import SupernetTraining
from search.training import sources
from search.training.data import ImageData
from search.training.normalisation import Normalisation
from search.training.task import TrainSettings, ignore_loader_warnings, make_trainer
from search.training.teacher import Teacher
from tests.search.accuracy.test_supernet import SETTINGS, SPACE, make_data, make_evaluator
from tests.support.allocations import peak_bytes

LARGEST, SMALLEST = (SPACE.sample([0], size) for size in ("largest", "smallest"))
STEP = [LARGEST, SMALLEST, SPACE.sample([1]), SPACE.sample([2])]
PLAIN = Normalisation((0.0,), (1.0,))


@pytest.fixture(scope="module")
def data() -> ImageData:
    return make_data()


def make_task(
    networks: Sequence[Architecture] = STEP, settings: TrainSettings = SETTINGS, **arguments: Any
) -> SupernetTraining:
    torch.manual_seed(0)
    elastic = ElasticLITv2(Bounds.of(SPACE.covering()), in_chans=1, num_classes=100)
    return SupernetTraining(elastic, settings, 100, lambda step: networks, **arguments)


def make_batch(size: int = 8) -> tuple[Tensor, Tensor]:
    return torch.rand(size, 1, 32, 32, generator=torch.Generator().manual_seed(0)), torch.arange(size)


def make_teacher(**changes: Any) -> Teacher:
    torch.manual_seed(1)
    network = build(LARGEST, in_chans=1, num_classes=100).eval()
    nn.init.normal_(network.head.weight)
    teacher = Teacher(network, "a network", "0123", PLAIN, PLAIN, None, distillation=0.25, teaches_all=True)
    return dataclasses.replace(teacher, **changes)


def gradients(task: SupernetTraining) -> dict[str, Tensor | None]:
    return {name: parameter.grad for name, parameter in task.elastic.named_parameters()}


@pytest.mark.parametrize("distillation", [0.0, 0.5])
def test_gradients_are_those_of_the_mean_loss(distillation: float) -> None:
    """Without distillation in the very order of additions of one backward pass, so that no weight changes by a bit."""
    batch, task, reference = make_batch(), make_task(distillation=distillation), make_task()
    task.training_step(batch, 0).backward()
    losses, outputs = [], None
    for network in STEP:
        reference.elastic.activate(network)
        logits = reference(batch[0])
        loss = reference.label_loss(logits, batch[1])
        if outputs is not None:
            loss = torch.lerp(loss, F.cross_entropy(logits, outputs), distillation)
        outputs = logits.detach().softmax(1) if outputs is None else outputs
        losses.append(loss)
    torch.stack(losses).mean().backward()
    expected = gradients(reference)
    for name, gradient in gradients(task).items():
        if distillation:
            torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-7)
        else:
            assert gradient is expected[name] is None or torch.equal(gradient, expected[name]), name  # type: ignore[arg-type]


@pytest.mark.parametrize("distillation", [0.0, 0.5])
def test_step_takes_the_memory_of_its_largest_network(distillation: float) -> None:
    batch = make_batch(64)
    peaks = []
    for networks in ([LARGEST], [LARGEST] * 4):
        task = make_task(networks, distillation=distillation)
        peaks.append(peak_bytes(lambda task=task: task.training_step(batch, 0).backward()))
    assert peaks[1] < 1.1 * peaks[0]


class _Gradients(Callback):
    """Record the gradients of each step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []

    def on_before_optimizer_step(self, trainer: Any, task: Any, optimizer: Any) -> None:
        self.steps.append({name: grad.clone() for name, grad in gradients(task).items() if grad is not None})


def gradients_of_steps(batches: list[tuple[Tensor, Tensor]], accumulate: int = 1) -> list[dict[str, Tensor]]:
    """The gradients of each step of a training that hardly moves the weights."""
    settings = dataclasses.replace(SETTINGS, max_epochs=1, lr=1e-12, accumulate=accumulate)
    recorded = _Gradients()
    with ignore_loader_warnings():
        make_trainer(settings, [recorded]).fit(make_task(settings=settings), DataLoader(batches, batch_size=None))  # type: ignore[arg-type]
    return recorded.steps


def test_steps_start_without_gradients() -> None:
    first, second = gradients_of_steps([make_batch(), make_batch()])
    for name, gradient in first.items():
        torch.testing.assert_close(second[name], gradient, rtol=1e-3, atol=1e-6)


def test_gradients_of_several_batches_are_averaged() -> None:
    (expected,) = gradients_of_steps([make_batch()])
    (averaged,) = gradients_of_steps([make_batch(), make_batch()], accumulate=2)
    for name, gradient in expected.items():
        torch.testing.assert_close(averaged[name], gradient, rtol=1e-3, atol=1e-6)


def test_accumulating_is_another_training(data: ImageData, tmp_path: Path) -> None:
    default, two = (
        make_evaluator(data, tmp_path, train=dataclasses.replace(SETTINGS, accumulate=count)) for count in (1, 2)
    )
    assert default.cache_folder(0) == make_evaluator(data, tmp_path).cache_folder(0)
    assert two.cache_folder(0) != default.cache_folder(0)
    with pytest.raises(ValueError, match="train.accumulate=0"):
        dataclasses.replace(SETTINGS, accumulate=0)


def test_supernet_trains_in_mixed_precision(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = ImageData("glyphs", partial(sources.glyphs, seed=0), 32, 1, 32, 16, 0, 2, False)  # bfloat16 is slow on a CPU
    settings = dataclasses.replace(SETTINGS, max_epochs=1, batch_size=16)
    weights = {}
    with caplog.at_level(logging.INFO, logger="search.training.step_memory"):
        for precision in ("32-true", "bf16-mixed"):
            evaluator = make_evaluator(data, tmp_path, train=settings, precision=precision)
            evaluator.prepare(0, lambda share: None)
            weights[precision] = load_file(evaluator.weights_file(0))
            assert 0 <= evaluator.evaluate(SPACE.anchor(), 0, lambda share: None).accuracy <= 1
    changed = [not torch.equal(tensor, weights["bf16-mixed"][name]) for name, tensor in weights["32-true"].items()]
    assert any(changed)
    assert all(tensor.dtype != torch.bfloat16 for tensor in weights["bf16-mixed"].values())
    assert caplog.text.count("a training step takes about") == 2
    with pytest.raises(ValueError, match="accuracy.precision=16-mixed must be one of 32-true, bf16-mixed"):
        make_evaluator(data, tmp_path, precision="16-mixed")


@pytest.mark.parametrize("teaches_all", [True, False])
def test_networks_learn_from_a_teacher(teaches_all: bool) -> None:
    images, labels = make_batch()
    teacher = make_teacher(teaches_all=teaches_all)
    task = make_task([LARGEST, SMALLEST], teacher=teacher, distillation=0.5)
    taught = teacher.probabilities(images)
    smooth = SETTINGS.label_smoothing
    targets = (1 - smooth) * F.one_hot(labels, 100).float() + smooth / 100
    mixed = 0.75 * targets + 0.25 * taught
    expected, outputs = torch.zeros(()), None
    for network in (LARGEST, SMALLEST):
        task.elastic.activate(network)
        logits = task(images).detach()
        target = mixed if teaches_all or network is LARGEST else targets
        if outputs is not None:
            target = 0.5 * target + 0.5 * outputs
        outputs = logits.softmax(1)
        expected -= (target * logits.log_softmax(1)).sum(1).mean() / 2
    torch.testing.assert_close(task.training_step((images, labels), 0).detach(), expected)


def test_teacher_is_part_of_what_a_supernet_depends_on(data: ImageData, tmp_path: Path) -> None:
    plain = make_evaluator(data, tmp_path)
    teachers = [
        make_teacher(),
        make_teacher(digest="4567"),
        make_teacher(distillation=0.5),
        make_teacher(teaches_all=False),
        make_teacher(img_size=64),
    ]
    evaluators = [plain, *(make_evaluator(data, tmp_path, teacher=teacher) for teacher in teachers)]
    assert len({evaluator.cache_folder(0) for evaluator in evaluators}) == 6
    same = make_evaluator(data, tmp_path, teacher=make_teacher(name="the same, elsewhere"))
    assert same.cache_folder(0) == evaluators[1].cache_folder(0)
    assert "teacher" not in plain.fingerprint()
    assert evaluators[1].fingerprint()["teacher"] == "0123, 0.25 for all"


def test_two_processes_train_as_one_that_accumulates(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Each takes every other batch, as a process that accumulates takes one after the other."""
    data = ImageData("glyphs", partial(sources.glyphs, seed=0), 32, 1, 192, 100, 0, 0, False)
    settings = dataclasses.replace(SETTINGS, max_epochs=1, batch_size=16)
    alone = make_evaluator(data, tmp_path, train=dataclasses.replace(settings, accumulate=2))
    together = make_evaluator(data, tmp_path, train=settings, devices=2)
    assert together.fingerprint() == {**alone.fingerprint(), "devices": 2}
    shares: list[float] = []
    with caplog.at_level(logging.INFO, logger="search"):
        together.prepare(0, shares.append)
    assert caplog.text.count("a training step takes about") == 1
    alone.prepare(0, lambda share: None)
    # Not the biases: that of keys, for one, has a gradient of zero but for rounding.
    first = {name: tensor.detach() for name, tensor in alone.make_supernet(0).named_parameters() if tensor.ndim > 1}
    expected, weights = (load_file(evaluator.weights_file(0)) for evaluator in (alone, together))
    moved = sum(float((expected[name] - tensor).abs().sum()) for name, tensor in first.items())
    differing = sum(float((expected[name] - weights[name]).abs().sum()) for name in first)
    assert differing < 2e-2 * moved, (differing, moved)


def test_more_devices_than_batches_are_refused(data: ImageData, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"accuracy.devices=7 with train.batch_size=32 need more than the 192"):
        make_evaluator(data, tmp_path, devices=7)

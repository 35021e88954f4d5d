"""A teacher gets images as it expects them, and what learns from it gets its probabilities."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.architecture import Architecture
from models.litv2 import build
from search.training.normalisation import Normalisation
from search.training.recipe import FullTraining
from search.training.task import ImageClassification
from search.training.teacher import Teacher
from tests.search.training.test_recipe import RECIPE, SETTINGS
from tests.search.training.test_streamed import AUGMENTATION, streamed

GREY, COLOUR = Normalisation((0.4,), (0.2,)), Normalisation((0.5, 0.4, 0.3), (0.1, 0.2, 0.3))


class Recorder(nn.Module):
    """Keep the images that come; answer with the same probabilities for all of them."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.linspace(0, 3, num_classes))
        self.images = torch.empty(0)

    def forward(self, images: Tensor) -> Tensor:
        self.images = images
        return self.logits.expand(len(images), -1)


def make_teacher(**changes: Any) -> Teacher:
    teacher = Teacher(Recorder(), "a recorder", "0123", GREY, GREY, None, distillation=0.25, teaches_all=True)
    return replace(teacher, **changes)


def images_seen(teacher: Teacher, images: Tensor) -> Tensor:
    teacher.probabilities(images)
    assert isinstance(teacher.network, Recorder)
    return teacher.network.images


def test_images_that_fit_are_taken_as_they_are() -> None:
    images = torch.randn(2, 1, 8, 8)
    assert images_seen(make_teacher(img_size=8), images) is images


def test_images_are_normalised_as_the_teacher_expects() -> None:
    pixels = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    given = Normalisation((0.1, 0.2, 0.3), (0.3, 0.2, 0.1))
    seen = images_seen(make_teacher(normalisation=COLOUR, given=given), given.apply(pixels))
    torch.testing.assert_close(seen, COLOUR.apply(pixels), rtol=1e-4, atol=1e-5)


def test_grey_images_are_shown_in_colour_and_colours_in_grey() -> None:
    pixels = torch.randint(0, 256, (2, 1, 8, 8), dtype=torch.uint8)
    seen = images_seen(make_teacher(normalisation=COLOUR), GREY.apply(pixels))
    torch.testing.assert_close(seen, COLOUR.apply(pixels.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-5)
    seen = images_seen(make_teacher(given=COLOUR), COLOUR.apply(pixels.expand(-1, 3, -1, -1)))
    torch.testing.assert_close(seen, GREY.apply(pixels), rtol=1e-4, atol=1e-4)


def test_images_are_resized_to_the_size_that_the_teacher_needs() -> None:
    seen = images_seen(make_teacher(img_size=16), torch.full((2, 1, 8, 8), 0.5))
    torch.testing.assert_close(seen, torch.full((2, 1, 16, 16), 0.5))


def test_single_network_learns_from_labels_and_the_teacher(architecture: Architecture) -> None:
    teacher = make_teacher()
    task = ImageClassification(build(architecture, in_chans=1, num_classes=10), SETTINGS, 10, teacher=teacher)
    images, labels = torch.rand(4, 1, 32, 32), torch.arange(4)
    smooth = SETTINGS.label_smoothing
    targets = 0.75 * ((1 - smooth) * F.one_hot(labels, 10) + smooth / 10) + 0.25 * teacher.probabilities(images)
    torch.manual_seed(0)  # stochastic depth
    logits = task(images)
    torch.manual_seed(0)
    loss = task.training_step((images, labels), 0)
    torch.testing.assert_close(loss, -(targets * logits.log_softmax(1)).sum(1).mean())
    loss.backward()
    assert teacher.network.logits.grad is None
    assert len(task.state_dict()) == len(ImageClassification(task.model, SETTINGS, 10).state_dict())  # of the model alone


def test_full_training_shows_the_teacher_the_mixed_images(
    tmp_path: Path, architecture: Architecture, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(RECIPE, augmentation=replace(AUGMENTATION, num_workers=0))
    data = streamed(AUGMENTATION)
    teacher = make_teacher(network=Recorder(100), given=data.normalisation, normalisation=data.normalisation)
    model = build(architecture, in_chans=1, num_classes=100)
    task = FullTraining(model, SETTINGS, 100, recipe, teacher=teacher)
    monkeypatch.setattr(task, "log_dict", lambda *args, **kwargs: None)
    task.trainer = type("Trainer", (), {"optimizers": [type("O", (), {"param_groups": [{"lr": 1.0}]})()]})()  # type: ignore[assignment]
    images, labels = next(iter(data.train_dataloader(16)))
    before = images.clone()
    np.random.seed(0)  # timm draws from it, and with some seeds mixes nothing
    task.training_step((images, labels), 0)
    assert isinstance(teacher.network, Recorder)
    assert teacher.network.images.shape == before.shape
    assert not torch.equal(teacher.network.images, before)


def test_copies_of_a_training_share_the_teacher() -> None:
    teacher = make_teacher()
    assert copy.deepcopy(teacher) is teacher

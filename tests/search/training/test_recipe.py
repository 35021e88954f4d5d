"""Full trainings: augmented, mixed, averaged, logged, and resumed to the same weights."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import LambdaCallback
from PIL import Image
from safetensors.torch import load_file

from models.architecture import Architecture
from models.litv2 import LITv2, build
from search.results import architecture_file
from search.training.recipe import FullTraining, Recipe
from search.training.schedule import warmup_cosine
from search.training.task import TrainSettings, fit
from tests.search.training.test_streamed import AUGMENTATION, streamed
from tests.support.commands import TINY, Command, call

RECIPE = Recipe(AUGMENTATION, 0.2, 0.5, 0.9, 0.01, 0.01, "32-true", 1, 1, ["csv"])
SETTINGS = TrainSettings(3, 16, 1e-3, 0.05, 0.1, 0.1, 1.0, 0.1, "cpu")


def trained(
    architecture: Architecture,
    folder: Path,
    recipe: Recipe = RECIPE,
    stop_after: int | None = None,
    epochs_started: list[int] | None = None,
) -> dict[str, torch.Tensor]:
    """Train for three epochs, or resume, and return the weights.

    Args:
        stop_after: Number of epochs after which the training is interrupted.
        epochs_started: Gets the number of each epoch that is started.
    """
    lightning.seed_everything(0, verbose=False)
    model = build(architecture, in_chans=1, num_classes=100, drop_path_rate=0.1)
    task = FullTraining(model, SETTINGS, 100, recipe)
    data = streamed(recipe.augmentation or AUGMENTATION)

    def stop(trainer: lightning.Trainer, task: lightning.LightningModule) -> None:
        if epochs_started is not None:
            epochs_started.append(trainer.current_epoch)
        if trainer.current_epoch == stop_after:
            raise KeyboardInterrupt

    callbacks = [*recipe.callbacks(), LambdaCallback(on_train_epoch_start=stop)]
    options = recipe.trainer_options("cpu", folder / "logs")
    fit(task, data, lambda share: None, folder / "state.ckpt", callbacks, data.val_dataloader(), **options)
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_interrupted_training_resumes_to_the_same_weights(
    tmp_path: Path, architecture: Architecture, num_workers: int
) -> None:
    recipe = replace(RECIPE, augmentation=replace(AUGMENTATION, num_workers=num_workers))
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    expected = trained(architecture, whole, recipe)
    with pytest.raises(KeyboardInterrupt):
        trained(architecture, cut, recipe, stop_after=2)
    epochs_started: list[int] = []
    resumed = trained(architecture, cut, recipe, epochs_started=epochs_started)
    assert epochs_started == [2]
    assert resumed.keys() == expected.keys()
    assert all(torch.equal(resumed[name], expected[name]) for name in expected)


def test_averaged_weights_are_the_result(tmp_path: Path, architecture: Architecture) -> None:
    averaged = trained(architecture, tmp_path / "averaged")
    last = trained(architecture, tmp_path / "last", replace(RECIPE, ema_decay=0.0))
    assert any(not torch.equal(averaged[name], last[name]) for name in last)
    again = trained(architecture, tmp_path / "averaged")  # as after a kill between the last epoch and the result
    assert all(torch.equal(again[name], averaged[name]) for name in averaged)


def test_logs_contain_loss_learning_rate_and_validation(tmp_path: Path, architecture: Architecture) -> None:
    trained(architecture, tmp_path, replace(RECIPE, logs=["csv", "tensorboard"]))
    (file,) = tmp_path.glob("logs/csv/version_0/metrics.csv")
    rows = list(csv.DictReader(file.read_text(encoding="utf-8").splitlines()))
    assert {"loss", "lr", "validation_accuracy"} <= set(rows[0])
    for name in ("loss", "lr", "validation_accuracy"):
        assert sum(bool(row[name]) for row in rows) == 3, name
    assert list(tmp_path.glob("logs/tensorboard/version_0/events.*"))


def test_gradients_are_clipped_in_mixed_precision(tmp_path: Path, architecture: Architecture) -> None:
    """As recipe.precision=auto trains on a GPU."""
    weights = trained(architecture, tmp_path, replace(RECIPE, precision="bf16-mixed"))
    assert all(tensor.isfinite().all() for tensor in weights.values())


def test_offsets_have_their_own_learning_rate(architecture: Architecture) -> None:
    model = build(replace(architecture, downsample="dtm"), in_chans=1, num_classes=10)
    groups = FullTraining(model, SETTINGS, 10, RECIPE).parameter_groups()
    listed = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(listed) == sorted(id(parameter) for parameter in model.parameters())
    offsets = {id(parameter) for name, parameter in model.named_parameters() if "conv_offset.weight" in name}
    assert offsets
    for group in groups:
        is_slow = group.get("lr") == pytest.approx(1e-5)
        assert all((id(parameter) in offsets) == is_slow for parameter in group["params"])


def test_schedule_ends_at_its_floor() -> None:
    assert warmup_cosine(999, 1000, 0.1, floor=0.01) == pytest.approx(0.01, abs=1e-4)
    assert max(warmup_cosine(step, 1000, 0.1, floor=0.01) for step in range(1000)) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logs": ["wandb"]}, "recipe.logs: wandb is unknown"),
        ({"augmentation": None, "devices": 2}, "recipe.devices=2: images that are decoded once feed one device"),
        ({"ema_decay": 1.0}, "recipe.ema_decay"),
        ({"mixup": -1.0}, "recipe.mixup"),
        ({"devices": 0}, "recipe.devices"),
    ],
)
def test_bad_recipes(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(RECIPE, **change)


def test_command_trains_with_the_strong_recipe(tmp_path: Path, architecture: Architecture) -> None:
    file = tmp_path / "network.yaml"
    architecture_file.write(file, "", architecture, {})
    arguments = [f"arch={file}", "recipe=strong", "recipe.augmentation.num_workers=0", *TINY[:3]]
    assert call("train", arguments) == 0
    result = json.loads(file.with_suffix(".result.json").read_text(encoding="utf-8"))
    assert 0 <= result["test_accuracy"] <= 1
    assert result["recipe"]["augmentation"]["auto_augment"].startswith("rand-")
    assert list(tmp_path.glob("network.logs/csv/version_0/metrics.csv"))


def test_odd_batch_size_is_refused_if_images_are_paired(
    tmp_path: Path, architecture: Architecture, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "network.yaml"
    architecture_file.write(file, "", architecture, {})
    assert call("train", [f"arch={file}", "recipe=strong", *TINY[:3], "train.batch_size=9"]) == 2
    assert "train.batch_size=9 must be even" in capsys.readouterr().err


def test_published_network_trains_on_a_folder_of_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LITv2-S as its authors train it, on a folder laid out like ImageNet, with a few small images."""
    monkeypatch.chdir(tmp_path)
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", 4), ("val", 1)):
        for label in ("ant", "bee"):
            folder = tmp_path / "images" / split / label
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = torch.randint(0, 256, (80, 96, 3), dtype=torch.uint8, generator=generator).numpy()
                Image.fromarray(pixels).save(folder / f"{number}.jpg")
    arguments = ["arch=litv2_s", "data=imagefolder", f"data.source.path={tmp_path / 'images'}", "data.img_size=64"]
    arguments += ["data.val_size=0", "train=imagenet", "train.max_epochs=1", "train.batch_size=4", "recipe=imagenet"]
    assert call("train", [*arguments, "recipe.augmentation.num_workers=0", "train.accelerator=cpu"]) == 0
    written = Path("outputs/litv2_s")
    assert json.loads((written / "litv2_s.result.json").read_text())["validation_accuracy"] is None
    architecture, _ = architecture_file.read(written / "litv2_s.yaml")
    network: LITv2 = build(architecture, num_classes=2)
    network.load_state_dict(load_file(written / "litv2_s.safetensors"))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_train_one_network(tmp_path: Path, architecture: Architecture) -> None:
    file = tmp_path / "network.yaml"
    architecture_file.write(file, "", architecture, {})
    arguments = [f"arch={file}", "recipe=strong", "recipe.augmentation.num_workers=0", *TINY[:3], "train.batch_size=16"]
    with Command(tmp_path, "search.train", *arguments, "train.accelerator=cpu", "recipe.devices=2") as training:
        output = training.wait(580)
    assert training.returncode == 0, output
    assert output.count("test accuracy") == 1
    assert file.with_suffix(".safetensors").exists()

"""`python -m search.train` that is killed and resumed gives the same weights."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from models.architecture import Architecture
from models.litv2 import build
from search.results.architecture_file import write
from search.study.locks import training_lock
from search.training import sources
from search.training.data import ImageData
from search.training.files import checkpoint_file
from search.training.recipe import Recipe
from search.training.task import TrainSettings
from tests.support.commands import TINY, Command, call
from tests.support.images import write_classes


def arguments(file: Path) -> list[str]:
    return [f"arch={file}", *TINY[:2], "train.max_epochs=8"]


def exported(folder: Path, architecture: Architecture) -> Path:
    folder.mkdir()
    file = folder / "network.yaml"
    write(file, "", architecture, {})
    return file


def test_killed_training_resumes_to_the_same_weights(
    tmp_path: Path, architecture: Architecture, capsys: pytest.CaptureFixture[str]
) -> None:
    killed, whole = (exported(tmp_path / name, architecture) for name in ("killed", "whole"))
    with Command(tmp_path, "search.train", *arguments(killed)) as training:
        training.wait_until(lambda: list(killed.parent.glob("*.ckpt")))
        training.send(signal.SIGKILL)
        training.wait()
    assert not killed.with_suffix(".safetensors").exists()
    assert call("train", arguments(killed)) == 0
    assert "resuming the training from" in capsys.readouterr().out
    assert call("train", arguments(whole)) == 0
    weights = [file.with_suffix(".safetensors").read_bytes() for file in (killed, whole)]
    assert weights[0] == weights[1]
    results = [json.loads(file.with_suffix(".result.json").read_text(encoding="utf-8")) for file in (killed, whole)]
    assert results[0]["test_accuracy"] == results[1]["test_accuracy"]
    assert not list(killed.parent.glob("*.ckpt"))


def test_training_for_int8_starts_from_the_trained_network_and_reports_int8(
    tmp_path: Path, architecture: Architecture, capsys: pytest.CaptureFixture[str]
) -> None:
    file = exported(tmp_path / "network", architecture)
    start = ["init=trained", "train.quantise=int8", "train.lr=1e-5"]
    assert call("train", [*arguments(file), *start]) == 2
    assert "init=trained needs an earlier search.train of this network" in capsys.readouterr().err
    assert call("train", [f"arch={file}", *TINY[:2], "train.max_epochs=2"]) == 0
    before = load_file(file.with_suffix(".safetensors"))
    assert call("train", [f"arch={file}", "init=trained"]) == 2
    assert "init=trained would replace the weights that it starts from" in capsys.readouterr().err
    assert call("train", [f"arch={file}", *TINY[:2], "train.max_epochs=1", *start]) == 0
    after = load_file(file.with_suffix(".int8.safetensors"))
    assert all(torch.equal(tensor, before[name]) for name, tensor in load_file(file.with_suffix(".safetensors")).items())
    moved = {name: float((after[name] - before[name]).norm() / before[name].norm()) for name in before if "weight" in name}
    assert 0 < max(moved.values()) < 0.2  # it goes on from there
    result = json.loads(file.with_suffix(".int8.result.json").read_text(encoding="utf-8"))
    assert result["init"] == "trained"
    assert 0 <= result["test_accuracy"] <= 1
    assert call("train", [f"arch={file}", *TINY[:2], *start, "train.lr=1e12", "train.max_epochs=2"]) == 2
    assert "lower train.lr" in capsys.readouterr().err


def test_network_is_trained_by_one_process_at_a_time(
    tmp_path: Path, architecture: Architecture, capsys: pytest.CaptureFixture[str]
) -> None:
    file = exported(tmp_path / "network", architecture)
    with training_lock(file):
        assert call("train", arguments(file)) == 2
    assert f"{file} is being trained by another process; wait for it" in capsys.readouterr().err


def test_every_training_has_its_own_checkpoint(tmp_path: Path, architecture: Architecture) -> None:
    data = ImageData("glyphs", partial(sources.glyphs, seed=0), 32, 1, 64, 32, 0, 2, False)
    settings = TrainSettings(1, 32, 1e-3, 0.05, 0.1, 0.1, 1.0, 0.0, "cpu")
    torch.manual_seed(0)
    first, second = build(architecture), build(architecture)
    recipe = Recipe(None, 0.0, 0.0, 0.0, 1.0, 0.0, "32-true", 1, 0)
    expected = checkpoint_file(tmp_path / "a.yaml", first, 0, settings, recipe, data)
    files = {
        expected,
        checkpoint_file(tmp_path / "a.yaml", second, 0, settings, recipe, data),
        checkpoint_file(tmp_path / "a.yaml", first, 1, settings, recipe, data),
        checkpoint_file(tmp_path / "a.yaml", first, 0, replace(settings, max_epochs=2), recipe, data),
        checkpoint_file(tmp_path / "a.yaml", first, 0, settings, replace(recipe, mixup=0.1), data),
        checkpoint_file(tmp_path / "a.yaml", first, 0, settings, recipe, data, img_size=16),
    }
    assert len(files) == 6
    assert checkpoint_file(tmp_path / "a.yaml", first, 0, settings, recipe, data) == expected


def test_one_augmentation_at_a_time(tmp_path: Path, architecture: Architecture, capsys: pytest.CaptureFixture[str]) -> None:
    file = exported(tmp_path / "network", architecture)
    assert call("train", [*arguments(file), "augment=photo", "recipe=strong"]) == 2
    assert "augment=photo and this recipe would both mix images; set recipe.mixup=0" in capsys.readouterr().err
    refused = [*arguments(file), "augment=none", "recipe=strong", "recipe.mixup=0", "recipe.cutmix=0"]
    assert call("train", refused) == 2
    assert "would both change the images; choose recipe=light or augment=light" in capsys.readouterr().err


def test_photos_are_augmented_and_their_classes_named(
    tmp_path: Path, architecture: Architecture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder of class folders, decoded to the disk: from one command to weights that know the names of their classes."""
    monkeypatch.chdir(tmp_path)
    write_classes(tmp_path / "photos", ["ant", "bee"], 30)
    file = exported(tmp_path / "network", architecture)
    photos = ["data=imagefolder", f"data.source.path={tmp_path / 'photos'}", "data.cache=disk", "data.in_chans=1"]
    assert call("train", [f"arch={file}", *photos, "augment=photo", "train.max_epochs=1", "train.batch_size=16"]) == 0
    result = json.loads(file.with_suffix(".result.json").read_text(encoding="utf-8"))
    assert result["class_names"] == ["ant", "bee"]
    assert len(list((tmp_path / "outputs/.images").glob("*.npy"))) == 3  # train, val and test


def test_metric_of_the_search_is_reported_with_its_error(tmp_path: Path, architecture: Architecture) -> None:
    file = tmp_path / "network.yaml"
    accuracy = {"metric": "macro_f1", "validation": 0.4, "standard_error": 0.02, "data": "glyphs"}
    write(file, "", architecture, {"accuracy": accuracy})
    assert call("train", [f"arch={file}", *TINY[:2], "train.max_epochs=1", "train.class_weights=balanced"]) == 0
    result = json.loads(file.with_suffix(".result.json").read_text(encoding="utf-8"))
    assert result["metric"] == "macro_f1"
    assert 0 <= result["test_metric"]["value"] <= 1
    assert 0 < result["test_metric"]["standard_error"] < 0.1
    assert result["gap"] == pytest.approx(result["validation_metric"]["value"] - 0.4)


def test_unknown_metric_of_a_file_is_named(
    tmp_path: Path, architecture: Architecture, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "network.yaml"
    write(file, "", architecture, {"accuracy": {"metric": "top5", "validation": 0.4}})
    assert call("train", [f"arch={file}", *TINY[:2]]) == 2
    assert "accuracy.metric=top5 must be one of" in capsys.readouterr().err

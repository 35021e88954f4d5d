"""Training from scratch: the contract of accuracy evaluators, and what is particular to it."""

from __future__ import annotations

import dataclasses
import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn

from models.architecture import Architecture
from models.deploy.int8 import Int8Network
from models.litv2 import build
from search.accuracy.base import Accuracy
from search.accuracy.cache import AccuracyCache
from search.accuracy.early_stopping import MAX_TRAININGS, PausedTraining, rungs_of
from search.accuracy.initial_weights import InitialWeights
from search.accuracy.scratch import ScratchEvaluator
from search.training import sources
from search.training.data import ImageData
from search.training.files import save_weights
from search.training.task import (
    ImageClassification,
    NonFiniteLoss,
    TrainSettings,
    fit,
    ignore_loader_warnings,
    make_trainer,
    predict,
)
from search.training.task import test_accuracy as evaluate  # pytest would collect it under its own name
from tests.contracts.accuracy_evaluator import *  # noqa: F403
from tests.support.networks import enliven

SETTINGS = TrainSettings(
    max_epochs=2, batch_size=32, lr=2e-3, weight_decay=0.05, warmup=0.2, label_smoothing=0.1, clip_norm=1.0,
    drop_path_rate=0.0, accelerator="cpu",
)  # fmt: skip


class _Probe(Callback):
    """Record the learning rate of every step."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def on_train_batch_start(self, trainer: Any, *args: Any, **kwargs: Any) -> None:
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


@pytest.fixture(scope="module")
def data() -> ImageData:
    return ImageData("glyphs", partial(sources.glyphs, seed=0), 32, 1, 192, 100, 0, 2, False)


@pytest.fixture(scope="module")
def evaluator(data: ImageData) -> ScratchEvaluator:
    return ScratchEvaluator(data, SETTINGS, width_multiplier=1.0, num_threads=1)


def test_result_after_a_line_that_was_cut_short_is_read(
    tmp_path: Path, evaluator: ScratchEvaluator, architecture: Architecture
) -> None:
    file = tmp_path / "standalone.jsonl"
    file.write_text('{"name": "torn', encoding="utf-8")
    accuracy = AccuracyCache(evaluator, {}, file).evaluate(architecture, seed=0)
    assert AccuracyCache(evaluator, {}, file).get(architecture, seed=0) == accuracy


def test_networks_of_an_int8_search_are_validated_in_int8(
    data: ImageData, evaluator: ScratchEvaluator, architecture: Architecture, monkeypatch: pytest.MonkeyPatch
) -> None:
    validated: list[nn.Module] = []

    def watched(task: ImageClassification, *args: Any) -> Any:
        validated.append(task.model)
        return predict(task, *args)

    monkeypatch.setattr("search.accuracy.scratch.predict", watched)
    int8 = ScratchEvaluator(data, SETTINGS, width_multiplier=1.0, num_threads=1, dtype="int8")
    assert int8.fingerprint() == evaluator.fingerprint() | {"dtype": "int8"}
    accuracies = [each.evaluate(architecture, 0, lambda share: None) for each in (evaluator, int8)]
    assert [isinstance(model, Int8Network) for model in validated] == [False, True]
    assert accuracies[1].accuracy == pytest.approx(accuracies[0].accuracy, abs=0.1)
    with pytest.raises(ValueError, match="the dtype int4 of accuracies must be one of float32, int8"):
        ScratchEvaluator(data, SETTINGS, width_multiplier=1.0, num_threads=1, dtype="int4")


def test_proxy_is_narrower_than_the_deployed_network(
    data: ImageData, architecture: Architecture, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[Architecture] = []

    def record(network: Architecture, **kwargs: Any) -> nn.Module:
        built.append(network)
        return build(network, **kwargs)

    monkeypatch.setattr("search.accuracy.scratch.build", record)
    ScratchEvaluator(data, SETTINGS, width_multiplier=0.5, num_threads=1).evaluate(architecture, 0, lambda share: None)
    assert built == [dataclasses.replace(architecture, embed_dim=4)]


def test_norms_and_biases_are_not_decayed(architecture: Architecture, data: ImageData) -> None:
    task = ImageClassification(build(architecture, in_chans=1, num_classes=100), SETTINGS, 100)
    fit_probe = _Probe()
    with ignore_loader_warnings():
        trainer = make_trainer(dataclasses.replace(SETTINGS, max_epochs=1), [fit_probe])
        trainer.fit(task, train_dataloaders=data.train_dataloader(32))
    for group in trainer.optimizers[0].param_groups:
        assert all((p.ndim > 1) == (group["weight_decay"] > 0) for p in group["params"])
    rates = fit_probe.rates
    peak = max(range(len(rates)), key=rates.__getitem__)
    assert rates[:peak] == sorted(rates[:peak])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert max(rates) == pytest.approx(SETTINGS.lr, rel=0.1)
    assert rates[-1] < SETTINGS.lr / 10


def test_non_finite_loss_names_the_remedy(data: ImageData, architecture: Architecture) -> None:
    model = build(architecture, in_chans=1, num_classes=100)
    nn.init.constant_(model.head.bias, float("nan"))
    with pytest.raises(NonFiniteLoss, match=r"loss is nan at step 0; lower train.lr=0.002"):
        fit(ImageClassification(model, SETTINGS, 100), data, lambda share: None)


def test_network_that_diverged_in_its_last_step_gets_no_accuracy(data: ImageData, architecture: Architecture) -> None:
    model = build(architecture, in_chans=1, num_classes=100)
    nn.init.constant_(model.head.bias, float("nan"))
    with pytest.raises(NonFiniteLoss, match="outputs are not finite"):
        evaluate(ImageClassification(model, SETTINGS, 100), data.val_dataloader(), SETTINGS)


def test_interruption_gives_no_result(data: ImageData, architecture: Architecture) -> None:
    settings = dataclasses.replace(SETTINGS, max_epochs=50)
    task = ImageClassification(build(architecture, in_chans=1, num_classes=100), settings, 100)
    handler = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(KeyboardInterrupt):
            fit(task, data, lambda share: os.kill(os.getpid(), signal.SIGINT))
    finally:
        signal.signal(signal.SIGINT, handler)


@pytest.mark.parametrize("accelerator", ["abacus", "cuda"])
def test_missing_accelerator_is_named(data: ImageData, accelerator: str) -> None:
    if accelerator == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    settings = dataclasses.replace(SETTINGS, accelerator=accelerator)
    with pytest.raises(ValueError, match=f"train.accelerator={accelerator} cannot be used"):
        ScratchEvaluator(data, settings, width_multiplier=1.0, num_threads=1)


@pytest.mark.parametrize(
    ("name", "value"),
    [("max_epochs", 0), ("batch_size", 0), ("lr", -1.0), ("lr", float("nan")), ("warmup", 1.0), ("label_smoothing", 2.0)]
    + [("weight_decay", -0.1), ("clip_norm", -1.0), ("max_epochs", 2.5)],
)
def test_impossible_settings_name_the_value(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"train\.{name}={value}"):
        dataclasses.replace(SETTINGS, **{name: value})


def test_networks_are_trained_from_their_share_of_initial_weights(
    data: ImageData, evaluator: ScratchEvaluator, architecture: Architecture, tmp_path: Path
) -> None:
    trained = enliven(build(architecture, in_chans=1, num_classes=100)).eval()
    save_weights(trained, data.normalisation, tmp_path / "network.safetensors")
    weights = InitialWeights.read(tmp_path / "network.safetensors")
    started = ScratchEvaluator(data, SETTINGS, width_multiplier=1.0, num_threads=1, init=weights)
    assert started.fingerprint() == {**evaluator.fingerprint(), "init": weights.digest}
    first, *others = architecture.stages
    deeper = dataclasses.replace(architecture, stages=(dataclasses.replace(first, depth=2), *others))
    images = data.normalisation.apply(data.val.images[:8])
    with torch.no_grad():
        expected = trained(images)
        for network in (architecture, deeper):
            torch.testing.assert_close(started.make_network(network).eval()(images), expected, rtol=1e-4, atol=1e-5)
    assert 0 <= started.evaluate(deeper, 0, lambda share: None).accuracy <= 1


@pytest.mark.parametrize("metric", ["balanced", "macro_f1", "auroc"])
def test_accuracy_is_by_the_chosen_metric(architecture: Architecture, metric: str) -> None:
    data = ImageData("digits", sources.digits, 32, 1, 192, 100, 0, 2, False)  # ten classes: some of them are right by chance
    settings = dataclasses.replace(SETTINGS, max_epochs=1, class_weights="balanced")
    evaluator = ScratchEvaluator(data, settings, width_multiplier=1.0, num_threads=1, metric=metric)
    result = evaluator.evaluate(architecture, 0, lambda share: None)
    assert result.metric == metric
    assert 0 < result.standard_error < 0.5
    assert result.num_images == data.num_val
    assert Accuracy(**result.to_dict()) == result


def test_unknown_metric_is_named(data: ImageData) -> None:
    with pytest.raises(ValueError, match=r"accuracy.metric=top5 must be one of"):
        ScratchEvaluator(data, SETTINGS, width_multiplier=1.0, num_threads=1, metric="top5")


def test_network_is_trained_and_validated_at_its_image_size(data: ImageData, architecture: Architecture) -> None:
    evaluator, sizes = ScratchEvaluator(data, SETTINGS, 1.0, 1), list[tuple[int, ...]]()
    make = evaluator.make_network

    def make_network(proxy: Architecture) -> nn.Module:
        network = make(proxy)
        network.register_forward_pre_hook(lambda module, args: sizes.append((module.training, *args[0].shape[-2:])))
        return network

    evaluator.make_network = make_network  # type: ignore[assignment, method-assign]
    evaluator.evaluate(dataclasses.replace(architecture, img_size=24), 0, lambda share: None)
    assert set(sizes) == {(True, 24, 24), (False, 24, 24)}


def test_accuracies_of_a_network_at_two_image_sizes_are_two(data: ImageData, architecture: Architecture) -> None:
    evaluator = ScratchEvaluator(data, SETTINGS, 1.0, 1)
    correct = {
        evaluator.evaluate(dataclasses.replace(architecture, img_size=size), 0, lambda share: None).correct
        for size in (16, 32)
    }
    assert len(correct) == 2
    of_data = evaluator.evaluate(architecture, 0, lambda share: None).correct
    assert of_data in correct  # images have 32 pixels


@pytest.fixture
def halving(data: ImageData, tmp_path: Path) -> ScratchEvaluator:
    """Trains four epochs, and compares after one and two."""
    settings = dataclasses.replace(SETTINGS, max_epochs=4)
    return ScratchEvaluator(data, settings, 1.0, 1, halving=2, cache=str(tmp_path / "trainings"))


def test_training_that_stopped_early_continues_as_if_it_had_not(
    halving: ScratchEvaluator, architecture: Architecture
) -> None:
    assert halving.rungs == (1, 2)
    early = {rung: halving.evaluate_early(architecture, 0, rung, lambda share: None) for rung in halving.rungs}
    assert halving.evaluate_early(architecture, 0, 1, lambda share: None) == early[1]  # though two epochs are over
    result = halving.evaluate(architecture, 0, lambda share: None)
    whole = dataclasses.replace(halving, halving=None).evaluate(architecture, 0, lambda share: None)
    assert result.correct == whole.correct
    assert early[1].seconds < early[2].seconds < result.seconds
    assert not list(Path(halving.cache).iterdir())


def test_state_of_a_later_epoch_does_not_count_for_an_earlier_one(
    halving: ScratchEvaluator, architecture: Architecture
) -> None:
    early = halving.evaluate_early(architecture, 0, 1, lambda share: None)
    halving.evaluate_early(architecture, 0, 2, lambda share: None)
    (results,) = Path(halving.cache).glob("*.json")
    results.unlink()
    assert halving.evaluate_early(architecture, 0, 1, lambda share: None).correct == early.correct


def test_first_epochs_are_those_of_the_whole_schedule(
    halving: ScratchEvaluator, architecture: Architecture, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = _Probe()
    monkeypatch.setattr("search.accuracy.scratch.fit", partial(fit, callbacks=[probe]))
    halving.evaluate_early(architecture, 0, 2, lambda share: None)
    steps = len(probe.rates)
    dataclasses.replace(halving, halving=None).evaluate(architecture, 0, lambda share: None)
    assert len(probe.rates) == 3 * steps  # two epochs, then all four
    assert probe.rates[:steps] == probe.rates[steps : 2 * steps]


def test_early_results_that_cannot_be_read_are_computed_again(
    halving: ScratchEvaluator, architecture: Architecture, caplog: pytest.LogCaptureFixture
) -> None:
    expected = halving.evaluate_early(architecture, 0, 1, lambda share: None)
    (file,) = Path(halving.cache).glob("*.json")
    file.write_text("{", encoding="utf-8")
    assert halving.evaluate_early(architecture, 0, 1, lambda share: None).correct == expected.correct
    assert "cannot be read" in caplog.text


def test_files_of_the_latest_trainings_are_kept(tmp_path: Path) -> None:
    for number in range(MAX_TRAININGS + 3):
        paused = PausedTraining(tmp_path, f"{number:03d}")
        paused.checkpoint.touch()
        os.utime(paused.checkpoint, (number, number))
        paused.save(1, Accuracy(0.5, 10, 0, 1.0))
    for suffix in ("ckpt", "json"):
        assert sorted(int(file.stem) for file in tmp_path.glob(f"*.{suffix}")) == list(range(3, MAX_TRAININGS + 3))


@pytest.mark.parametrize(
    ("num_epochs", "factor", "expected"), [(9, 3, (1, 3)), (27, 3, (1, 3, 9)), (10, 3, (1, 3)), (8, 4, (2,)), (2, 2, (1,))]
)
def test_rungs_are_shares_of_the_epochs(num_epochs: int, factor: int, expected: tuple[int, ...]) -> None:
    assert rungs_of(num_epochs, factor) == expected


@pytest.mark.parametrize(
    ("factor", "problem"),
    [
        (1, "accuracy.halving=1 must be a whole number of at least 2"),
        (3, "accuracy.halving=3 needs trainings of at least 3 epochs, and these have 2; raise train.max_epochs"),
    ],
)
def test_halving_that_makes_no_sense_is_named(data: ImageData, factor: int, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        ScratchEvaluator(data, SETTINGS, 1.0, 1, halving=factor)

"""Scoring with shared weights: the contracts of its two roles, and what is particular to it."""

from __future__ import annotations

import dataclasses
import logging
import multiprocessing
import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

import models.deploy
from models.deploy.int8 import calibrated
from models.deploy.onnx import record_onnx
from models.deploy.onnx_int8 import quantise_onnx
from models.elastic import Bounds, ElasticLITv2
from models.litv2 import LITv2, build
from search import UserError
from search.accuracy import supernet
from search.accuracy.base import EXECUTION_KEYS
from search.accuracy.cache import AccuracyCache
from search.accuracy.initial_weights import InitialWeights
from search.accuracy.supernet import SupernetEvaluator, SupernetTraining
from search.accuracy.trained_supernet import TrainedSupernet
from search.latency.onnx_session import open_session
from search.results.export import origin_of_share
from search.space.space import Space
from search.training import sources
from search.training.data import Batches, ImageData, Images
from search.training.files import save_weights
from search.training.normalisation import Normalisation
from search.training.resizing import resized
from search.training.task import NonFiniteLoss, TrainSettings, ignore_loader_warnings, make_trainer
from tests.contracts.accuracy_evaluator import *  # noqa: F403
from tests.contracts.shared_weights import *  # noqa: F403
from tests.support.networks import enliven

SETTINGS = TrainSettings(
    max_epochs=2, batch_size=32, lr=2e-3, weight_decay=0.05, warmup=0.2, label_smoothing=0.1, clip_norm=1.0,
    drop_path_rate=0.0, accelerator="cpu",
)  # fmt: skip
SPACE = Space(
    embed_dim=[8, 16],
    stages=[
        {"depth": [1, 2], "window_size": [0, 2], "alpha": [0.0, 0.5, 1.0], "num_heads": 2},
        {"depth": 1, "window_size": [0, 2], "alpha": [0.5, 1.0], "num_heads": 2},
        {"depth": [1, 2], "window_size": [0, 1, 2], "alpha": [0.0, 0.75], "num_heads": 4},
        {"depth": 1, "window_size": [0, 1], "alpha": 0.0, "num_heads": 4},
    ],
    patch_size=2,
    downsample="conv",
)
SIZES = (16, 24, 32)
SIZED, MORE_SIZES = (
    Space(
        embed_dim=[8, 16],
        stages=[{"depth": [1, 2], "window_size": [0, 2], "alpha": [0.0, 0.5], "num_heads": 2}] * 4,
        patch_size=2,
        downsample="conv",
        img_size=sizes,
    )
    for sizes in (SIZES, (16, 20, 24, 32))
)
STATISTICS = "layers.0.downsample.norm_layer.running_mean"


def make_data() -> ImageData:
    return ImageData("glyphs", partial(sources.glyphs, seed=0), 32, 1, 192, 100, 0, 2, False)


def make_evaluator(data: ImageData, cache: Path, **changes: Any) -> SupernetEvaluator:
    arguments: dict[str, Any] = {
        "train": SETTINGS,
        "space": SPACE,
        "num_random": 1,
        "distillation": 0.0,
        "num_images": None,
        "width_multiplier": 1.0,
    }
    arguments |= {"data": data, "num_threads": 1, "width_multiplier": 1.0, "cache": str(cache)}
    return SupernetEvaluator(**{**arguments, **changes})


def vars_of(evaluator: SupernetEvaluator) -> dict[str, Any]:
    """The arguments it was constructed with."""
    return {field.name: getattr(evaluator, field.name) for field in dataclasses.fields(evaluator) if field.init}


def train_until_killed(cache: Path) -> None:
    """For another process: the first progress report comes in the second epoch."""
    make_evaluator(make_data(), cache).prepare(0, lambda share: os.kill(os.getpid(), signal.SIGKILL))


@pytest.fixture(scope="module")
def data() -> ImageData:
    return make_data()


@pytest.fixture(scope="module")
def evaluator(data: ImageData, tmp_path_factory: pytest.TempPathFactory) -> SupernetEvaluator:
    return make_evaluator(data, tmp_path_factory.mktemp("supernets"))


@pytest.fixture
def other_evaluator(data: ImageData, tmp_path: Path) -> SupernetEvaluator:
    return make_evaluator(data, tmp_path)


@pytest.fixture
def untrainable(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise AssertionError("trained")

    monkeypatch.setattr(supernet, "fit", refuse)


def test_networks_are_scored_without_training(evaluator: SupernetEvaluator, request: pytest.FixtureRequest) -> None:
    evaluator.prepare(0, lambda share: None)
    request.getfixturevalue("untrainable")
    scores = [evaluator.evaluate(SPACE.sample([number]), 0, lambda share: None).accuracy for number in range(3)]
    assert all(0 <= score <= 1 for score in scores)


def test_further_study_takes_the_supernet_from_the_cache(
    data: ImageData, evaluator: SupernetEvaluator, request: pytest.FixtureRequest
) -> None:
    expected = evaluator.evaluate(SPACE.sample([0]), 0, lambda share: None)
    request.getfixturevalue("untrainable")
    other = make_evaluator(data, Path(evaluator.cache))
    assert other.evaluate(SPACE.sample([0]), 0, lambda share: None).accuracy == expected.accuracy


def test_int8_score_is_the_accuracy_of_the_int8_file(evaluator: SupernetEvaluator, data: ImageData) -> None:
    architecture, int8 = SPACE.sample([1]), dataclasses.replace(evaluator, dtype="int8")
    assert int8.cache_folder(0) == evaluator.cache_folder(0)  # one supernet, whatever its networks are deployed as
    assert int8.fingerprint() == evaluator.fingerprint() | {"dtype": "int8"}
    evaluator.prepare(0, lambda share: None)
    score = int8.evaluate(architecture, 0, lambda share: None)
    trained = TrainedSupernet.open(evaluator.weights_file(0))
    form = models.deploy.prepare(trained.extract(architecture))
    images = trained.normalised_images()
    content = quantise_onnx(record_onnx(form, images[:1]), calibrated(form, images.split(64)).ranges)
    outputs = open_session(content, 1).run(None, {"x": data.normalisation.apply(data.val.images).numpy()})[0]
    is_right = outputs.argmax(1) == data.val.labels.numpy()
    correct = score.correct_images()
    assert correct is not None
    assert (correct == is_right).mean() >= 0.98  # a number between two steps may be rounded to the other one


def test_exported_share_predicts_what_the_search_scored(
    evaluator: SupernetEvaluator, data: ImageData, tmp_path: Path
) -> None:
    """With an exported network's predictions for labels, the search gives its architecture an accuracy of 1."""
    evaluator.prepare(0, lambda share: None)
    scoring, file = make_evaluator(data, Path(evaluator.cache)), tmp_path / "share.safetensors"
    for number in range(3):
        architecture = SPACE.sample([number])
        TrainedSupernet.open(evaluator.weights_file(0)).save_share(architecture, file, "digest")
        assert origin_of_share(file) == ("digest", architecture.key)
        normalisation = Normalisation.of_weights(file)
        assert normalisation == data.normalisation
        network = build(architecture, in_chans=1, num_classes=100)
        network.load_state_dict(load_file(file))
        with torch.inference_mode():
            predictions = models.deploy.prepare(network)(data.normalisation.apply(data.val.images)).argmax(1)
        scoring.images = Images(data.val.images, predictions)
        assert scoring.evaluate(architecture, 0, lambda share: None).accuracy == 1


def test_given_weights_count_and_not_those_in_the_cache(evaluator: SupernetEvaluator, other_evaluator: Any) -> None:
    """The supernet that another machine trained for the same settings may differ by rounding, or by more."""
    expected = evaluator.evaluate(SPACE.anchor(), 0, lambda share: None)
    packed = evaluator.pack(0)
    assert packed is not None
    supernet = TrainedSupernet.open(evaluator.weights_file(0))
    nn.init.zeros_(supernet.elastic.weights.head.weight)  # type: ignore[arg-type]
    other_evaluator.cache_folder(0).mkdir(parents=True)
    supernet.save(other_evaluator.weights_file(0))
    before = other_evaluator.weights_file(0).read_bytes()
    other_evaluator.unpack(0, packed)
    assert other_evaluator.evaluate(SPACE.anchor(), 0, lambda share: None).accuracy == expected.accuracy
    assert other_evaluator.weights_file(0).read_bytes() == before  # of another search on this machine
    assert not list(other_evaluator.cache_folder(0).glob("*.partial"))


def test_cached_scores_are_those_of_one_supernet(evaluator: SupernetEvaluator, other_evaluator: Any, tmp_path: Path) -> None:
    file = tmp_path / "check.jsonl"
    AccuracyCache(evaluator, {}, file).evaluate(SPACE.anchor(), 0)
    assert AccuracyCache(evaluator, {}, file).get(SPACE.anchor(), 0) is not None
    supernet = TrainedSupernet.open(evaluator.weights_file(0))
    nn.init.zeros_(supernet.elastic.weights.head.weight)  # type: ignore[arg-type]
    other_evaluator.cache_folder(0).mkdir(parents=True)
    supernet.save(other_evaluator.weights_file(0))
    assert AccuracyCache(other_evaluator, {}, file).get(SPACE.anchor(), 0) is None


def test_incomplete_weights_are_trained_again(
    data: ImageData, evaluator: SupernetEvaluator, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    evaluator.prepare(0, lambda share: None)
    other = make_evaluator(data, tmp_path)
    folder = other.cache_folder(0)
    folder.mkdir(parents=True)
    whole = evaluator.weights_file(0).read_bytes()
    (folder / "supernet.safetensors").write_bytes(whole[: len(whole) // 2])
    other.prepare(0, lambda share: None)
    assert "cannot be read" in caplog.text
    assert (folder / "supernet.safetensors").read_bytes() == whole


def test_incomplete_checkpoint_is_dropped(
    data: ImageData, evaluator: SupernetEvaluator, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    evaluator.prepare(0, lambda share: None)
    other = make_evaluator(data, tmp_path)
    other.cache_folder(0).mkdir(parents=True)
    (other.cache_folder(0) / "epoch.ckpt").write_bytes(b"PK\x03\x04 torn")
    other.prepare(0, lambda share: None)
    assert "cannot be read" in caplog.text
    assert other.weights_file(0).read_bytes() == evaluator.weights_file(0).read_bytes()


def test_killed_training_resumes_to_the_same_weights(
    evaluator: SupernetEvaluator, data: ImageData, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    evaluator.prepare(0, lambda share: None)
    other = make_evaluator(data, tmp_path)
    checkpoint = other.cache_folder(0) / "epoch.ckpt"
    process = multiprocessing.get_context("spawn").Process(target=train_until_killed, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert checkpoint.exists()
    with caplog.at_level(logging.INFO, logger="search.training.task"):
        other.prepare(0, lambda share: None)
    assert "resuming the training from" in caplog.text
    assert not checkpoint.exists()
    resumed, whole = (load_file(each.weights_file(0)) for each in (other, evaluator))
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())


@pytest.mark.parametrize(
    "change",
    [
        {"num_random": 2},
        {"distillation": 0.5},
        {"train": dataclasses.replace(SETTINGS, lr=1e-3)},
        {"num_threads": 2},
        {"width_multiplier": 0.5},
    ],
)
def test_other_settings_give_another_supernet(
    evaluator: SupernetEvaluator, data: ImageData, change: dict[str, Any], tmp_path: Path
) -> None:
    other = SupernetEvaluator(**{**vars_of(evaluator), "data": data, **change})
    assert other.cache_folder(0) != evaluator.cache_folder(0)


def test_fewer_images_score_with_the_same_supernet(evaluator: SupernetEvaluator, data: ImageData) -> None:
    evaluator.prepare(0, lambda share: None)
    other = SupernetEvaluator(**{**vars_of(evaluator), "num_images": 40})
    assert other.cache_folder(0) == evaluator.cache_folder(0)
    accuracy = other.evaluate(SPACE.anchor(), 0, lambda share: None)
    assert accuracy.num_images == 40
    assert (accuracy.accuracy * 40) % 1 == 0


def test_execution_keys_do_not_change_the_supernet(evaluator: SupernetEvaluator, other_evaluator: SupernetEvaluator) -> None:
    assert {"cache"} == EXECUTION_KEYS
    assert other_evaluator.cache != evaluator.cache
    assert other_evaluator.cache_folder(0).name == evaluator.cache_folder(0).name
    assert other_evaluator.fingerprint() == evaluator.fingerprint()


def test_other_images_give_another_supernet(evaluator: SupernetEvaluator) -> None:
    images = ImageData("glyphs", partial(sources.glyphs, seed=1), 32, 1, 192, 100, 0, 2, False)
    assert make_evaluator(images, Path(evaluator.cache)).cache_folder(0) != evaluator.cache_folder(0)


def test_image_sizes_are_drawn_in_every_step(data: ImageData, tmp_path: Path) -> None:
    evaluator = make_evaluator(data, tmp_path, space=SIZED)
    task = evaluator.make_task(evaluator.make_supernet(0), 0)
    steps = [[network.img_size for network in task.sample_networks(step)] for step in range(40)]
    assert all(set(sizes) == set(SIZES) for sizes in zip(*steps, strict=True))  # largest, smallest and random networks
    assert all(step == [network.img_size for network in task.sample_networks(i)] for i, step in enumerate(steps))


def test_each_network_of_a_step_gets_images_of_its_size(
    data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluator, seen = make_evaluator(data, tmp_path, space=SIZED), list[tuple[int | None, torch.Size]]()
    plain = ElasticLITv2.forward

    def forward(elastic: ElasticLITv2, x: Tensor) -> Tensor:
        seen.append((elastic.active.img_size if elastic.active else None, x.shape))
        return plain(elastic, x)

    monkeypatch.setattr(ElasticLITv2, "forward", forward)
    evaluator.prepare(0, lambda share: None)
    assert {size for size, _ in seen} == set(SIZES)
    assert all(shape == (32, 1, size, size) for size, shape in seen)


def test_score_is_that_of_images_of_the_networks_size(data: ImageData, tmp_path: Path) -> None:
    """With a network's predictions on resized images for labels, it has an accuracy of 1 at this size alone."""
    evaluator = make_evaluator(data, tmp_path, space=SIZED)
    evaluator.prepare(0, lambda share: None)
    supernet, images = TrainedSupernet.open(evaluator.weights_file(0)), data.normalisation.apply(data.val.images)
    largest = SIZED.largest()
    small, large = (dataclasses.replace(largest, img_size=size) for size in (16, 32))
    scoring = make_evaluator(data, tmp_path, space=SIZED)
    for architecture in (small, large):
        with torch.inference_mode():
            network = models.deploy.prepare(supernet.extract(architecture))
            predictions = network(resized(images, architecture.img_size)).argmax(1)
        scoring.images = Images(data.val.images, predictions)
        accuracies = [scoring.evaluate(other, 0, lambda share: None).accuracy for other in (small, large)]
        assert [accuracy == 1 for accuracy in accuracies] == [other == architecture for other in (small, large)]


def test_batch_statistics_are_those_of_the_networks_size(data: ImageData, tmp_path: Path) -> None:
    evaluator = make_evaluator(data, tmp_path, space=SIZED)
    supernet = TrainedSupernet(evaluator.make_supernet(0).eval(), data.train.images[:64], data.normalisation)
    means = [
        supernet.extract(dataclasses.replace(SIZED.largest(), img_size=size)).state_dict()[STATISTICS] for size in SIZES
    ]
    assert not torch.allclose(means[0], means[-1], rtol=1e-3)


def test_image_sizes_give_another_supernet_and_a_network_at_two_sizes_two_scores(
    evaluator: SupernetEvaluator, data: ImageData, tmp_path: Path
) -> None:
    folders = {make_evaluator(data, tmp_path, space=space).cache_folder(0) for space in (SPACE, SIZED, MORE_SIZES)}
    assert len(folders) == 3
    cache = AccuracyCache(evaluator, {}, tmp_path / "check.jsonl")
    small, large = (dataclasses.replace(SPACE.anchor(), img_size=size) for size in (16, 32))
    cache.evaluate(small, 0)
    assert cache.get(large, 0) is None


@pytest.mark.parametrize("distillation", [0.0, 0.25, 1.0])
def test_small_networks_learn_from_labels_and_the_largest(data: ImageData, distillation: float) -> None:
    torch.manual_seed(0)
    elastic = ElasticLITv2(Bounds.of(SPACE.covering()), in_chans=1, num_classes=100)
    largest, smallest = (SPACE.sample([0], size) for size in ("largest", "smallest"))
    images, labels = torch.rand(8, 1, 32, 32), torch.arange(8)
    task = SupernetTraining(elastic, SETTINGS, 100, lambda step: [largest, smallest], distillation)
    task.trainer = Trainer(logger=False, accelerator="cpu")
    logits = []
    for network in (largest, smallest):
        elastic.activate(network)
        logits.append(elastic(images).detach())
    one_hot = F.one_hot(labels, 100).float()
    smooth = SETTINGS.label_smoothing
    from_labels = (1 - smooth) * one_hot + smooth / 100
    targets = [from_labels, (1 - distillation) * from_labels + distillation * logits[0].softmax(1)]
    expected = sum(-(target * each.log_softmax(1)).sum(1).mean() / 2 for target, each in zip(targets, logits, strict=True))
    torch.testing.assert_close(task.training_step((images, labels), 0).detach(), expected)


def test_divergence_names_the_remedy(data: ImageData, tmp_path: Path) -> None:
    elastic = ElasticLITv2(Bounds.of(SPACE.covering()), in_chans=1, num_classes=100)
    nn.init.constant_(elastic.weights.head.bias, float("nan"))  # type: ignore[arg-type]
    task = SupernetTraining(elastic, SETTINGS, 100, lambda step: [SPACE.sample([step])])
    with pytest.raises(NonFiniteLoss, match="loss is nan at step 0; lower train.lr"):
        supernet.fit(task, data, lambda share: None)


class _Reached(Callback):
    """Record which weights have had a gradient."""

    def __init__(self) -> None:
        self.reached: dict[str, Tensor] = {}

    def on_before_optimizer_step(self, trainer: Any, task: Any, optimizer: Any) -> None:
        for name, parameter in task.elastic.named_parameters():
            if parameter.grad is not None:
                self.reached[name] = self.reached.get(name, torch.tensor(False)) | (parameter.grad != 0)


def test_every_weight_gets_a_gradient_within_an_epoch(data: ImageData, tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS, max_epochs=1)
    evaluator = make_evaluator(data, tmp_path, num_random=5, train=settings)
    task = evaluator.make_task(evaluator.make_supernet(0), 0)
    probe = _Reached()
    batches = Batches(data, data.train, batch_size=8, seed=0)
    with ignore_loader_warnings():
        make_trainer(settings, [probe]).fit(task, train_dataloaders=batches)
    assert set(probe.reached) == {name for name, _ in task.elastic.named_parameters()}
    assert [name for name, reached in probe.reached.items() if not reached.all()] == []


@pytest.fixture(scope="module")
def trained(data: ImageData, tmp_path_factory: pytest.TempPathFactory) -> InitialWeights:
    """A network of the space, as search.train would leave it."""
    file = tmp_path_factory.mktemp("trained") / "network.safetensors"
    network = enliven(build(SPACE.sample([3]), in_chans=1, num_classes=100))
    save_weights(network, Normalisation((0.25,), (0.5,)), file)
    return InitialWeights.read(file)


def test_supernet_starts_with_the_network_that_it_contains(
    data: ImageData, trained: InitialWeights, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    evaluator = make_evaluator(data, tmp_path, init=trained)
    elastic = evaluator.make_supernet(0).eval()
    assert isinstance(trained.weights, LITv2)
    elastic.activate(trained.weights.architecture)
    images = data.normalisation.apply(data.val.images[:8])
    with torch.no_grad():
        torch.testing.assert_close(elastic(images), trained.weights.eval()(images), rtol=1e-5, atol=1e-5)
    file = tmp_path / "supernet.safetensors"
    TrainedSupernet(elastic, data.train.images[:64], data.normalisation).save(file)
    opened = TrainedSupernet.open(file)
    for number in range(5):  # what is important is written with the weights
        architecture = SPACE.sample([number])
        shares = (elastic.extract(architecture).state_dict(), opened.elastic.extract(architecture).state_dict())
        assert all(torch.equal(shares[1][name], tensor) for name, tensor in shares[0].items())


def test_supernet_of_one_dataset_starts_that_of_the_next(
    evaluator: SupernetEvaluator, trained: InitialWeights, tmp_path: Path
) -> None:
    evaluator.prepare(0, lambda share: None)
    earlier = InitialWeights.read(evaluator.weights_file(0))
    digits = ImageData("digits", sources.digits, 32, 1, 192, 100, 0, 2, False, normalisation=earlier.normalisation_for(1))
    following = make_evaluator(digits, tmp_path, init=earlier)
    share = following.make_supernet(0).extract(SPACE.largest())
    assert share.head.weight.shape[0] == 10
    old = TrainedSupernet.open(evaluator.weights_file(0)).elastic.extract(SPACE.largest()).state_dict()
    assert all(torch.equal(share.state_dict()[name], tensor) for name, tensor in old.items() if not name.startswith("head"))
    assert 0 <= following.evaluate(SPACE.sample([0]), 0, lambda share: None).accuracy <= 1
    assert TrainedSupernet.open(following.weights_file(0)).normalisation == evaluator.data.normalisation


def test_initial_weights_give_another_supernet(
    evaluator: SupernetEvaluator, data: ImageData, trained: InitialWeights, tmp_path: Path
) -> None:
    started = make_evaluator(data, Path(evaluator.cache), init=trained)
    assert started.fingerprint() == {**evaluator.fingerprint(), "init": trained.digest}
    assert started.cache_folder(0) != evaluator.cache_folder(0)
    other = dataclasses.replace(trained, digest="0" * 16)
    assert make_evaluator(data, Path(evaluator.cache), init=other).cache_folder(0) != started.cache_folder(0)
    moved = dataclasses.replace(trained, file=tmp_path / "moved.safetensors")
    assert make_evaluator(data, Path(evaluator.cache), init=moved).cache_folder(0) == started.cache_folder(0)


def test_weights_that_the_space_cannot_use_are_refused_at_once(data: ImageData, tmp_path: Path) -> None:
    file = tmp_path / "network.safetensors"
    save_weights(build(dataclasses.replace(SPACE.largest(), patch_size=4)), data.normalisation, file)
    with pytest.raises(UserError, match="set space.patch_size=4 space.downsample=conv"):
        make_evaluator(data, tmp_path, init=InitialWeights.read(file))

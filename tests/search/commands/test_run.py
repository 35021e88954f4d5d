"""The whole: search, resume, refuse, export, train, on real data with real training and measuring."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import itertools
import json
import re
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from models.architecture import Architecture, StageSpec
from models.deploy import prepare
from models.litv2 import build
from search.accuracy.trained_supernet import TrainedSupernet
from search.commands.run import images_overrides
from search.engine.local import LocalEngine
from search.results import architecture_file
from search.study.front import front
from search.study.locks import folder_lock, study_lock
from search.study.storage import FORMAT_KEY, SEARCH_SECONDS, VERSION_KEY, open_study
from search.study.targets import FIRST, TARGETS, targets_of
from search.study.trial import finished_trials
from search.training import glyphs, sources
from search.training.data import ImageData
from search.training.normalisation import Normalisation
from tests.search.commands.test_conf import compose
from tests.support.commands import ROOT, TINY, call


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished study `first` of six trials."""
    folder = tmp_path_factory.mktemp("user")
    with contextlib.chdir(folder):
        assert call("run", ["+search=cpu_latency", "study.name=first", "study.n_trials=6", *TINY]) == 0
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy for one test, which is the current folder."""
    copied = tmp_path / "user"
    shutil.copytree(original, copied)
    monkeypatch.chdir(copied)
    return copied


def study_of(name: str) -> optuna.Study:
    return open_study(name, f"sqlite:///outputs/{name}/study.db", create=False)


def again(*arguments: str) -> int:
    return call("run", ["+search=cpu_latency", "study.name=first", *TINY, *arguments])


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["+search=cpu_latency"], "data=noisy_glyphs"),
        (
            ["+search=photos", "data.source.path='my photos'"],
            "data=imagefolder 'data.source.path=my photos' data.img_size=128",
        ),
    ],
)
def test_command_that_trains_a_network_reads_the_images_of_the_search(overrides: list[str], expected: str) -> None:
    assert images_overrides(compose(*overrides)) == expected


def test_front_is_saved_in_every_form(folder: Path) -> None:
    trials = finished_trials(study_of("first"))
    assert len(trials) == 6
    out = folder / "outputs" / "first"
    members = front(trials)
    names = [f"trial-{t.number:05d}{suffix}" for t in members for suffix in (".yaml", ".supernet.safetensors")]
    assert sorted(p.name for p in (out / "pareto").iterdir()) == sorted(names)
    rows = list(csv.DictReader((out / "pareto.csv").read_text(encoding="utf-8").splitlines()))
    assert len(rows) == 6
    assert sum(row["in_front"] == "True" for row in rows) == len(members)
    assert (out / "pareto.png").stat().st_size > 10_000
    assert yaml.safe_load((out / "config.yaml").read_text(encoding="utf-8"))["study"]["name"] == "first"
    samples = json.loads((out / "latency" / "trial-00000.json").read_text(encoding="utf-8"))[FIRST]
    assert sum(len(timing["candidate_ms"]) for timing in samples["rounds"]) == samples["repetitions"] > 1
    assert samples["device"]["num_threads"] == 1


def test_exported_file_says_what_was_found(folder: Path) -> None:
    member = front(finished_trials(study_of("first")))[0]
    architecture, facts = architecture_file.read(folder / "outputs" / "first" / "pareto" / f"trial-{member.number:05d}.yaml")
    assert architecture == member.architecture
    assert member.result.accuracy is not None
    assert facts["accuracy"]["validation"] == member.accuracy
    assert facts["accuracy"]["seed"] == 0
    assert 0 < facts["front_probability_by_score"] <= 1
    target = facts["targets"][FIRST]
    assert target["latency"]["low_ms"] <= target["latency"]["latency_ms"] <= target["latency"]["high_ms"]
    assert target["device"]["num_threads"] == 1
    assert {"python", "torch", "timm", "optuna"} <= set(facts["versions"])
    assert (facts["study"], facts["trial"]) == ("first", member.number)


def test_complete_study_says_so_at_once(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("search.commands.run.search", lambda *args: pytest.fail("started an engine"))
    assert again("study.n_trials=6") == 0
    printed = capsys.readouterr().out
    assert "study first is complete: 6 of 6 trials are finished" in printed
    assert "known networks is" in printed


def test_same_command_with_more_trials_goes_on(folder: Path) -> None:
    before = [t.architecture.key for t in finished_trials(study_of("first"))]
    assert again("study.n_trials=7") == 0
    after = [t.architecture.key for t in finished_trials(study_of("first"))]
    assert len(after) == 7
    assert after[: len(before)] == before


def test_same_seed_gives_the_same_trials_and_accuracies(folder: Path) -> None:
    assert call("run", ["+search=cpu_latency", "study.name=second", "study.n_trials=6", *TINY]) == 0
    first, second = (
        [(t.architecture.key, t.accuracy) for t in finished_trials(study_of(name))[:6] if t.result.accuracy]
        for name in ("first", "second")
    )
    assert first == second


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.max_epochs=2", "train.max_epochs was 1 and is now 2"),
        ("space.embed_dim=[8,16]", "space.embed_dim was [8] and is now [8, 16]"),
        ("data.val_size=90", "data.val_size was 100 and is now 90"),
        ("study.seed=1", "study.seed was 0 and is now 1"),
        ("latency.num_threads=2", "latency.num_threads was 1 and is now 2"),
    ],
)
def test_changed_study_is_refused(folder: Path, capsys: pytest.CaptureFixture[str], override: str, message: str) -> None:
    before = (folder / "outputs/first/config.yaml").read_text(encoding="utf-8")
    assert again("study.n_trials=20", override) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1
    assert (folder / "outputs/first/config.yaml").read_text(encoding="utf-8") == before


def test_other_device_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = study_of("first")
    targets = study.user_attrs[TARGETS]
    device = {**targets[FIRST]["device"], "device": "Another CPU"}
    study.set_user_attr(TARGETS, {FIRST: {**targets[FIRST], "device": device}})
    assert again("study.n_trials=20") == 2
    assert "device was 'Another CPU'" in capsys.readouterr().err
    study.set_user_attr(TARGETS, targets)


@pytest.mark.parametrize(
    ("override", "is_accepted"),
    [("accuracy.cache=elsewhere", True), ("engine.max_retries=3", True), ("latency.tolerance=0.05", False)],
)
def test_settings_of_how_work_is_done_may_change(
    folder: Path, capsys: pytest.CaptureFixture[str], override: str, is_accepted: bool
) -> None:
    assert again("study.n_trials=6", override) == (0 if is_accepted else 2)
    assert ("was started with other settings" in capsys.readouterr().err) != is_accepted


def test_other_images_are_refused(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The same settings, but other fonts, as after an upgrade of the package that has them."""
    fonts = glyphs._fonts()
    monkeypatch.setattr(glyphs, "_fonts", lambda: fonts[::-1])
    assert again("study.n_trials=20") == 2
    error = capsys.readouterr().err.strip()
    assert re.search(r"train was '128 images, sha256 \w+' and is now '128 images, sha256 \w+'; val was '100 images", error)
    assert error.endswith("do not compare: restore the images, or choose another study.name")
    assert len(error.splitlines()) == 1


def test_other_shared_weights_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As trained again on another machine, after the cache was emptied."""
    (file,) = Path("outputs/.supernets").rglob("supernet.safetensors")
    supernet = TrainedSupernet.open(file)
    torch.nn.init.zeros_(supernet.elastic.weights.head.weight)  # type: ignore[arg-type]
    supernet.save(file)
    assert again("study.n_trials=20") == 2
    error = capsys.readouterr().err.strip()
    assert re.search(r"supernet was '\w+' and is now '\w+'; scores of two supernets do not compare", error)
    assert error.endswith(f"restore {file}, or choose another study.name")
    assert len(error.splitlines()) == 1
    for share in Path("outputs/first/pareto").glob("*.supernet.safetensors"):
        share.unlink()
    assert call("export", ["study.name=first"]) == 0
    assert "is not the one that scored this study" in capsys.readouterr().out + capsys.readouterr().err
    assert not list(Path("outputs/first/pareto").glob("*.supernet.safetensors"))


def test_exported_weights_score_what_the_search_scored(folder: Path) -> None:
    source = partial(sources.glyphs, seed=0, max_rotation=30.0, min_contrast=0.3, noise=0.25)
    data = ImageData("noisy_glyphs", source, 32, 1, 128, 100, 0, 1, False)
    members = front(finished_trials(study_of("first")))
    for member in members:
        file = Path(f"outputs/first/pareto/trial-{member.number:05d}.supernet.safetensors")
        network = build(member.architecture, in_chans=1, num_classes=100)
        network.load_state_dict(load_file(file))
        normalisation = Normalisation.of_weights(file)
        assert normalisation == data.normalisation
        assert normalisation is not None
        with torch.inference_mode():
            logits = prepare(network)(normalisation.apply(data.val.images))
        assert int((logits.argmax(1) == data.val.labels).sum()) == round(100 * member.accuracy)


def test_study_of_the_version_before_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = study_of("first")
    stored = {key: study.user_attrs[key] for key in (FORMAT_KEY, VERSION_KEY)}
    for key in stored:
        study.set_user_attr(key, None)
    for command in ("run", "report", "export"):
        arguments = ["study.name=first"] if command != "run" else ["+search=cpu_latency", "study.name=first", *TINY]
        assert call(command, arguments) == 2
        error = capsys.readouterr().err.strip()
        assert "was written by hilo-nas 0.1" in error
        assert "(outputs/first/pareto/*.yaml) still load" in error
        assert len(error.splitlines()) == 1
    for key, value in stored.items():
        study.set_user_attr(key, value)


def test_other_number_of_training_threads_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = study_of("first")
    training = study.user_attrs["training"]
    study.set_user_attr("training", {**training, "num_threads": training["num_threads"] + 1})
    assert again("study.n_trials=20") == 2
    assert "num_threads was" in capsys.readouterr().err
    study.set_user_attr("training", training)


def test_deployed_network_and_proxy_may_differ(folder: Path) -> None:
    code = call(
        "run",
        [
            "+search=cpu_latency",
            "study.name=proxy",
            "study.n_trials=1",
            *TINY,
            "proxy.img_size=32",
            "proxy.width_multiplier=0.5",
        ]
        + ["deploy.img_size=64", "deploy.num_classes=7"],
    )
    assert code == 0
    (trial,) = finished_trials(study_of("proxy"))
    deployed = build(trial.architecture, in_chans=1, num_classes=7)
    assert trial.num_params == sum(p.numel() for p in deployed.parameters())
    assert targets_of(study_of("proxy"))[FIRST].device["input_size"] == "1x64x64"


@pytest.mark.parametrize(
    "lock", [lambda: folder_lock(Path("outputs/first")), lambda: study_lock("first", "sqlite:///outputs/first/study.db")]
)
def test_second_search_of_a_study_is_refused(folder: Path, lock: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with lock():
        assert again("study.n_trials=20") == 2
    assert "in use by another search" in capsys.readouterr().err


def test_python_of_the_readme_runs(folder: Path, tmp_path: Path) -> None:
    exported = next((folder / "outputs/first/pareto").glob("*.yaml"))
    path = tmp_path / exported.name
    path.write_bytes(exported.read_bytes())
    save_file(
        build(architecture_file.read(path)[0], in_chans=1, num_classes=100).state_dict(), path.with_suffix(".safetensors")
    )
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    exec(re.sub(r"outputs/default/pareto/trial-\d+", str(path.with_suffix("")), block), {})


def test_budget_is_shown_as_infeasible(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "budget"
    monkeypatch.setattr("search.commands.targets.check_smallest", lambda *args: None)  # it would refuse such a budget
    code = call("run", ["+search=cpu_latency", f"study.name={name}", "study.n_trials=2", *TINY, "latency.budget_ms=0.001"])
    assert code == 0
    trials = finished_trials(study_of(name))
    assert [t.result.feasible for t in trials] == [False, False]
    assert front(trials) == []
    assert "all 2 networks are over latency.budget_ms=0.001" in capsys.readouterr().out
    assert (folder / "outputs/budget/pareto.csv").exists()
    assert call("export", [f"study.name={name}"]) == 2
    assert "has no network with an accuracy" in capsys.readouterr().err


def test_budget_that_nothing_keeps_is_refused_before_anything_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call("run", ["+search=cpu_latency", "study.name=tight", *TINY, "latency.budget_ms=0.001"]) == 2
    message = capsys.readouterr().err.strip()
    assert "latency.budget_ms=0.001: no network of the space keeps it, the smallest takes 0." in message
    assert "raise it, or add smaller choices to the space" in message
    assert len(message.splitlines()) == 1
    log = (tmp_path / "outputs/tight/run.log").read_text(encoding="utf-8")
    assert re.search(r"the smallest network of the space takes [\d.]+ ms .*MB file.*, the largest [\d.]+ ms", log)
    assert not list(tmp_path.glob("outputs/.supernets/*"))
    study = study_of("tight")
    assert study.trials == []


def test_time_limit_covers_the_training_of_shared_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(LocalEngine, "train_shared_weights", lambda *args: asyncio.Event().wait())  # it never ends
    assert call("run", ["+search=cpu_latency", "study.name=short", *TINY, "study.timeout_minutes=0.001"]) == 0
    printed = capsys.readouterr().out
    assert "the training of shared weights is cut off; finished epochs are kept" in printed
    assert "study short has reached its time limit, study.timeout_minutes=0.001" in printed
    assert study_of("short").trials == []


def test_time_limit_counts_from_the_start_of_the_command(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Preparing takes a minute here, on the clock that the command looks at."""
    now = itertools.count(step=60)
    monkeypatch.setattr("search.commands.run.time", SimpleNamespace(monotonic=lambda: next(now)))
    assert again("study.n_trials=20", "study.timeout_minutes=0.5") == 0
    printed = capsys.readouterr().out
    assert "study first has reached its time limit, study.timeout_minutes=0.5" in printed
    assert "continue:    the same command with study.timeout_minutes above 0.5" in printed
    assert len(finished_trials(study_of("first"))) == 6


def test_time_limit_is_that_of_all_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The study has run for some seconds already; what is over is not begun again."""
    seconds = study_of("first").user_attrs[SEARCH_SECONDS]
    assert 1 < seconds < 600
    assert again("study.n_trials=20", f"study.timeout_minutes={seconds / 120}") == 0
    assert "has reached its time limit" in capsys.readouterr().out
    assert study_of("first").user_attrs[SEARCH_SECONDS] == seconds
    assert again("study.n_trials=7") == 0
    assert "study first is complete: 7 of 7 trials are finished" in capsys.readouterr().out
    assert study_of("first").user_attrs[SEARCH_SECONDS] > seconds + 1


def test_space_that_is_used_up_is_said_in_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stage = "{depth: 1, window_size: 0, alpha: 0.0, num_heads: 1}"
    stages = f"space.stages=[{{depth: [1, 2], window_size: 0, alpha: 0.0, num_heads: 1}},{stage},{stage},{stage}]"
    for _ in range(2):  # the second time no engine is needed
        assert call("run", ["+search=cpu_latency", "study.name=all", "study.n_trials=9", *TINY, stages]) == 0
        output = capsys.readouterr().out
        text = "all 2 networks of the space are evaluated: 2 finished, 0 skipped, 0 failed; there is nothing left to search"
        assert output.count(text) == 1
        assert "study.n_trials above" not in output
        assert len(study_of("all").trials) == 2


def test_export_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "outputs/first/pareto.csv").unlink()
    stale = folder / "outputs/first/pareto/trial-99999.yaml"
    stale.write_text("no longer in the front", encoding="utf-8")
    assert call("export", ["study.name=first"]) == 0
    assert (folder / "outputs/first/pareto.csv").exists()
    assert not stale.exists()
    assert "saved in outputs/first/pareto" in capsys.readouterr().out


def test_export_of_nothing_names_the_remedy(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("export", ["study.name=unheard"]) == 2
    assert "there is no outputs/unheard here; run a search with study.name=unheard first" in capsys.readouterr().err


def test_train_command(folder: Path) -> None:
    path = next((folder / "outputs/first/pareto").glob("*.yaml"))
    sizes = ["data.train_size=128", "data.val_size=100", "train.max_epochs=1"]
    assert call("train", [f"arch={path}", *sizes]) == 0
    result = json.loads(path.with_suffix(".result.json").read_text(encoding="utf-8"))
    assert 0 <= result["test_accuracy"] <= 1
    architecture, _ = architecture_file.read(path)
    model = build(architecture, in_chans=1, num_classes=100)
    model.load_state_dict(load_file(path.with_suffix(".safetensors")))
    assert model.eval()(torch.zeros(1, 1, 32, 32)).isfinite().all()


def test_training_starts_from_the_supernet_s_weights(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = next((folder / "outputs/first/pareto").glob("*.yaml"))
    sizes = ["data=noisy_glyphs", "data.train_size=128", "data.val_size=100", "train.max_epochs=1"]
    architecture, facts = architecture_file.read(path)
    assert call("train", [f"arch={path}", *sizes, "init=supernet", "train.lr=1e-12", "train.weight_decay=0"]) == 0
    trained, start = load_file(path.with_suffix(".safetensors")), load_file(path.with_suffix(".supernet.safetensors"))
    parameters = dict(build(architecture, in_chans=1, num_classes=100).named_parameters())
    assert all(torch.allclose(trained[name], start[name], atol=1e-6) for name in parameters)
    result = json.loads(path.with_suffix(".result.json").read_text(encoding="utf-8"))
    assert result["init"] == "supernet"
    assert result["search_accuracy"] == facts["accuracy"]["validation"]
    assert result["gap"] == result["validation_accuracy"] - result["search_accuracy"]


def test_images_are_normalised_as_the_initial_weights_expect(folder: Path) -> None:
    """recipe=strong would take ImageNet's statistics; the supernet was trained with those of its images."""
    path = next((folder / "outputs/first/pareto").glob("*.yaml"))
    expected = Normalisation.of_weights(path.with_suffix(".supernet.safetensors"))
    assert expected is not None
    options = ["data.train_size=64", "data.val_size=100", "train.max_epochs=1", "recipe=strong"]
    options.append("recipe.augmentation.num_workers=0")
    for init in ("supernet", path.with_suffix(".first.safetensors")):  # the second time from what the first time gave
        assert call("train", [f"arch={path}", *options, f"init={init}"]) == 0
        result = json.loads(path.with_suffix(".result.json").read_text(encoding="utf-8"))
        assert Normalisation.from_dict(result["normalisation"]) == expected
        assert Normalisation.of_weights(path.with_suffix(".safetensors")) == expected
        path.with_suffix(".safetensors").rename(path.with_suffix(".first.safetensors"))


def test_weights_are_adapted_to_images_of_other_channels(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = next((folder / "outputs/first/pareto").glob("*.yaml"))
    sizes = ["data.in_chans=3", "data.train_size=64", "data.val_size=9", "train.max_epochs=1"]
    assert call("train", [f"arch={path}", "init=supernet", *sizes]) == 0
    assert "the first convolution is adapted from 1 to 3 channels" in capsys.readouterr().out
    expected = Normalisation.of_weights(path.with_suffix(".supernet.safetensors"))
    assert expected is not None
    assert Normalisation.of_weights(path.with_suffix(".safetensors")) == expected.for_channels(3)


def test_search_starts_from_the_supernet_of_another_study(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (supernet,) = (folder / "outputs/.supernets").glob("*/supernet.safetensors")
    options = ["+search=cpu_latency", "study.name=next", "study.n_trials=3", *TINY, "data=digits"]
    assert call("run", [*options, f"init={supernet}"]) == 0
    printed = capsys.readouterr().out
    assert f"starting from {supernet}" in printed
    assert "its head for 100 classes is left out, and one for 10 classes is new" in printed
    expected = TrainedSupernet.open(supernet).normalisation
    for file in (folder / "outputs/next/pareto").glob("*.yaml"):
        _, facts = architecture_file.read(file)
        assert Normalisation.from_dict(facts["normalisation"]) == expected
        assert facts["accuracy"]["init"].startswith("sha256 ")
        assert Normalisation.of_weights(file.with_suffix(".supernet.safetensors")) == expected
    moved = folder / "moved.safetensors"
    supernet.rename(moved)
    assert call("run", [*options, f"init={moved}"]) == 0  # the same weights
    moved.write_bytes((folder / "outputs/next/pareto.csv").read_bytes())
    capsys.readouterr()
    assert call("run", [*options, f"init={moved}"]) == 2
    assert "accuracy.init was 'sha256 " in capsys.readouterr().err
    assert call("run", [*options, "init=missing.pth"]) == 2
    assert "init=missing.pth: there is no such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("init", "message"),
    [
        ("supernet", "init=supernet needs a study with accuracy=supernet"),
        ("other.safetensors", "does not hold weights of this"),
    ],
)
def test_weights_to_start_from_are_checked(
    folder: Path, tmp_path: Path, init: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    exported = next((folder / "outputs/first/pareto").glob("*.yaml"))
    path = tmp_path / exported.name
    path.write_bytes(exported.read_bytes())  # without the weights beside it
    other = build(Architecture(8, (StageSpec(3),) * 4), in_chans=1, num_classes=100)
    save_file(other.state_dict(), tmp_path / "other.safetensors")
    chosen = init if init == "supernet" else tmp_path / init
    assert call("train", [f"arch={path}", "data.train_size=128", "data.val_size=100", f"init={chosen}"]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("!!python/object/apply:os.system ['touch hacked']", "is not YAML of plain data"),
        ("format: 1\narchitecture: {_target_: os.system, embed_dim: 8, stages: []}", "unknown _target_"),
        ("format: 3\narchitecture: {}", "is not an exported architecture"),
        ("[1, 2", "is not YAML of plain data"),
        ("just text", "is not an exported architecture"),
        ("format: 1\narchitecture: {embed_dim: 8, stages: [{depth: 1000000}]}", "4 stages, got 1"),
        ("\0binary", "is not YAML"),
    ],
)
def test_hostile_file_is_refused(tmp_path: Path, text: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "hostile.yaml"
    path.write_text(text, encoding="utf-8")
    assert call("train", [f"arch={path}"]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1
    assert not Path("hacked").exists()


def test_architecture_file_round_trip(tmp_path: Path, architecture: Architecture) -> None:
    architecture_file.write(tmp_path / "a.yaml", "one\ntwo", architecture, {"trial": 3})
    assert architecture_file.read(tmp_path / "a.yaml") == (architecture, {"trial": 3})
    assert (tmp_path / "a.yaml").read_text(encoding="utf-8").startswith("# one\n# two\n")

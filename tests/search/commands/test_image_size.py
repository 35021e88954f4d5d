"""Images of several sizes as a choice of a search: what it refuses, and the whole from the search to deployed files."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import onnxruntime
import pytest

from models.complexity import cost
from search.commands.accuracy import accuracy_settings
from search.commands.settings import check_study, study_settings
from search.results import architecture_file
from search.study.storage import open_study
from search.study.targets import targets_of
from search.study.trial import finished_trials
from search.training.metadata import ARCHITECTURE_KEY, read_metadata
from tests.search.commands.test_conf import compose, files
from tests.support.commands import TINY, call

SIZED = ["+search=cpu_latency", "study.name=sized", *TINY, "space.img_size=[16,32]"]
MEASURING = TINY[3:5]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["deploy.img_size=64"], "deploy.img_size=64: the search chooses the size of images from space.img_size"),
        (["deploy.img_size=32"], "deploy.img_size=32: the search chooses"),
        (["proxy.img_size=24"], "proxy.img_size=24: the search chooses the size of images from space.img_size"),
        (["+search=cpu_latency_dense"], "deploy.img_size=512: the search chooses"),
        (["space.img_size=[16,48]"], "space.img_size=48 is above data.img_size=32, .*; set data.img_size=48, or leave"),
        (["space.img_size=48"], "space.img_size=48 is above data.img_size=32"),
        (["space.img_size=[15,32]"], "space.img_size=15 is below 16, the smallest image for patches of 2 pixels"),
        (["space.img_size=[16,large]"], "space.img_size='large' must be a whole number"),
        (["space.img_size=[16,24.5]"], "space.img_size=24.5 must be a whole number"),
    ],
)
def test_sizes_that_cannot_be_are_named(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_study(compose("space=fine", "space.img_size=[16,32]", *overrides))


def test_a_size_that_is_refused_ends_the_command_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call("check", [*SIZED, "deploy.img_size=64"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: deploy.img_size=64: the search chooses the size of images")


@pytest.mark.parametrize("name", files("space"))
def test_every_space_takes_sizes(name: str) -> None:
    assert compose(f"space={name}", "space.img_size=[64]").space.img_size == [64]


@pytest.mark.parametrize("sizes", ["[16,32]", "32", "[]"])
def test_sizes_that_the_data_have_are_taken(sizes: str) -> None:
    check_study(compose("space=fine", f"space.img_size={sizes}"))


def test_settings_of_a_study_name_the_sizes_only_where_they_are_a_choice() -> None:
    plain, sized = compose("space=fine"), compose("space=fine", "space.img_size=[16,32]")
    for settings in (study_settings(plain), accuracy_settings(plain)):
        assert "img_size" not in settings["space"]
    for settings in (study_settings(sized), accuracy_settings(sized)):
        assert settings["space"]["img_size"] == [16, 32]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a study of two image sizes."""
    folder = tmp_path_factory.mktemp("user")
    with contextlib.chdir(folder):
        assert call("run", [*SIZED, "study.n_trials=4"]) == 0
    return folder


@pytest.fixture
def smallest(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of the fastest network of the front, which is the smallest one of the smaller images."""
    monkeypatch.chdir(folder)
    return Path("outputs/sized/pareto/trial-00000.yaml")


def test_trials_are_counted_and_measured_at_their_size(smallest: Path) -> None:
    study = open_study("sized", "sqlite:///outputs/sized/study.db", create=False)
    trials = finished_trials(study)
    assert {trial.architecture.img_size for trial in trials} == {16, 32}
    assert targets_of(study)["first"].calibration.anchor.img_size == 32
    for trial in trials:
        size = trial.architecture.img_size
        assert (trial.num_params, trial.num_macs) == cost(trial.architecture, 1, 100, size)
        assert trial.parameters["img_size"] == size
        samples = json.loads(Path(f"outputs/sized/latency/trial-{trial.number:05d}.json").read_text(encoding="utf-8"))
        assert samples["first"]["device"]["input_size"] == f"1x{size}x{size}"


def test_exported_file_says_the_size(smallest: Path) -> None:
    architecture, facts = architecture_file.read(smallest)
    assert architecture.img_size == 16
    assert facts["targets"]["first"]["device"]["input_size"] == "1x16x16"
    assert read_metadata(smallest.with_suffix(".supernet.safetensors"))[ARCHITECTURE_KEY] == architecture.key
    assert architecture.key.endswith("@16")


def test_network_is_trained_and_deployed_at_its_size(smallest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    training = [f"arch={smallest}", "data=noisy_glyphs", *TINY[:3]]
    assert call("train", [*training, "init=supernet"]) == 0
    assert "the network gets images of 16 pixels, resized from data.img_size=32" in capsys.readouterr().out
    assert read_metadata(smallest.with_suffix(".safetensors"))[ARCHITECTURE_KEY].endswith("@16")
    export = ["study.name=sized", *MEASURING, "pick=accuracy>=0", "format=[onnx,safetensors]"]
    assert call("export", export) == 0
    (deployed,) = Path("outputs/sized/deploy").iterdir()
    assert deployed.name == smallest.stem
    session = onnxruntime.InferenceSession(deployed / "model.onnx", providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape[1:] == [1, 16, 16]
    assert session.get_modelmeta().custom_metadata_map[ARCHITECTURE_KEY].endswith("@16")
    card = (deployed / "README.md").read_text(encoding="utf-8")
    assert "# LITv2 8 at 16 pixels: " in card
    assert "Input: (batch, 1, 16, 16) float32" in card
    assert json.loads((deployed / "card.json").read_text(encoding="utf-8"))["device"]["input_size"] == "1x16x16"
    assert call("measure", [f"deployed={deployed}", *MEASURING]) == 0
    assert call("measure", [f"arch={smallest}", *MEASURING]) == 0
    assert "1x16x16" in capsys.readouterr().out


def test_training_on_smaller_images_than_the_network_is_for_is_refused(
    smallest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "large.yaml"
    file.write_text(smallest.read_text(encoding="utf-8").replace("img_size: 16", "img_size: 96"), encoding="utf-8")
    assert call("train", [f"arch={file}", "data=noisy_glyphs", *TINY[:3]]) == 2
    assert "data.img_size=32 is below 96, the image size of this network; set it to 96" in capsys.readouterr().err


def test_other_sizes_are_another_study(smallest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("run", [*SIZED, "study.n_trials=5", "space.img_size=[16,24,32]"]) == 2
    assert "img_size" in capsys.readouterr().err


def test_front_of_several_sizes_is_confirmed_and_reported(smallest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    confirm = ["confirm.num_seeds=1", "confirm.train.max_epochs=1", "confirm.minutes=0.2"]
    assert call("confirm", [*SIZED, *confirm]) == 0
    confirmed = json.loads(Path("outputs/sized/confirmed.json").read_text(encoding="utf-8"))["networks"]
    assert {network["architecture"]["img_size"] for network in confirmed} <= {16, 32}
    assert call("report", ["study.name=sized"]) == 0
    report = Path("outputs/sized/report.md").read_text(encoding="utf-8")
    assert "8 at 16 pixels: " in report
    assert "the size that each network has" in report


def test_check_measures_the_effect_of_the_size(smallest: Path) -> None:
    check = ["check.num_architectures=3", "check.effects_minutes=0.02", "check.long.max_epochs=1"]
    assert call("check", [*SIZED, *check]) in (0, 3, 4)
    result = json.loads(Path("outputs/sized/check.json").read_text(encoding="utf-8"))
    assert "img_size" in [effect["dimension"] for effect in result["effects"]]
    assert {network["architecture"]["img_size"] for network in result["networks"]} <= {16, 32}

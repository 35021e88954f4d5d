"""Teachers from files: what they compute, and what is refused in one line."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from models.architecture import Architecture
from models.elastic import Bounds, ElasticLITv2
from models.litv2 import build
from search import UserError
from search.accuracy.teachers import TeacherSettings, read_teacher
from search.accuracy.trained_supernet import TrainedSupernet
from search.files import sha256
from search.results.architecture_file import write
from search.training import sources
from search.training.data import ImageData
from search.training.files import save_weights
from search.training.normalisation import Normalisation
from tests.support.commands import TINY, call
from tests.support.networks import enliven

TIMM = "test_vit"  # a small one, which takes images of its own size alone


@pytest.fixture(scope="module")
def data() -> ImageData:
    return ImageData("glyphs", partial(sources.glyphs, seed=0), 32, 1, 64, 32, 0, 2, False)


@pytest.fixture
def exported(tmp_path: Path, architecture: Architecture, data: ImageData) -> Path:
    """Weights as search.train writes them, of a network for other statistics than those of the images."""
    network = enliven(build(architecture, in_chans=1, num_classes=100))
    file = tmp_path / "teacher.safetensors"
    save_weights(network, Normalisation((0.3,), (0.4,)), file, data.class_names)
    return file


def save_timm(file: Path, num_classes: int = 100, in_chans: int = 3) -> torch.nn.Module:
    """Write weights of a model of timm as its training script does."""
    torch.manual_seed(0)
    model = timm.create_model(TIMM, num_classes=num_classes, in_chans=in_chans).eval()
    torch.save({"epoch": 3, "state_dict": model.state_dict()}, file)
    return model


def test_exported_network_teaches_what_it_computes(exported: Path, architecture: Architecture, data: ImageData) -> None:
    teacher = read_teacher(TeacherSettings(weights=str(exported)), data)
    assert teacher is not None
    network = build(architecture, in_chans=1, num_classes=100).eval()
    network.load_state_dict(load_file(exported))
    pixels = data.train.images[:4]
    with torch.no_grad():
        expected = network(Normalisation((0.3,), (0.4,)).apply(pixels)).softmax(1)
    torch.testing.assert_close(teacher.probabilities(data.normalisation.apply(pixels)), expected, rtol=1e-3, atol=1e-5)
    assert teacher.digest == sha256(exported)[:16]
    assert not any(parameter.requires_grad for parameter in teacher.network.parameters())


@pytest.mark.parametrize("in_chans", [1, 3])
def test_model_of_timm_gets_images_of_its_own_size_and_statistics(tmp_path: Path, data: ImageData, in_chans: int) -> None:
    model = save_timm(tmp_path / "vit.pth", in_chans=in_chans)
    teacher = read_teacher(TeacherSettings(TIMM, str(tmp_path / "vit.pth"), distillation=0.7, students="largest"), data)
    assert teacher is not None
    side = timm.get_pretrained_cfg(TIMM).input_size[-1]
    assert teacher.img_size == side != data.img_size
    assert (teacher.distillation, teacher.teaches_all) == (0.7, False)
    half = torch.full((2, 1, 32, 32), 128, dtype=torch.uint8)
    cfg = timm.get_pretrained_cfg(TIMM)
    expects = Normalisation(tuple(cfg.mean), tuple(cfg.std)).for_channels(in_chans)
    with torch.no_grad():
        expected = model(expects.apply(torch.full((2, in_chans, side, side), 128))).softmax(1)
    torch.testing.assert_close(teacher.probabilities(data.normalisation.apply(half)), expected, rtol=1e-3, atol=1e-5)


def test_model_of_timm_is_built_for_the_size_that_its_weights_are_for(tmp_path: Path, data: ImageData) -> None:
    torch.manual_seed(0)
    model = timm.create_model(TIMM, num_classes=100, img_size=64)
    save_file(model.state_dict(), tmp_path / "vit.safetensors")
    settings = TeacherSettings(TIMM, str(tmp_path / "vit.safetensors"), img_size=64)
    teacher = read_teacher(settings, data)
    assert teacher is not None
    assert teacher.probabilities(torch.zeros(2, 1, 32, 32)).shape == (2, 100)
    with pytest.raises(UserError, match=rf"does not fit {TIMM}: .*pos_embed"):
        read_teacher(replace(settings, img_size=96), data)


def test_there_is_no_teacher_by_default(data: ImageData) -> None:
    assert read_teacher(TeacherSettings(), data) is None
    assert TeacherSettings().to_dict() is None


def test_study_knows_a_file_by_its_digest(exported: Path, tmp_path: Path) -> None:
    settings = TeacherSettings(weights=str(exported))
    (tmp_path / "copy.safetensors").write_bytes(exported.read_bytes())
    assert settings.to_dict() == replace(settings, weights=str(tmp_path / "copy.safetensors")).to_dict()
    assert settings.to_dict() == {
        "model": None, "weights": f"sha256 {sha256(exported)[:16]}", "img_size": None, "distillation": 0.5,
        "students": "all",
    }  # fmt: skip
    pretrained = TeacherSettings(TIMM, pretrained=True)
    assert pretrained.to_dict() != replace(pretrained, model="test_resnet").to_dict()


def test_teacher_of_other_classes_is_refused(tmp_path: Path, architecture: Architecture, data: ImageData) -> None:
    expected = r"has 7 classes, and the images have 100; name a teacher that was trained on these classes"
    save_weights(build(architecture, in_chans=1, num_classes=7), data.normalisation, tmp_path / "few.safetensors")
    save_timm(tmp_path / "few.pth", num_classes=7)
    for settings in (
        TeacherSettings(weights=str(tmp_path / "few.safetensors")),
        TeacherSettings(TIMM, str(tmp_path / "few.pth")),
    ):
        with pytest.raises(UserError, match=expected):
            read_teacher(settings, data)
    with pytest.raises(UserError, match=r"teacher test_resnet has 1000 classes"):  # before anything is downloaded
        read_teacher(TeacherSettings("test_resnet", pretrained=True), data)


def test_teacher_of_classes_with_other_names_is_refused(tmp_path: Path, architecture: Architecture, data: ImageData) -> None:
    names = [data.class_names[1], data.class_names[0], *data.class_names[2:]]
    network = build(architecture, in_chans=1, num_classes=100)
    save_weights(network, data.normalisation, tmp_path / "mixed.safetensors", names)
    with pytest.raises(UserError, match=r"has other classes than the images, although also 100: class 0 is .* \(2 differ\)"):
        read_teacher(TeacherSettings(weights=str(tmp_path / "mixed.safetensors")), data)


def test_supernet_is_no_teacher(tmp_path: Path, architecture: Architecture, data: ImageData) -> None:
    elastic = ElasticLITv2(Bounds.of([architecture]), 1, 100)
    TrainedSupernet(elastic, data.train.images[:4], data.normalisation).save(tmp_path / "supernet.safetensors")
    with pytest.raises(UserError, match=r"supernet.safetensors is a supernet; name the file of one network"):
        read_teacher(TeacherSettings(weights=str(tmp_path / "supernet.safetensors")), data)


def test_files_that_are_not_weights_are_named(tmp_path: Path, data: ImageData) -> None:
    text = tmp_path / "notes.pth"
    text.write_text("not weights", encoding="utf-8")
    with pytest.raises(UserError, match=r"teacher.weights=.*notes.pth does not hold weights that can be read"):
        read_teacher(TeacherSettings(TIMM, str(text)), data)
    with pytest.raises(
        UserError, match=r"teacher.weights: .*notes.pth .*; if they are of a model of timm, set teacher.model"
    ):
        read_teacher(TeacherSettings(weights=str(text)), data)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weights": "/no/such.pth"}, "teacher.weights=/no/such.pth: there is no such file"),
        ({"model": "resnet9000", "pretrained": True}, "teacher.model=resnet9000 is not a model of timm"),
        ({"model": TIMM}, f"teacher.model={TIMM} needs either teacher.weights=FILE or teacher.pretrained=true"),
        ({"model": TIMM, "pretrained": True, "weights": "a.pth"}, "needs either teacher.weights"),
        ({"pretrained": True}, "teacher.pretrained=true needs a model of timm: set teacher.model=NAME"),
        ({"students": "some"}, "teacher.students=some must be one of all, largest"),
        ({"distillation": 1.5}, "teacher.distillation=1.5"),
        ({"img_size": 0}, "teacher.img_size=0"),
    ],
)
def test_settings_that_do_not_fit_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises((UserError, ValueError), match=message):
        TeacherSettings(**settings)


def test_weights_that_cannot_be_downloaded_are_named(data: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr("timm.create_model", unreachable)
    cfg = replace(timm.get_pretrained_cfg("test_resnet"), num_classes=100)
    monkeypatch.setattr("search.accuracy.teachers.get_pretrained_cfg", lambda name: cfg)
    with pytest.raises(UserError, match=r"teacher.model=test_resnet: .*no network.*; name a file .* with teacher.weights"):
        read_teacher(TeacherSettings("test_resnet", pretrained=True), data)


def test_command_trains_with_a_teacher(
    tmp_path: Path, exported: Path, architecture: Architecture, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "network.yaml"
    write(file, "", architecture, {})
    arguments = [f"arch={file}", *TINY[:3], f"teacher.weights={exported}", "teacher.distillation=0.3"]
    assert call("train", arguments) == 0
    output = capsys.readouterr().out
    assert f"learning from {exported}" in output
    assert "a training step takes about" in output
    result = json.loads(file.with_suffix(".result.json").read_text(encoding="utf-8"))
    assert str(exported) in result["teacher"]
    assert "distillation 0.3" in result["teacher"]
    assert sha256(exported)[:16] in result["teacher"]
    assert call("train", [f"arch={file}", *TINY[:3], "teacher.weights=/no/such.pth"]) == 2
    assert "teacher.weights=/no/such.pth: there is no such file" in capsys.readouterr().err


def test_search_learns_from_a_teacher(
    tmp_path: Path, exported: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A study knows its teacher, and refuses to go on with another one."""
    monkeypatch.chdir(tmp_path)
    arguments = ["+search=eager_latency", *TINY, "study.n_trials=1"]
    assert call("run", [*arguments, f"teacher.weights={exported}"]) == 0
    assert f"learning from {exported}" in capsys.readouterr().out
    (supernet,) = (tmp_path / "outputs/.supernets").glob("*/supernet.safetensors")
    assert supernet.stat().st_size > 0
    assert call("run", [*arguments, "study.n_trials=2"]) == 2
    assert "accuracy.teacher" in capsys.readouterr().err

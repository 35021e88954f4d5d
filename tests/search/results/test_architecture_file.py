"""An exported file loads wherever a file is taken, and a hostile one nowhere."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import timm
import yaml

import models.litv2  # noqa: F401 - registers the variants
from examples.detection import main as detect
from models.architecture import Architecture, StageSpec
from models.litv2 import build
from search import UserError
from search.results import architecture_file
from search.results.architecture_file import network_input
from tests.support.commands import call

STAGE = "{depth: 1, window_size: 2, alpha: 0.5, num_heads: 2, mlp_ratio: 4.0}"
BOMB = "a: &a [x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


def whole(stages: str, embed_dim: str = "8") -> str:
    """A complete file."""
    return f"format: 2\narchitecture: {{embed_dim: {embed_dim}, patch_size: 2, downsample: conv, stages: [{stages}]}}\n"


HOSTILE = {
    "tag": "!!python/object/apply:os.system ['touch hacked']",
    "tag inside": whole(", ".join([STAGE] * 4), "!!python/object/apply:os.getpid []"),
    "target": whole(", ".join([STAGE] * 4)).replace("embed_dim", "_target_: os.system, embed_dim"),
    "huge depth": whole(", ".join([STAGE.replace("depth: 1", "depth: 1000000000")] * 4)),
    "huge width": whole(", ".join([STAGE] * 4), "1000000000"),
    "text for a number": whole(", ".join([STAGE] * 4), "eight"),
    "boolean for a number": whole(", ".join([STAGE] * 4), "true"),
    "list for a number": whole(", ".join([STAGE] * 4), "[8]"),
    "not a number": whole(", ".join([STAGE.replace("0.5", ".nan")] * 4)),
    "stages that are none": whole("1, 2, 3, 4"),
    "references upon references": BOMB + whole(", ".join([STAGE] * 4), "8") + "more: *i\n",
    "deep nesting": "[" * 5000,
}


FORMAT_1 = f"""\
format: 1
architecture: {{embed_dim: 8, patch_size: 2, downsample: conv, stages: [{", ".join([STAGE] * 4)}]}}
accuracy: {{validation: 0.8}}
latency: {{latency_ms: 1.5}}
device: {{device: CPU, input_size: 1x32x32, num_classes: 10}}
further: {{phone: {{latency: {{latency_ms: 9.0}}, device: {{device: phone, input_size: 1x32x32, num_classes: 10}}}}}}
"""


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "hostile.yaml"
    file.write_text(HOSTILE[request.param], encoding="utf-8")
    return file


@pytest.mark.parametrize("hostile", HOSTILE, indirect=True)
@pytest.mark.parametrize("command", ["train", "measure"])
def test_hostile_file_is_refused_in_one_line(hostile: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(command, [f"arch={hostile}"]) == 2
    error = capsys.readouterr().err.strip()
    assert "hostile.yaml" in error
    assert len(error.splitlines()) == 1
    assert len(error) < 1000
    assert list(hostile.parent.iterdir()) == [hostile]


@pytest.mark.parametrize("hostile", HOSTILE, indirect=True)
def test_hostile_file_builds_nothing_in_python(hostile: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError):
        architecture_file.read(hostile)
    monkeypatch.setattr(sys, "argv", ["detection", str(hostile)])
    with pytest.raises(UserError):
        detect()


def test_one_network_through_every_loader(tmp_path: Path, architecture: Architecture) -> None:
    file = tmp_path / "network.yaml"
    facts = {"targets": {"first": {"latency": {"latency_ms": 1.5}}}, "again": [[1, 2]] * 2}
    architecture_file.write(file, "a network", architecture, facts)
    assert architecture_file.read(file) == (architecture, facts)
    expected = build(architecture).state_dict()
    body = yaml.safe_load(file.read_text(encoding="utf-8"))
    for network in (
        timm.create_model("litv2", architecture=body["architecture"]),
        timm.create_model("litv2", architecture=architecture_file.read(file)[0]),
        build(Architecture.from_dict(body["architecture"])),
    ):
        assert {name: tensor.shape for name, tensor in network.state_dict().items()} == {
            name: tensor.shape for name, tensor in expected.items()
        }
        again = tmp_path / "again.yaml"
        architecture_file.write(again, "a network", network.architecture, facts)
        assert again.read_bytes() == file.read_bytes()


def test_file_of_format_1_is_read_as_one_of_format_2(tmp_path: Path) -> None:
    file = tmp_path / "old.yaml"
    file.write_text(FORMAT_1, encoding="utf-8")
    architecture, facts = architecture_file.read(file)
    assert architecture.embed_dim == 8
    assert facts == {
        "accuracy": {"validation": 0.8},
        "targets": {
            "first": {
                "role": "objective",
                "latency": {"latency_ms": 1.5},
                "device": {"device": "CPU", "input_size": "1x32x32", "num_classes": 10},
            },
            "phone": {
                "latency": {"latency_ms": 9.0},
                "device": {"device": "phone", "input_size": "1x32x32", "num_classes": 10},
            },
        },
    }
    assert network_input(architecture, facts) == (1, 32, 10)
    architecture_file.write(file, "a network", architecture, facts)
    assert architecture_file.read(file) == (architecture, facts)


@pytest.mark.parametrize("command", ["train", "measure"])
def test_file_of_format_1_is_taken_by_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old.yaml").write_text(FORMAT_1, encoding="utf-8")
    settings = {
        "train": ["data.train_size=64", "data.val_size=64", "train.batch_size=32", "train.max_epochs=1"],
        "measure": ["latency.max_seconds=0.3", "latency.calibration_seconds=0.3"],
    }
    assert call(command, ["arch=old.yaml", *settings[command]]) == 0
    assert "1x32x32" in capsys.readouterr().out or (tmp_path / "old.safetensors").exists()


def test_file_of_format_1_is_a_backbone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "old.yaml"
    file.write_text(FORMAT_1.replace("patch_size: 2", "patch_size: 4"), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["detection", str(file), "--steps", "1", "--img-size", "64"])
    detect()


@pytest.mark.parametrize(
    "facts", [{}, {"targets": {}}, {"targets": 3}, {"targets": {"first": {"device": {"input_size": 3}}}}]
)
def test_input_that_a_file_does_not_have_is_imagenets(facts: dict[str, object]) -> None:
    assert network_input(Architecture(8, (StageSpec(1),) * 4), facts) == (3, 224, 1000)
    assert network_input(Architecture(8, (StageSpec(1),) * 4, img_size=96), facts) == (3, 96, 1000)


@pytest.mark.parametrize("text", ["format: 3\narchitecture: {}", "architecture: {}", "[]", "format: [1]\narchitecture: {}"])
def test_another_format_is_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "network.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match="it needs `format: 2` and `architecture`"):
        architecture_file.read(file)

"""An exported file loads wherever a file is taken, and a hostile one nowhere."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import timm
import yaml

import models.litv2  # noqa: F401 - registers the variants
from examples.detection import main as detect
from models.architecture import Architecture
from models.litv2 import build
from search import UserError
from search.results import architecture_file
from tests.support.commands import call

STAGE = "{depth: 1, window_size: 2, alpha: 0.5, num_heads: 2, mlp_ratio: 4.0}"
BOMB = "a: &a [x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


def whole(stages: str, embed_dim: str = "8") -> str:
    return f"format: 1\narchitecture: {{embed_dim: {embed_dim}, patch_size: 2, downsample: conv, stages: [{stages}]}}\n"


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
    facts = {"latency": {"latency_ms": 1.5}, "again": [[1, 2]] * 2}
    architecture_file.write(file, "one", architecture, facts)
    assert architecture_file.read(file) == (architecture, facts)
    expected = build(architecture).state_dict()
    body = yaml.safe_load(file.read_text(encoding="utf-8"))
    for network in (
        timm.create_model("litv2", architecture=body["architecture"]),
        timm.create_model("litv2", architecture=architecture_file.read(file)[0]),
        build(Architecture.from_dict(body["architecture"])),
    ):
        assert {name: one.shape for name, one in network.state_dict().items()} == {
            name: one.shape for name, one in expected.items()
        }
        again = tmp_path / "again.yaml"
        architecture_file.write(again, "one", network.architecture, facts)
        assert again.read_bytes() == file.read_bytes()

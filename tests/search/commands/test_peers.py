"""Models of timm are measured on the study's target, once, and stand in its report."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from search.commands import peers
from search.latency.onnxruntime import onnxruntime_target
from search.study.targets import FIRST, Target
from tests.contracts.latency_target import SMALL
from tests.support.commands import call
from tests.support.known_engine import studied

NETWORK: dict[str, Any] = {"img_size": 32, "in_chans": 1, "num_classes": 10}
SETTINGS: dict[str, Any] = {
    "batch_size": 1, "num_threads": 1, "dtype": "float32", "prepared": True, "tolerance": 0.05, "max_seconds": 0.5,
    "calibration_seconds": 0.3,
}  # fmt: skip
SHORT = ["study.name=shown", "latency.max_seconds=0.3", "latency.calibration_seconds=0.3"]


@pytest.fixture(scope="module")
def target() -> Target:
    target = onnxruntime_target(**NETWORK, **SETTINGS)
    return Target(target.calibrate(SMALL), device=target.fingerprint(), reference_ms=10.0)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = Path("outputs/shown")
    folder.mkdir(parents=True)
    return folder


def test_models_are_measured_once_and_reported(
    folder: Path, target: Target, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    studied("sqlite:///outputs/shown/study.db", 12, targets={FIRST: target})
    assert call("report", [*SHORT, "report.peers=[mobilenetv3_small_050]"]) == 0, capsys.readouterr().err
    stored = json.loads((folder / "peers.json").read_text(encoding="utf-8"))
    (model,) = stored["models"].values()
    assert stored["target"] == FIRST
    assert model["latency"]["latency_ms"] > 0
    text = (folder / "report.md").read_text(encoding="utf-8")
    assert "Comparison with other models" in text
    assert f"| mobilenetv3_small_050 | {model['latency']['latency_ms']:.3f}"[:35] in text

    def measured_again(*args: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(peers, "time_all", measured_again)
    assert call("report", [*SHORT, "report.peers=[mobilenetv3_small_050]"]) == 0
    assert json.loads((folder / "peers.json").read_text(encoding="utf-8")) == stored
    assert call("report", ["study.name=shown"]) == 0
    assert "mobilenetv3_small_050" in (folder / "report.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("report.peers=[mobilnet_small]", "report.peers=mobilnet_small"),
        ("report.peers=[vgg11]", "report.peers=vgg11 does not take the study's images of 1x4x4"),
    ],
)
def test_mistakes_are_named(
    folder: Path, target: Target, override: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    small = {**NETWORK, "img_size": 4}
    device = onnxruntime_target(**small, **SETTINGS).fingerprint()
    studied("sqlite:///outputs/shown/study.db", 8, targets={FIRST: replace(target, device=device)})
    assert call("report", [*SHORT, override]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not (folder / "peers.json").exists()


def test_other_device_is_refused(folder: Path, target: Target, capsys: pytest.CaptureFixture[str]) -> None:
    elsewhere = replace(target, device={**target.device, "device": "Known CPU", "num_threads": 4})
    studied("sqlite:///outputs/shown/study.db", 8, targets={FIRST: elsewhere})
    assert call("report", [*SHORT, "report.peers=[resnet10t]"]) == 2
    error = capsys.readouterr().err
    assert "device Known CPU instead of" in error
    assert "num_threads 4 instead of 1" in error
    assert "set latency= as in the search" in error


def test_file_that_cannot_be_read_is_measured_again(folder: Path, target: Target, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "peers.json").write_text("{", encoding="utf-8")
    assert peers.known_models(folder / "peers.json", {}) == {}
    assert "measured again" in caplog.text

"""What a check has measured is used by the studies that it was made for, and no others."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from search.accuracy.checked import Checked, read_checked

SETTINGS: dict[str, Any] = {
    "space": {"embed_dim": [8, 16], "patch_size": 4},
    "data": {"name": "glyphs", "source": {"seed": 0}},
    "train": {"max_epochs": 12},
    "accuracy": {"num_images": 3000},
    "proxy": {"width_multiplier": 1.0},
    "latency": {"budget_ms": 2.0},
}
QUALITY = {"residual": 0.0145, "seed_noise": 0.004, "num_networks": 24, "num_seeds": 3, "slope": 0.8}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Results of a check, whose settings contain paths too, and not those of latency."""
    settings = copy.deepcopy(SETTINGS)
    settings["data"]["source"]["path"] = "/images"
    settings["accuracy"]["cache"] = "outputs/.supernets"
    del settings["latency"]
    file = tmp_path / "check.json"
    file.write_text(json.dumps({"quality": QUALITY, "settings": settings}), encoding="utf-8")
    return file


def test_a_check_is_read(file: Path) -> None:
    assert read_checked(file, SETTINGS) == Checked(0.0145, 0.004, 24, 3, 0.8)


def test_the_error_of_a_score_is_on_the_scale_of_scores() -> None:
    assert Checked(0.02, 0.004, 24, slope=0.5).score_error == pytest.approx(0.04)
    assert Checked(0.02, 0.004, 24, slope=-1.0).score_error == pytest.approx(0.2)


def test_no_check_is_none(tmp_path: Path) -> None:
    assert read_checked(tmp_path / "check.json", SETTINGS) is None


@pytest.mark.parametrize("section", ["space", "data", "train", "accuracy", "proxy"])
def test_a_check_of_other_settings_is_not_used(file: Path, section: str) -> None:
    settings = copy.deepcopy(SETTINGS)
    key = next(key for key, value in settings[section].items() if not isinstance(value, dict))
    settings[section][key] = "changed"
    assert read_checked(file, settings) is None


def test_a_check_of_other_image_sizes_is_not_used(file: Path) -> None:
    sized = {**SETTINGS, "space": {**SETTINGS["space"], "img_size": [96, 128]}}
    assert read_checked(file, sized) is None
    body = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**body, "settings": {**body["settings"], "space": sized["space"]}}), encoding="utf-8")
    assert read_checked(file, sized) is not None
    assert read_checked(file, SETTINGS) is None


@pytest.mark.parametrize("text", ["{torn", "[]", '{"spread": 0.1, "settings": {}}', '{"quality": {"residual": "none"}}'])
def test_a_check_that_cannot_be_read_is_named(tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "check.json"
    file.write_text(text, encoding="utf-8")
    assert read_checked(file, SETTINGS) is None
    assert "run search.check again" in caplog.text


def test_a_check_in_another_dtype_is_not_used(file: Path) -> None:
    """Accuracies in 8-bit integers are others; a check that does not say its dtype is one in float32."""
    int8 = {**SETTINGS, "latency": {"dtype": "int8"}}
    assert read_checked(file, int8) is None
    assert read_checked(file, {**SETTINGS, "latency": {"dtype": "bfloat16"}}) is not None
    body = json.loads(file.read_text(encoding="utf-8"))
    body["settings"]["latency"] = {"dtype": "int8"}
    file.write_text(json.dumps(body), encoding="utf-8")
    assert read_checked(file, SETTINGS) is None
    assert read_checked(file, int8) is not None

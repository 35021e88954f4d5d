"""`python -m search.measure`: models by name and by file, as a table and as JSON; mistakes named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from models.architecture import Architecture, StageSpec
from search.results import architecture_file
from tests.support.commands import call

QUICK = ["latency.max_seconds=0.5", "latency.calibration_seconds=0.3"]


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    path = tmp_path / "trial-00003.yaml"
    architecture = Architecture(8, (StageSpec(1, 2, 0.5, 2),) * 4, downsample="conv")
    facts = {"targets": {"first": {"device": {"input_size": "1x32x32", "num_classes": 100}}}}
    architecture_file.write(path, "a network", architecture, facts)
    return path


def test_measures_models_and_files_in_turn(tmp_path: Path, exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "latency.json"
    arguments = [
        *QUICK,
        "latency=cpu",  # which converts nothing
        "model=[resnet18,litv2_s]",
        f"arch={exported}",
        "latency.input_size=64",
        f"output={output}",
    ]
    assert call("measure", arguments) == 0
    printed = capsys.readouterr().out
    data: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
    assert [model["name"] for model in data["models"]] == ["resnet18", "litv2_s", "trial-00003"]
    assert [model["input_shape"] for model in data["models"]] == [[3, 64, 64], [3, 64, 64], [1, 64, 64]]
    assert data["device"]["target"] == "cpu"
    assert data["calibration"]["anchor_ms"] > 0
    for model in data["models"]:
        latency = model["latency"]
        assert model["name"] in printed
        assert model["parameters"] > 0
        assert model["multiply_accumulates"] > 0
        assert latency["low_ms"] < latency["latency_ms"] < latency["high_ms"]
        assert sum(len(timed["candidate_ms"]) for timed in model["rounds"]) == latency["repetitions"]
        assert model["images_per_second"] == pytest.approx(1e3 / latency["latency_ms"])


def test_runtimes_are_compared_in_one_run(tmp_path: Path, exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "latency.json"
    runtimes = ["cpu", "onnxruntime", "onnxruntime:int8"]
    assert call("measure", [*QUICK, f"arch={exported}", f"runtimes=[{','.join(runtimes)}]", f"output={output}"]) == 0
    data = json.loads(output.read_text(encoding="utf-8"))
    assert [(model["runtime"], model["dtype"]) for model in data["models"]] == [
        ("cpu", "float32"), ("onnxruntime", "float32"), ("onnxruntime", "int8"),
    ]  # fmt: skip
    fastest = min(data["models"], key=lambda model: model["latency"]["latency_ms"])
    printed = capsys.readouterr().out
    assert all(runtime in printed for runtime in runtimes)
    name = fastest["runtime"] + (":int8" if fastest["dtype"] == "int8" else "")
    assert f"trial-00003 is the fastest in {name}" in printed
    assert data["models"][2]["latency"]["file_bytes"] < data["models"][1]["latency"]["file_bytes"]


def test_models_of_one_name_keep_their_costs(tmp_path: Path, exported: Path) -> None:
    other, output = tmp_path / "other" / exported.name, tmp_path / "latency.json"
    other.parent.mkdir()
    architecture = Architecture(16, (StageSpec(1, 2, 0.5, 2),) * 4, downsample="conv")
    architecture_file.write(other, "another network", architecture, {})
    files = f"arch=[{exported},{other}]"
    assert call("measure", [*QUICK, "latency=cpu", files, "latency.input_size=32", f"output={output}"]) == 0
    first, second = json.loads(output.read_text(encoding="utf-8"))["models"]
    assert first["name"] == second["name"]
    assert first["parameters"] < second["parameters"]


def test_file_is_measured_as_it_was_searched_for(tmp_path: Path, exported: Path) -> None:
    output = tmp_path / "latency.json"
    assert call("measure", [*QUICK, f"arch={exported}", f"output={output}"]) == 0
    data = json.loads(output.read_text(encoding="utf-8"))
    assert data["device"]["target"] == "onnxruntime"
    (model,) = data["models"]
    assert model["input_shape"] == [1, 32, 32]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a timm model"),
        (["model=litv2_x"], "litv2_x is not registered with timm; did you mean litv2_"),
        (["model=qqqqqq"], "timm.list_models"),
        (["arch=missing.yaml"], "arch=missing.yaml cannot be read"),
        (["model=litv2_s", "latency.input_size=0"], "latency.input_size=0 must be"),
        (
            ["model=litv2_s", "latency.dtype=bfloat16"],
            "latency.dtype=bfloat16 does not run with onnxruntime; take float32, int8",
        ),
        (
            ["model=litv2_s", "runtimes=[cpu,tpu]"],
            "runtimes=tpu is unknown; choose from cpu, cpu_compiled, onnxruntime, openvino, executorch",
        ),
        (["model=litv2_s", "runtimes=cpu", "latency.dtype=int8"], "latency.dtype=int8 beside runtimes: name it there"),
        (["deployed=somewhere", "runtimes=cpu"], "runtimes= is for models, and deployed= is for files"),
        (["model=litv2_s", "runtimes=cpu:int8"], "runtimes=cpu:int8 does not run with cpu; take float32, bfloat16"),
        (["model=litv2_s", "output=nowhere/out.json"], "there is no folder nowhere"),
        (["model=litv2_s", "latency=tpu"], "tpu"),
        (["model=litv2_s", "latency.input_size=8"], "litv2_s does not take an input of 3x8x8"),
        (["model=resnet18.typo"], "model=resnet18.typo"),
    ],
)
def test_mistakes_are_named(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("measure", arguments) == 2
    assert message in capsys.readouterr().err


def test_model_that_cannot_run_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    huge = ["model=resnet18", "latency.input_size=64", "latency.batch_size=1000000000"]
    assert call("measure", [*QUICK, "latency=cpu", *huge]) == 1
    assert "choose another" in capsys.readouterr().err

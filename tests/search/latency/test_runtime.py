"""What every runtime relies on, the comparison with PyTorch and the check of its packages; how the default one converts."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import torch
from torch import nn

from models.deploy import prepare
from models.deploy.onnx_operators import OPERATORS
from models.litv2 import build
from search.latency.onnx_session import overflows_int8
from search.latency.onnxruntime import RUNTIME, convert
from search.latency.runtime import ConversionError, check_parity, require
from tests.contracts.latency_target import SMALL
from tests.support.commands import ROOT
from tests.support.networks import NETWORKS


def test_wrong_outputs_are_never_timed() -> None:
    model, x = nn.Linear(4, 4), torch.rand(2, 4)
    expected = model(x).detach()
    assert check_parity("onnxruntime", model, x, expected, "float32") < 1e-6
    with pytest.raises(ConversionError, match="outputs differ by"):
        check_parity("onnxruntime", model, x, expected * 1.001, "float32")
    with pytest.raises(ConversionError, match="outputs differ by nan"):
        check_parity("onnxruntime", model, x, expected * float("nan"), "float32")


def test_head_of_zeros_is_compared_too() -> None:
    model, x = nn.Linear(4, 4), torch.rand(2, 4)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    assert check_parity("onnxruntime", model, x, torch.zeros(2, 4), "float32") == 0


def test_missing_extra_is_named() -> None:
    with pytest.raises(ValueError, match=r"latency=openvino needs the package no-such-package.*hilo-nas\[openvino\]"):
        require("no-such-package", "latency=openvino", "openvino")
    with pytest.raises(ValueError, match=r"latency=onnxruntime needs.*pip install no-such-package$"):
        require("no-such-package", "latency=onnxruntime", "")


@pytest.mark.parametrize(
    ("flags", "overflows"),
    [("avx avx2 fma", True), ("avx2 avx512f avx512_vnni", False), ("avx2 avx_vnni", False), ("asimd asimddp", False)],
)
def test_int8_is_exact_on_processors_whose_products_overflow(tmp_path: Path, flags: str, overflows: bool) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor : 0\nflags : {flags}\n", encoding="utf-8")
    assert overflows_int8(cpuinfo) == overflows
    assert not overflows_int8(tmp_path / "missing")


def test_every_installation_has_what_the_default_runtime_needs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    installed = {re.match(r"[\w-]+", dependency)[0] for dependency in project["dependencies"]}  # type: ignore[index]
    assert set(RUNTIME.packages) <= installed
    assert project["optional-dependencies"]["onnx"] == []  # `pip install 'hilo-nas[onnx]'` goes on to work


def test_networks_of_a_search_are_not_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.onnx, "export", None)
    model, x = build(NETWORKS[0], num_classes=5).eval(), torch.rand(1, 3, 32, 32)
    for form in (model, prepare(model)):
        converted = convert(form, x, "float32", 1)
        assert converted.parity is not None
        assert converted.parity < 1e-5
        converted.load()()


def test_network_that_cannot_be_recorded_is_exported(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delitem(OPERATORS, "gelu")
    caplog.set_level("INFO")
    model, x = build(SMALL, in_chans=1, num_classes=5).eval(), torch.rand(1, 1, 32, 32)
    assert convert(model, x, "float32", 1).parity is not None
    assert "gelu is not in the table" in caplog.text

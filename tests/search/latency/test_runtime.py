"""What every runtime relies on: the comparison with PyTorch, and the check of its packages."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from search.latency.runtime import ConversionError, check_parity, require


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
        require("no-such-package", "openvino", "openvino")

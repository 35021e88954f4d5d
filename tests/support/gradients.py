"""Comparison of a layer with a reference, gradients included."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def assert_same_gradients(layer: nn.Module, reference: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """Assert equal outputs, and gradients to the input and to every parameter of the layer, which the reference uses too."""
    results = []
    for function in (layer, reference):
        layer.zero_grad()
        inputs = x.clone().requires_grad_()
        out = function(inputs)
        (out * torch.linspace(-1, 1, out.shape[-1])).sum().backward()
        results.append([out, inputs.grad, *(parameter.grad for parameter in layer.parameters())])
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def channels_first(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A function of channels-last maps from one of channels-first maps."""
    return lambda x: function(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

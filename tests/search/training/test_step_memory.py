"""The estimate of a training step's memory against what the step allocates."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch
from torch import nn

from models.architecture import Architecture
from models.litv2 import build
from search.training import step_memory
from search.training.step_memory import log_step_memory
from tests.support.allocations import peak_bytes
from tests.support.networks import NETWORKS

CPU = torch.device("cpu")
SHAPE = (32, 3, 32, 32)


def peak_of_a_step(network: nn.Module, precision: str) -> int:
    """What a step allocates, beside the weights and the moments of the optimiser."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, fused=True)

    def step() -> None:
        images = torch.zeros(SHAPE)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
            logits = network(images)
        torch.nn.functional.cross_entropy(logits.float(), torch.zeros(SHAPE[0], dtype=torch.int64)).backward()
        optimizer.step()
        optimizer.zero_grad()

    step()  # makes the moments
    return peak_bytes(step)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("number", [0, 1])
def test_estimate_is_what_a_step_allocates(number: int, precision: str) -> None:
    network = build(replace(NETWORKS[number], embed_dim=16), num_classes=10, drop_path_rate=0.1)
    memory = step_memory.step_memory([network], network, SHAPE, CPU, precision)
    weights = sum(parameter.nbytes for parameter in network.parameters())
    assert memory.weights_bytes == 4 * weights
    measured = peak_of_a_step(network, precision) + 3 * weights  # weights and moments, which are there before
    assert 0.85 * measured < memory.peak_bytes < 1.15 * measured + weights
    assert memory.activations_bytes > 2 * weights  # so that it is not the weights alone that are compared


def test_estimating_changes_nothing(architecture: Architecture) -> None:
    network = build(architecture, num_classes=10, drop_path_rate=0.1)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state = torch.get_rng_state()
    step_memory.step_memory([network], network, SHAPE, CPU, "32-true")
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_step_that_does_not_fit_is_warned_of(
    architecture: Architecture, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = build(architecture, num_classes=10)
    with caplog.at_level(logging.INFO, logger=step_memory.__name__):
        log_step_memory([network], network, SHAPE, CPU, "32-true")
        assert len(caplog.records) == 1
        monkeypatch.setattr(step_memory, "available_bytes", lambda device: 1000)
        log_step_memory([network], network, SHAPE, CPU, "32-true")
    assert "lower train.batch_size=32, and raise train.accumulate" in caplog.text
    assert [record.levelname for record in caplog.records] == ["INFO", "INFO", "WARNING"]


def test_network_that_cannot_be_estimated_is_trained_all_the_same(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with caplog.at_level(logging.DEBUG, logger=step_memory.__name__):
        log_step_memory([nn.Bilinear(2, 2, 2)], nn.Linear(2, 2), SHAPE, CPU, "32-true")
    assert "the memory of a training step is not known" in caplog.text

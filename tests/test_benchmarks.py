"""Benchmarks start and show their results, with less of everything. Faults have other tests; evaluators takes hours."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.commands import start

QUICK = ["latency.max_seconds=0.5", "latency.calibration_seconds=0.3"]


def output(folder: Path, name: str, *arguments: str) -> str:
    process = start(folder, f"benchmarks.{name}", *arguments)
    try:
        said, _ = process.communicate(timeout=600)
    finally:
        process.kill()
    assert process.returncode == 0, said
    return said


def test_latency_fidelity_compares_the_methods(tmp_path: Path) -> None:
    said = output(tmp_path, "latency_fidelity", "--networks", "2", *QUICK)
    assert said.count("paired with the anchor") == 2
    assert "% of 4" in said


def test_scaling_tells_what_a_trial_costs(tmp_path: Path) -> None:
    case = {"num_trials": 30, "num_parallel": 4, "sampler": "surrogate", "storage": "sqlite", "seconds": 30.0}
    found = json.loads(output(tmp_path, "scaling", "--one", json.dumps(case)).splitlines()[-1])
    assert found["case"] == case
    assert 0 < found["busy"] < 1
    assert 0 <= found["lost"] < 1
    assert 0 < found["memory_before"]["own_mib"] <= found["memory"]["resident_mib"]


@pytest.mark.slow
def test_scaling_draws_all_its_cases(tmp_path: Path) -> None:
    said = output(tmp_path, "scaling", "--trials", "10", "20", "--parallel", "1", "2", "--plot", "plot.png")
    assert said.count("surrogate") >= 2
    assert (tmp_path / "plot.png").stat().st_size > 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_attention_compares_layers(tmp_path: Path) -> None:
    assert "HiLo" in output(tmp_path, "attention", "--batch", "1", "--seconds", "0.1")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_model_speed_compares_implementations(tmp_path: Path) -> None:
    arguments = ["hilo", "litv2", "--variants", "litv2_s", "--img-sizes", "224", "--parts", "forward", "--seconds", "0.1"]
    assert "litv2" in output(tmp_path, "model_speed", *arguments).lower()

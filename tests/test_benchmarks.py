"""Benchmarks start and show their results, with less of everything. Faults have other tests; evaluators takes hours."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.commands import Command

QUICK = ["latency.max_seconds=0.5", "latency.calibration_seconds=0.3"]


def output(folder: Path, name: str, *arguments: str) -> str:
    with Command(folder, f"benchmarks.{name}", *arguments) as benchmark:
        printed = benchmark.wait(600)
    assert benchmark.returncode == 0, printed
    return printed


@pytest.mark.slow
def test_latency_fidelity_compares_the_methods(tmp_path: Path) -> None:
    printed = output(tmp_path, "latency_fidelity", "--networks", "2", *QUICK)
    assert printed.count("paired with the anchor") == 2
    assert "% of 4" in printed


@pytest.mark.slow
def test_conversion_compares_both_ways(tmp_path: Path) -> None:
    arguments = ["--networks", "2", "--compared", "1", "space=small", "space.embed_dim=[8]", *QUICK]
    printed = output(tmp_path, "conversion", *arguments)
    assert "2 network(s) of 32 pixels" in printed
    assert "of 1 network(s)" in printed
    assert "1 have the same" in " ".join(printed.split())


@pytest.mark.slow
def test_scaling_tells_what_a_trial_costs(tmp_path: Path) -> None:
    case = {"num_trials": 30, "num_parallel": 4, "sampler": "surrogate", "storage": "sqlite", "seconds": 30.0}
    result = json.loads(output(tmp_path, "scaling", "--case", json.dumps(case)).splitlines()[-1])
    assert result["case"] == case
    assert 0 < result["busy"] < 1
    assert 0 <= result["lost"] < 1
    assert 0 < result["memory_before"]["own_mib"] <= result["memory"]["resident_mib"]


@pytest.mark.slow
def test_scaling_draws_all_its_cases(tmp_path: Path) -> None:
    printed = output(tmp_path, "scaling", "--trials", "10", "20", "--parallel", "1", "2", "--plot", "plot.png")
    assert printed.count("surrogate") >= 2
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


@pytest.mark.slow
def test_model_speed_names_a_folder_without_the_authors_module(tmp_path: Path) -> None:
    with Command(tmp_path, "benchmarks.model_speed", "--authors", str(tmp_path)) as benchmark:
        printed = benchmark.wait(120)
    assert benchmark.returncode == 2
    assert f"--authors {tmp_path}: there is no hilo.py in this folder" in printed


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_transfer_compares_searches_from_weights_and_from_nothing(tmp_path: Path) -> None:
    few = ["--images", "100", "--val-images", "60", "--epochs", "4", "--pretrain-epochs", "1", "--train-epochs", "1"]
    fewer = ["--trials", "4", "--checked", "4", "--seeds", "1", "--levels", "1", "--folder", str(tmp_path / "transfer")]
    overrides = [
        "data=digits",
        "space=small",
        "space.embed_dim=[8]",
        "check.long.max_epochs=1",
        "check.effects_minutes=0.01",
    ]
    printed = output(tmp_path, "transfer", *few, *fewer, *overrides, *QUICK)
    assert "gain over nothing" in printed
    assert printed.count("Kendall's tau with long trainings") == 2


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_evidence_compares_a_search_with_what_one_would_take_instead(tmp_path: Path) -> None:
    few = ["--images", "200", "--val-images", "100", "--minutes", "1", "--epochs", "2", "--train-epochs", "1"]
    fewer = ["--seeds", "2", "--levels", "2", "--peers", "resnet10t", "--max-seconds", "0.5", "--record", "record.zip"]
    overrides = ["--plot", "plot.png", "data=digits", "space=small", "space.embed_dim=[8,16]", *QUICK]
    printed = output(tmp_path, "evidence", *few, *fewer, "--folder", "evidence", *overrides)
    assert "resnet10t at 32" in printed
    assert "front of the search" in printed
    assert "LITv2 pattern at every width" in printed
    assert (tmp_path / "plot.png").exists()
    for folder in ("evidence", "another"):
        assert " 0 to do" in output(tmp_path, "evidence", *few, *fewer, "--folder", folder, *overrides)
    ablated = output(tmp_path, "ablation", "record.zip", "--seeds", "2", "--max-seconds", "0.5", "--record", "ablation.zip")
    assert "no attention" in ablated
    assert (
        ablated.splitlines()[-3:]
        == output(tmp_path, "ablation", "record.zip", "--show", "--record", "ablation.zip").splitlines()[-3:]
    )
    with Command(tmp_path, "benchmarks.evidence", *few, *fewer, "--images", "100", *overrides) as benchmark:
        printed = benchmark.wait(120)
    assert benchmark.returncode == 2
    assert "has results of other options" in printed


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_int8_front_compares_searches_for_both_dtypes(tmp_path: Path) -> None:
    overrides = ["data=digits", "space=small", "space.embed_dim=[8]", "study.n_trials=4", "train.max_epochs=1", *QUICK]
    printed = output(tmp_path, "int8_front", "--seeds", "2", "--max-seconds", "0.5", *overrides)
    assert "search for float32" in printed
    assert "standard error over 2 pairs" in " ".join(printed.split())

"""The curves that `benchmarks.evidence` compares, and their intervals, against simulated truth."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
from rich.console import Console

from benchmarks.evidence_table import (
    ARMS,
    ARMS_FILE,
    GRID,
    LATENCIES_FILE,
    TRAINED,
    Measured,
    chosen,
    curve,
    difference,
    draw,
    main,
    read,
    result_file,
    show,
    summary,
)
from search.latency.base import Latency
from search.latency.estimate import Estimate

SEED_NOISE = 0.03  # standard deviation over seeds
NUM_IMAGES = 2000


def network(milliseconds: float, accuracy: float, rng: np.random.Generator, validation: float | None = None) -> Measured:
    """A network with three seeds, whose test images are as hard for all networks alike."""
    hardness = np.linspace(0, 1, NUM_IMAGES)
    levels = accuracy + SEED_NOISE * rng.standard_normal(3)
    correct = np.stack([hardness + 0.05 * rng.standard_normal(NUM_IMAGES) < level for level in levels])
    latency = Latency(Estimate(milliseconds, 0.01, 50.0), 20, 5, True, 1.0)
    key = f"{milliseconds} {rng.integers(10**9)}"
    chosen_by = accuracy if validation is None else validation
    return Measured(key, f"{milliseconds} ms", {"float32": latency}, correct, chosen_by)


def arm(gain: float, rng: np.random.Generator, count: int = 3) -> list[Measured]:
    return [network(float(ms), 0.5 + 0.1 * float(np.log(ms)) + gain, rng) for ms in np.geomspace(1.0, 4.0, count)]


def test_accuracy_is_interpolated_over_the_logarithm_of_latency() -> None:
    rng = np.random.default_rng(0)
    networks = [network(1.0, 0.5, rng), network(4.0, 0.7, rng)]
    accuracies = {networks[0].key: 0.6, networks[1].key: 0.8}
    assert curve(networks, accuracies, np.array([1.0, 2.0, 4.0])) == pytest.approx([0.6, 0.7, 0.8])


def test_networks_are_chosen_by_validation_alone() -> None:
    rng = np.random.default_rng(0)
    networks = [network(1.0, 0.6, rng), network(4.0, 0.7, rng), network(2.0, 0.9, rng, validation=0.5)]
    assert chosen(networks) == networks[:2]  # the third is worse than a faster one, as far as its user knows


@pytest.mark.parametrize("count", [3, 12])
def test_intervals_contain_the_true_difference(count: int) -> None:
    rng, inside, means, widths, values = np.random.default_rng(0), [], [], [], []
    for seed in range(40):
        compared = difference(arm(0.02, rng, count), arm(0.0, rng, count), seed, num_resamples=100)
        assert compared is not None
        assert len(compared.latencies_ms) == GRID
        inside += list((compared.low <= 0.02) & (compared.high >= 0.02))
        widths += list(compared.high - compared.low)
        means.append(compared.mean[1] <= 0.02 <= compared.mean[2])
        values += list(compared.value)
    assert np.mean(inside) >= 0.85  # with three seeds an interval of resamples is a little short
    assert np.mean(means) >= 0.8
    assert np.mean(widths) < 1.5 * 2 * 1.96 * np.std(values)


def test_network_of_both_arms_differs_from_itself_by_nothing() -> None:
    networks = arm(0.0, np.random.default_rng(0))
    compared = difference(networks, [replace(each) for each in networks], num_resamples=50)
    assert compared is not None
    assert not compared.low.any()
    assert not compared.high.any()


def test_better_arm_is_above() -> None:
    rng = np.random.default_rng(0)
    compared = difference(arm(0.2, rng), arm(0.0, rng), num_resamples=200)
    assert compared is not None
    assert (compared.low > 0).all()
    assert compared.mean[1] > 0.1


def test_arms_that_cannot_be_compared_are_named() -> None:
    rng = np.random.default_rng(0)
    fast, slow = [network(1.0, 0.5, rng), network(1.5, 0.6, rng)], [network(3.0, 0.6, rng), network(4.0, 0.7, rng)]
    single = [replace(each, key=f"single {each.key}", correct=each.correct[:1]) for each in fast]
    text = "a and b: no latency that both reach, or a single seed"
    assert difference(fast, slow) is None
    assert difference(single, fast) is None
    assert summary("a", "b", {"a": fast, "b": slow}) == text
    assert summary("a", "b", {"a": fast, "b": []}) == text


def test_table_and_figure_show_all_arms(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arms = {name: arm(0.01 * number, rng) for number, name in enumerate(ARMS)}
    console = Console(record=True, width=160)
    show(console, arms, ["search front: 3 networks"])
    printed = " ".join(console.export_text().split())
    assert all(name in printed for name in ARMS)
    assert printed.count("interval is above zero at") == len(ARMS) - 1
    draw(arms, tmp_path / "evidence.png")
    assert (tmp_path / "evidence.png").stat().st_size > 10_000


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """A folder of the benchmark: two LITv2 with two and with three seeds, a model of timm with one."""
    networks = {"a": "", "b": "", "c": "resnet10t"}
    arms = {arm: [{"key": "a", "name": "A", "model": ""}] for arm in ARMS}
    arms[ARMS[0]] = [{"key": key, "name": key.upper(), "model": model} for key, model in networks.items()]
    (tmp_path / ARMS_FILE).write_text(json.dumps({"account": ["supernet: 1 minute"], "arms": arms}))
    latency = Latency(Estimate(1.0, 0.01, 50.0), 20, 5, True, 1.0)
    (tmp_path / LATENCIES_FILE).write_text(json.dumps({key: {"float32": latency.summary()} for key in networks}))
    (tmp_path / TRAINED).mkdir()
    for key, num_seeds in {"a": 2, "b": 3, "c": 1}.items():
        for seed in range(num_seeds):
            np.savez_compressed(tmp_path / result_file(key, seed), correct=np.array([True, seed > 1]), validation=0.1 * seed)
    return tmp_path


def test_networks_count_with_the_seeds_that_all_have(recorded: Path) -> None:
    arms, account = read(recorded)
    first = {network.key: network for network in arms[ARMS[0]]}
    assert {key: len(network.correct) for key, network in first.items()} == {"a": 2, "b": 2, "c": 1}
    assert first["b"].validation == pytest.approx(0.05)
    assert first["b"].accuracies == [0.5, 0.5]
    assert [network.name for network in arms[ARMS[1]]] == ["A"]
    assert account == ["supernet: 1 minute"]


def test_record_is_shown(
    recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record = tmp_path / "record.zip"
    with ZipFile(record, "w") as archive:
        for file in [recorded / ARMS_FILE, recorded / LATENCIES_FILE, *(recorded / TRAINED).iterdir()]:
            archive.write(file, file.relative_to(recorded))
    monkeypatch.setattr(sys, "argv", ["evidence_table", str(record), "--plot", str(tmp_path / "evidence.png")])
    main()
    assert "supernet: 1 minute" in capsys.readouterr().out
    assert (tmp_path / "evidence.png").stat().st_size > 10_000


@pytest.mark.parametrize("content", [b"no archive", None], ids=["broken", "missing"])
def test_file_that_is_no_record_is_named(
    content: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record = tmp_path / "record.zip"
    if content is not None:
        record.write_bytes(content)
    monkeypatch.setattr(sys, "argv", ["evidence_table", str(record)])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert f"{record} is not a record of benchmarks.evidence" in capsys.readouterr().err

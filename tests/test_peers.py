"""Recorded tables interpolate what they hold, and searches on them find what is good there."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.peers import ARMS, MACS, OURS, SAMPLERS, Curve, Evaluated, gains, main, read_table, search
from benchmarks.simulation import configuration
from benchmarks.tables import Network, Table
from models.architecture import Architecture
from models.complexity import cost
from search.commands.cli import plain
from search.space import Space

IMAGES = {"in_chans": 1, "num_classes": 100, "img_size": 32}


def true_values(architecture: Architecture) -> tuple[float, float]:
    """A smooth accuracy, which attention in the second stage raises, and a latency in ms."""
    _, macs = cost(architecture, **IMAGES)
    attends = architecture.stages[1].window_size > 0
    return 0.3 + 0.05 * math.log10(macs) + 0.04 * attends, 0.2 + macs / 2e7


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cfg = configuration("space=small", "space.embed_dim=[8,16]")
    config = {"space": plain(cfg)["space"], "images": IMAGES}
    space = Space(**{key: value for key, value in config["space"].items() if key != "_target_"})
    rng, networks = np.random.default_rng(0), []
    for number in range(120):
        parameters = space.child([], 1.0, rng)
        accuracy, latency_ms = true_values(space.architecture(parameters))
        networks.append(Network(parameters, accuracy, 1.0, latency_ms if number % 2 else None, 2.0 * (number % 2)))
    # Long scales of all inputs, and little noise: fitting them takes minutes for tables of this size and larger.
    theta = [0.0, *[math.log(5.0)] * 27, math.log(1e-5)]
    file = tmp_path_factory.mktemp("table") / "simple.json.gz"
    Table({"machine": "none"}, config, networks, {"accuracy": theta, "latency": theta}).write(file)
    return file


def test_table_is_read_as_it_was_written(table: Path, tmp_path: Path) -> None:
    first = Table.read(table)
    first.write(tmp_path / "again.json.gz")
    assert (tmp_path / "again.json.gz").read_bytes() == table.read_bytes()


def test_networks_that_were_left_out_are_interpolated(table: Path) -> None:
    errors = Table.read(table).errors()
    assert errors["accuracy"].tau > 0.8
    assert errors["latency"].deviation < 0.1
    assert (errors["accuracy"].num_networks, errors["latency"].num_networks) == (120, 60)


def test_values_are_near_the_recorded_ones(table: Path) -> None:
    read = Table.read(table)
    for network in read.networks[:20]:
        architecture = read.space.architecture(network.parameters)
        (accuracy,), (latency_ms,) = read.values([architecture])
        assert (accuracy, latency_ms) == pytest.approx(true_values(architecture), rel=0.1)


def test_gain_is_0_for_the_pattern_and_1_for_the_best_front(table: Path) -> None:
    read = Table.read(table)
    assert read.gain(read.pattern) == 0
    assert read.gain(read.best) == 1
    assert read.gain(read.pattern[:1]) <= 0  # the wider patterns are missing


def test_best_front_is_no_worse_than_any_recorded_network(table: Path) -> None:
    read = Table.read(table)
    recorded = [read.space.architecture(network.parameters) for network in read.networks]
    assert read.gain([*read.best, *recorded]) == pytest.approx(1, abs=1e-9)


def test_scores_depend_on_the_network_alone_and_measurements_have_errors(table: Path) -> None:
    read, again = Table.read(table), Table.read(table)
    network = read.best[0]
    assert read.score(network) == again.score(network)
    rng = np.random.default_rng(0)
    ratios = np.array([read.measured_ms(network, rng) for _ in range(200)]) / read.values([network])[1]
    assert 0.007 < np.log(ratios).std() < 0.013


@pytest.mark.parametrize("arm", [arm for arm in ARMS if arm != "GP"])
def test_each_arm_evaluates_known_networks_first_and_then_others(table: Path, arm: str) -> None:
    evaluated = search(table, arm, seed=1, num_trials=24)
    read = read_table(table)
    keys = [Architecture.from_dict(network.architecture).key for network in evaluated]
    baselines = [read.space.architecture(parameters).key for parameters in read.space.baselines().values()]
    assert len(evaluated) == 24
    assert keys[: len(baselines)] == baselines
    assert len(set(keys)) > len(baselines)
    seconds = [network.seconds for network in evaluated]
    assert seconds == sorted(seconds)
    assert all(network.latency_ms is not None for network in evaluated) or arm == OURS
    curve = gains(read, evaluated)
    assert curve.shape == (24,)
    assert curve[-1] <= 1


def test_ours_is_repeated_by_its_seed(table: Path) -> None:
    first, again = ([network.architecture for network in search(table, OURS, 3, 20)] for _ in range(2))
    assert first == again


def test_time_is_that_of_scores_and_measurements(table: Path) -> None:
    measured = search(table, MACS, seed=0, num_trials=10)
    assert measured[-1].seconds == pytest.approx(10 * 2.0, rel=0.01)
    scored = search(table, next(iter(SAMPLERS)), seed=0, num_trials=10)
    assert 10 * 3.0 < scored[-1].seconds < 10 * 3.0 + 5


def test_front_is_chosen_by_what_was_seen_and_valued_by_what_is_true(table: Path) -> None:
    read = Table.read(table)
    good, bad = read.best[-1], read.pattern[0]
    fooled = [Evaluated(good.to_dict(), 0.1, 2.0, 1.0), Evaluated(bad.to_dict(), 0.9, 1.0, 2.0)]
    np.testing.assert_allclose(gains(read, fooled), [read.gain([good]), read.gain([bad])])
    unmeasured = Evaluated(good.to_dict(), 0.99, None, 3.0)
    assert gains(read, [fooled[1], unmeasured])[-1] == pytest.approx(read.gain([bad]))


def test_curve_tells_when_a_gain_is_reached() -> None:
    curve = Curve(np.array([[0.0, 0.5, 0.9], [0.0, 0.1, 0.6], [0.2, 0.7, 0.7]]), np.tile([10.0, 20.0, 30.0], (3, 1)))
    assert curve.until(0.5) == (2, 20)
    assert curve.until(0.65) == (3, 30)
    assert curve.until(0.95) == (math.inf, math.inf)


def run_command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks.peers", *arguments])
    main()


def test_command_goes_on_and_draws(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for num_new in (4, 0):
        run_command(monkeypatch, str(table), "--arms", OURS, MACS, "--trials", "21", "--seeds", "2", "--plot", "figure.png")
        printed = capsys.readouterr().out
        assert printed.count("s of simulated time") == num_new
        assert "after 20" in printed
    assert (tmp_path / "figure.png").stat().st_size > 0
    stored = json.loads(next(tmp_path.glob("outputs/peers/simple/ours-0-21.json")).read_text())
    assert len(stored) == 21


def test_missing_table_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        run_command(monkeypatch, "missing.json.gz")
    assert "missing.json.gz is not a file" in capsys.readouterr().err

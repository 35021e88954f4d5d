"""Recorded tables interpolate what they hold, and searches on them find what is good there."""

from __future__ import annotations

import gzip
import itertools
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from optuna.samplers import PartialFixedSampler, RandomSampler

from benchmarks.convergence import SearchTrace
from benchmarks.convergence import main as show_convergence
from benchmarks.peers import ARMS, MACS, Evaluated, gains, main, read_table, run_sampler, search
from benchmarks.peers_table import OURS, Curve
from benchmarks.sampler_models import compare
from benchmarks.sampler_models import main as compare_models
from benchmarks.simulation import configuration
from benchmarks.tables import Network, Table
from models.architecture import Architecture
from models.complexity import cost
from search import UserError
from search.commands.cli import plain
from search.space import Space
from search.study.storage import quiet_experimental
from tests.support.commands import TINY, Command

TABLES = Path(__file__).parents[1] / "benchmarks" / "tables"
NUM_INPUTS = 4 + 4 * 8  # of the interpolation
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
    theta = [0.0, *[math.log(5.0)] * NUM_INPUTS, math.log(1e-5)]
    file = tmp_path_factory.mktemp("table") / "simple.json.gz"
    Table({"machine": "none"}, config, networks, {"accuracy": theta, "latency": theta}, best=()).write(file)
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


def test_scores_depend_on_network_and_seed_and_measurements_have_errors(table: Path) -> None:
    read, again = Table.read(table), Table.read(table)
    network = read.best[0]
    assert read.score(network, 0) == again.score(network, 0)
    scores = np.array([read.score(network, seed) for seed in range(200)])
    assert scores.mean() == pytest.approx(read.values([network])[0][0], abs=3 * read.score_deviation / 200**0.5)
    assert scores.std() == pytest.approx(read.score_deviation, rel=0.2)
    rng = np.random.default_rng(0)
    ratios = np.array([read.measured_ms(network, rng) for _ in range(200)]) / read.values([network])[1]
    assert 0.007 < np.log(ratios).std() < 0.013


@pytest.mark.parametrize("arm", ARMS)
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


def test_time_is_that_of_scores_measurements_and_proposals(table: Path) -> None:
    measured = search(table, MACS, seed=0, num_trials=10)
    assert measured[-1].seconds == pytest.approx(10 * 2.0, rel=0.01)
    ticks = itertools.count()
    proposals = run_sampler(read_table(table), 0, RandomSampler(seed=0), is_flat=False, clock=lambda: float(next(ticks)))
    scored = list(itertools.islice(proposals, 10))
    assert scored[-1].seconds == pytest.approx(10 * (1.0 + 2.0 + 1.0), rel=0.01)


@pytest.fixture
def first_choices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An optimiser that proposes the known networks, then always the first choice of each dimension."""
    script = tmp_path / "peer_packages.py"
    script.write_text(
        "import json, sys\n"
        "problem = json.loads(input())\n"
        "networks = problem['known'] + [[0] * len(problem['sizes'])] * 3\n"
        "for network in networks:\n"
        "    print(json.dumps(network), flush=True)\n"
        "    accuracy, log_latency = json.loads(input())\n"
        "    assert 0 <= accuracy <= 1 and abs(log_latency) < 10\n"
    )
    monkeypatch.setattr("benchmarks.peer_process.SCRIPT", script)
    monkeypatch.setattr("benchmarks.peer_process.environment", lambda: sys.executable)


@pytest.mark.usefixtures("first_choices")
def test_optimiser_of_another_package_begins_with_the_known_networks(table: Path) -> None:
    known = [read_table(table).space.architecture(values) for values in read_table(table).space.baselines().values()]
    evaluated = search(table, "pymoo", 0, len(known) + 3)
    assert [network.architecture for network in evaluated[: len(known)]] == [network.to_dict() for network in known]
    assert evaluated[-1].accuracy == evaluated[-2].accuracy
    with pytest.raises(RuntimeError, match="pymoo has ended"):
        search(table, "pymoo", 0, len(known) + 4)


def test_network_that_comes_again_costs_nothing(table: Path) -> None:
    read = read_table(table)
    ticks = itertools.count(0, 0)
    first, *_ = read.space.baselines().values()
    with quiet_experimental():
        sampler = PartialFixedSampler(first, RandomSampler(seed=0))
    evaluated = list(itertools.islice(run_sampler(read, 0, sampler, is_flat=False, clock=lambda: float(next(ticks))), 30))
    distinct = {Architecture.from_dict(network.architecture).key: network for network in evaluated}
    assert len(distinct) < 30
    assert evaluated[-1].seconds == pytest.approx(3.0 * len(distinct), rel=0.01)
    assert all(distinct[Architecture.from_dict(n.architecture).key].latency_ms == n.latency_ms for n in evaluated)


def test_front_is_chosen_by_what_was_seen_and_valued_by_what_is_true(table: Path) -> None:
    read = Table.read(table)
    good, bad = read.best[-1], read.pattern[0]
    fooled = [Evaluated(good.to_dict(), 0.1, 2.0, 1.0), Evaluated(bad.to_dict(), 0.9, 1.0, 2.0)]
    np.testing.assert_allclose(gains(read, fooled), [read.gain([good]), read.gain([bad])])
    unmeasured = Evaluated(good.to_dict(), 0.99, None, 3.0)
    assert gains(read, [fooled[1], unmeasured])[-1] == pytest.approx(read.gain([bad]))


def test_curve_tells_from_when_on_a_gain_is_kept() -> None:
    gains = np.array([[0.6, 0.5, 0.5, 0.9], [0.6, 0.1, 0.6, 0.8], [0.2, 0.4, 0.7, 0.7]])  # medians 0.6, 0.4, 0.6, 0.8
    curve = Curve(gains, np.tile([10.0, 20.0, 30.0, 40.0], (3, 1)))
    assert curve.until(0.3) == (1, 10)
    assert curve.until(0.6) == (3, 30)
    assert curve.until(curve.end) == (4, 40)
    assert curve.until(0.9) == (math.inf, math.inf)


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
    file = next(tmp_path.glob("outputs/peers/simple/ours-0-21.json"))
    stored = json.loads(file.read_text())
    assert len(stored["networks"]) == 21
    file.write_text(json.dumps(stored | {"made_with": {"table": "another"}}))
    with pytest.raises(SystemExit, match="2"):
        run_command(monkeypatch, str(table), "--arms", OURS, "--trials", "21", "--seeds", "1")
    assert "ours-0-21.json is of another table" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--trials", "0"], "invalid positive value: '0'"),
        (["--trials", "1000000"], "lower it"),
        (["--arms", "best"], "invalid choice"),
    ],
)
def test_mistakes_are_named(
    table: Path,
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit, match="2"):
        run_command(monkeypatch, str(table), *arguments)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "no table", "{}", '{"format": 0}'])
@pytest.mark.parametrize("compress", [str.encode, lambda text: gzip.compress(text.encode())], ids=["plain", "compressed"])
def test_file_that_is_not_a_table_is_named(
    content: str,
    compress: Callable[[str], bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "other.json.gz").write_bytes(compress(content))
    with pytest.raises(SystemExit, match="2"):
        run_command(monkeypatch, str(tmp_path / "other.json.gz"))
    assert "other.json.gz is not a table of this version" in capsys.readouterr().err


def test_missing_table_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        run_command(monkeypatch, "missing.json.gz")
    assert "missing.json.gz is not a table of this version" in capsys.readouterr().err


@pytest.mark.parametrize("file", sorted(TABLES.glob("*.json.gz")), ids=lambda file: file.name)
def test_recorded_tables_are_of_this_version_and_say_where_they_are_from(file: Path) -> None:
    recorded = Table.read(file)
    errors = recorded.errors()
    assert errors["accuracy"].tau > 0.9
    assert errors["latency"].deviation < 0.05
    assert recorded.gain(recorded.best) == 1
    assert len(recorded.provenance["commands"]) == 3
    assert all(command.startswith("python -m search.run ") for command in recorded.provenance["commands"])
    assert {"python", "torch"} <= set(recorded.provenance["versions"])
    assert {"device", "onnxruntime"} <= set(recorded.provenance["device"])


def test_space_of_one_width_is_refused(table: Path) -> None:
    read = Table.read(table)
    config = {**read.config, "space": {**read.config["space"], "embed_dim": [8]}}
    theta = [0.0, *[math.log(5.0)] * NUM_INPUTS, math.log(1e-5)]
    networks = [network for network in read.networks if network.parameters["embed_dim"] == 8]
    with pytest.raises(UserError, match="one width"):
        Table({}, config, networks, {"accuracy": theta, "latency": theta}, best=())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_table_is_recorded_by_three_searches(tmp_path: Path) -> None:
    arguments = ["table.json.gz", "--random", "12", "--nsga2", "9", "--default", "10", *TINY, "space.embed_dim=[4,8]"]
    for _ in range(2):
        with Command(tmp_path, "benchmarks.record", *arguments) as command:
            printed = command.wait(900)
        assert command.returncode == 0, printed
    read = Table.read(tmp_path / "table.json.gz")
    assert len(read.networks) >= 12
    assert read.provenance["commands"][0].endswith("study.name=random study.n_trials=12")
    assert any(network.latency_ms is not None for network in read.networks)
    assert "12" in printed


def test_models_of_the_sampler_are_compared_on_a_table(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    errors = compare(Table.read(table), [16, 40], repetitions=2)
    (few, _), (many, tau) = errors["latency: Gaussian process"]
    assert many < few
    assert tau > 0.9
    assert many < errors["latency: block model"][1][0]
    compare_models([str(table), "--counts", "9", "--repetitions", "1"])
    assert "after 9" in capsys.readouterr().out


@pytest.mark.parametrize("count", ["4", "60"])
def test_models_need_networks_to_learn_from_and_to_predict(
    table: Path, count: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        compare_models([str(table), "--counts", count])
    assert "--counts must be from 8 to 59" in capsys.readouterr().err


def test_search_would_have_ended_at_the_first_small_share() -> None:
    trace = SearchTrace(shares=[None, 0.3, 0.02, 0.1, 0.01], gains=[0.1] * 5, seconds=[1.0] * 5)
    assert [trace.end(limit) for limit in (0.5, 0.05, 0.02, 0.001)] == [2, 3, 5, 5]


def test_ends_of_searches_are_simulated(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show_convergence([str(table), "--trials", "46", "--seeds", "1"])
    lines = capsys.readouterr().out.splitlines()
    ends = [line for line in lines if " to " in line]
    assert len(ends) == 5
    assert "46 (46 to 46)" in ends[0]  # at the smallest limit

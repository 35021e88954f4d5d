"""The Ray engine keeps the contract, on one machine and on two nodes, one of which only measures."""

from __future__ import annotations

import asyncio
import secrets
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from search.engine.base import TRAINING, TargetSource
from search.engine.ray import RayEngine
from search.engine.workers import WorkerEngine
from search.study.storage import open_study
from search.study.trial import finished_trials
from tests.contracts.engine import *  # noqa: F403
from tests.contracts.engine import measure, runner, together, train
from tests.contracts.odd_workers import OddEvaluator, OddTarget, stretches
from tests.support.commands import ROOT, TINY, Command

__all__ = ["runner"]  # a fixture

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("ray") is None, reason="the extra ray is not installed"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # Ray leaves its files to the system
]
SETTINGS: dict[str, Any] = {
    "num_threads": 1,
    "num_cpus": None,
    "num_gpus": 0.0,
    "num_parallel": 1,
    "num_ahead": None,
    "start_timeout_seconds": 60.0,
    "measure_timeout_seconds": 60.0,
    "train_timeout_seconds": 60.0,
    "max_retries": 1,
    "measure_beside_training": False,
}


def make(folder: Path, address: str | None, **changed: Any) -> RayEngine:
    targets = {name: TargetSource(partial(OddTarget, str(folder), name)) for name in ("first", "second")}
    return RayEngine(targets, partial(OddEvaluator, str(folder)), address=address, **{**SETTINGS, **changed})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("times")


@pytest.fixture(scope="module", autouse=True)
def _token() -> Iterator[None]:
    """One for all: Ray reads it once in a process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        patch.setenv("PYTHONPATH", str(ROOT))  # of the nodes' workers
        yield


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes on this machine: the head trains, the other one only measures."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    cluster.add_node(num_cpus=0, resources={"latency_first": 1, "latency_second": 1})
    yield cluster
    cluster.shutdown()


@pytest.fixture(scope="module", params=["one machine", "two nodes"])
def engine(request: pytest.FixtureRequest, folder: Path) -> Iterator[WorkerEngine]:
    address = None if request.param == "one machine" else request.getfixturevalue("cluster").address
    engine = make(folder, address)
    yield engine
    engine.close()


def num_nodes() -> int:
    import ray

    return sum(node["Alive"] for node in ray.nodes())


def test_targets_are_measured_on_their_node(engine: WorkerEngine, runner: asyncio.Runner) -> None:
    for role in ("first", "second", TRAINING):
        runner.run(engine.fingerprint(role))
    hosts = {worker.role: worker.hosts[0] for worker in engine.workers}
    assert hosts["first"] == hosts["second"]
    assert (hosts["first"] == hosts[TRAINING]) == (num_nodes() == 1)


def test_node_that_only_measures_does_so_beside_training(engine: WorkerEngine, runner: asyncio.Runner, folder: Path) -> None:
    runner.run(together(train(engine, 8), measure(engine, 8)))
    before = set(stretches(folder))
    runner.run(together(train(engine, 40), measure(engine, 40)))
    first, other = (stretch for stretch in stretches(folder) if stretch not in before)
    assert first.overlaps(other) == (num_nodes() == 2)


def test_cluster_that_is_not_there_is_one_clear_line(tmp_path: Path) -> None:
    arguments = ["+search=cpu_latency", *TINY, "engine=ray", "accuracy.num_threads=1", "engine.address=127.0.0.1:1"]
    with Command(tmp_path, "search.run", *arguments) as search:
        output = search.wait()
    assert search.returncode == 2, output
    assert "error: engine.address=127.0.0.1:1 is not reached" in output.splitlines()[-1]


def test_ray_on_this_machine_keeps_to_loopback(tmp_path: Path) -> None:
    """In a process that has not imported Ray before."""
    code = f"""
import psutil, sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from tests.search.engine.test_ray import make
engine = make(Path({str(tmp_path)!r}), None)
own = [psutil.Process(), *psutil.Process().children(recursive=True)]
connections = [one for each in own for one in each.net_connections("inet")]
listening = [one.laddr.ip.removeprefix("::ffff:") for one in connections if one.status == "LISTEN"]
engine.close()
print("listening on", sorted(set(listening)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=280)
    assert done.stdout.splitlines()[-1] == "listening on ['127.0.0.1']", done.stdout + done.stderr


def test_search_with_ray_finds_what_a_local_one_does(tmp_path: Path) -> None:
    """One training at a time: results come in the same order. The first trials do not depend on measured latencies."""
    results = []
    for name, arguments in {"local": [], "ray": ["engine=ray", "engine.num_parallel=1"]}.items():
        common = ["+search=cpu_latency", f"study.name={name}", "study.n_trials=6", "accuracy=scratch", *TINY]
        with Command(tmp_path, "search.run", *common, "accuracy.num_threads=1", *arguments) as search:
            output = search.wait()
        assert search.returncode == 0, output
        trials = finished_trials(open_study(name, f"sqlite:///{tmp_path}/outputs/{name}/study.db", create=False))
        results.append(
            [(trial.number, trial.architecture.key, trial.result.accuracy and trial.accuracy) for trial in trials]
        )
    assert results[0] == results[1]
    assert len(results[0]) == 6

"""The Ray engine keeps the contract, on one machine and on two nodes, one of which only measures."""

from __future__ import annotations

import secrets
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from benchmarks.struck_search import TINY
from search.engine.base import Device, Engine
from search.engine.ray import RayEngine
from search.engine.work import TRAINING, Measure, Train
from search.study.storage import open_study
from search.study.trial import finished_trials
from tests.contracts.engine import *  # noqa: F403
from tests.contracts.engine import submit
from tests.contracts.odd_workers import CALIBRATION, OddEvaluator, OddTarget, stretches, wide
from tests.support.commands import ROOT, start

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


def made(folder: Path, address: str | None, **changed: Any) -> RayEngine:
    devices = {name: Device(partial(OddTarget, str(folder), name)) for name in ("first", "second")}
    return RayEngine(devices, partial(OddEvaluator, str(folder)), address=address, **{**SETTINGS, **changed})


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
    """Two nodes on this machine: the head trains, the other one has the devices alone."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    cluster.add_node(num_cpus=0, resources={"latency_first": 1, "latency_second": 1})
    yield cluster
    cluster.shutdown()


@pytest.fixture(scope="module", params=["one machine", "two nodes"])
def engine(request: pytest.FixtureRequest, folder: Path) -> Iterator[Engine]:
    address = None if request.param == "one machine" else request.getfixturevalue("cluster").address
    engine = made(folder, address)
    yield engine
    engine.close()


def num_nodes() -> int:
    import ray

    return sum(node["Alive"] for node in ray.nodes())


def test_devices_are_measured_on_their_node(engine: Engine) -> None:
    for place in ("first", "second", TRAINING):
        engine.fingerprint(place)
    sites = {lane.place: lane.sites[0] for lane in engine._lanes}
    assert sites["first"] == sites["second"]
    assert (sites["first"] == sites[TRAINING]) == (num_nodes() == 1)


def test_node_that_only_measures_does_so_beside_training(engine: Engine, folder: Path) -> None:
    submit(engine, Train(wide(8), 0), Measure("first", wide(8), CALIBRATION))
    known = set(stretches(folder))
    submit(engine, Train(wide(40), 0), Measure("first", wide(40), CALIBRATION))
    one, other = (one for one in stretches(folder) if one not in known)
    assert one.overlaps(other) == (num_nodes() == 2)


def test_cluster_that_is_not_there_is_one_clear_line(tmp_path: Path) -> None:
    arguments = ["+search=cpu_latency", *TINY, "engine=ray", "accuracy.num_threads=1", "engine.address=127.0.0.1:1"]
    search = start(tmp_path, "search.run", *arguments)
    output, _ = search.communicate(timeout=280)
    assert search.returncode == 2, output
    assert "error: engine.address=127.0.0.1:1 is not reached" in output.splitlines()[-1]


def test_ray_on_this_machine_keeps_to_loopback(tmp_path: Path) -> None:
    """In a process that has not imported Ray before."""
    code = f"""
import psutil, sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from tests.search.engine.test_ray import made
engine = made(Path({str(tmp_path)!r}), None)
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
    found = []
    for name, arguments in {"local": [], "ray": ["engine=ray", "engine.num_parallel=1"]}.items():
        search = start(
            tmp_path, "search.run", "+search=cpu_latency", f"study.name={name}", "study.n_trials=6", "accuracy=scratch",
            "accuracy.num_threads=1", *TINY, *arguments,
        )  # fmt: skip
        output, _ = search.communicate(timeout=280)
        assert search.returncode == 0, output
        trials = finished_trials(open_study(name, f"sqlite:///{tmp_path}/outputs/{name}/study.db", create=False))
        found.append(
            [(one.number, one.architecture.key, one.outcome.accuracy and one.outcome.accuracy.accuracy) for one in trials]
        )
    assert found[0] == found[1]
    assert len(found[0]) == 6

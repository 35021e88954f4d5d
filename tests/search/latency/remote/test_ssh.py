"""A device over ssh: a real sshd on loopback with its own keys, and connections that drop."""

from __future__ import annotations

import fcntl
import getpass
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml

from models.deploy import prepare
from models.deploy.int8 import calibrated
from models.litv2 import build
from search import UserError
from search.latency.base import Calibration
from search.latency.remote.answers import DeviceError
from search.latency.remote.connection import Connection
from search.latency.remote.link import Link
from search.latency.remote.ssh import ssh_target
from search.latency.target import EXECUTION_KEYS, PairedTarget
from search.results.deployable import Deployable
from search.results.formats import FORMATS
from search.results.trained import UNTRAINED, Trained
from tests.contracts.latency_target import *  # noqa: F403
from tests.contracts.latency_target import LARGE, SMALL
from tests.support.commands import TINY, Command

SSHD = shutil.which("sshd") or ("/usr/sbin/sshd" if Path("/usr/sbin/sshd").exists() else None)
needs_sshd = pytest.mark.skipif(SSHD is None, reason="there is no sshd here (apt-get install openssh-server)")
SETTINGS: dict[str, Any] = {
    "img_size": 32, "in_chans": 1, "num_classes": 10, "batch_size": 1, "num_threads": 1, "dtype": "float32",
    "prepared": True, "tolerance": 0.05, "max_seconds": 2.0, "calibration_seconds": 0.5,
}  # fmt: skip


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def access(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Start a server on loopback, and return the settings of a target that reaches it."""
    if SSHD is None:
        pytest.skip("there is no sshd here (apt-get install openssh-server)")
    folder = tmp_path_factory.mktemp("sshd")
    folder.chmod(0o700)
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    shutil.copy(folder / "user.pub", folder / "authorized_keys")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    host_key = (folder / "host.pub").read_text().split()[:2]
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {' '.join(host_key)}\n")
    config = {
        "Port": port, "ListenAddress": "127.0.0.1", "HostKey": folder / "host", "PidFile": "none", "UsePAM": "no",
        "AuthorizedKeysFile": folder / "authorized_keys", "PasswordAuthentication": "no", "StrictModes": "no",
        "PermitRootLogin": "prohibit-password",
    }  # fmt: skip
    (folder / "config").write_text("".join(f"{key} {value}\n" for key, value in config.items()))
    Path("/run/sshd").mkdir(exist_ok=True)
    server = subprocess.Popen([SSHD, "-D", "-e", "-f", folder / "config"], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 10
    while not listens(port):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    yield {
        "host": f"{getpass.getuser()}@127.0.0.1",
        "port": port,
        "identity_file": str(folder / "user"),
        "known_hosts": str(folder / "known_hosts"),
        "python": sys.executable,
    }
    server.terminate()
    server.wait()


@pytest.fixture(scope="module")
def target(access: dict[str, Any]) -> Iterator[PairedTarget]:
    target = ssh_target(**SETTINGS, **access)
    yield target
    connection_of(target).close()


def connection_of(target: PairedTarget) -> Connection:
    connection: Connection = target.host.connection
    return connection


def test_outputs_are_those_of_pytorch(target: PairedTarget, calibration: Calibration) -> None:
    parity = target.measure(LARGE, calibration).parity
    assert parity is not None
    assert parity < 1e-5


def test_int8_network_computes_on_the_device_what_it_does_in_pytorch(access: dict[str, Any]) -> None:
    target = ssh_target(**{**SETTINGS, "dtype": "int8"}, **access)
    with closing(connection_of(target)):
        latency = target.measure(LARGE, target.calibrate(SMALL))
    assert latency.parity is not None
    assert latency.parity < 0.05


def test_exported_files_are_measured_on_the_device(access: dict[str, Any], calibration: Calibration, tmp_path: Path) -> None:
    network, x = build(LARGE, in_chans=1, num_classes=10).eval(), torch.rand(4, 1, 32, 32)
    trained = Trained(network, UNTRAINED, {}, {})
    FORMATS["onnx"].write(Deployable(network, x, trained), tmp_path / "model.onnx")
    FORMATS["onnx_int8"].write(Deployable(calibrated(prepare(network), [x]), x, trained), tmp_path / "model.int8.onnx")
    files = {"onnx": {}, "onnx_int8": {}, "torch_export": {}}
    facts = {"calibration": calibration.to_dict(), "files": files, "input_shape": [1, 32, 32], "device": {"num_classes": 10}}
    (tmp_path / "card.json").write_text(json.dumps(facts), encoding="utf-8")
    how = [f"latency.{key}={value}" for key, value in access.items()]
    short = ["latency.max_seconds=1", "latency.calibration_seconds=0.5"]
    with Command(tmp_path, "search.measure", f"deployed={tmp_path}", "latency=ssh", *how, *short) as command:
        printed = command.wait()
    assert command.returncode == 0, printed
    rows = {line.split()[1]: line.split() for line in printed.splitlines() if "model." in line and "│" in line}
    assert set(rows) == {"model.onnx", "model.int8.onnx"}
    assert all(float(row[-2]) < 0.05 for row in rows.values())  # how far outputs there are from those here
    assert "model.pt2: left out, devices run ONNX files" in printed


def test_fingerprint_says_what_the_device_is_and_not_how_it_is_reached(target: PairedTarget, access: dict[str, Any]) -> None:
    fingerprint = target.fingerprint()
    assert fingerprint["target"] == "ssh"
    assert fingerprint["node"] == socket.gethostname()
    assert fingerprint["device_onnxruntime"]
    assert not EXECUTION_KEYS & set(fingerprint)
    assert not set(access.values()) & set(fingerprint.values())


def test_same_device_by_another_name_has_the_same_fingerprint(target: PairedTarget, access: dict[str, Any]) -> None:
    other = ssh_target(**SETTINGS, **{**access, "host": "127.0.0.1", "connect_seconds": 5.0})
    assert other.fingerprint() == target.fingerprint()
    connection_of(other).close()


def ssh_processes() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if child.name() == "ssh" and child.status() != "zombie"]


def test_dropped_connection_is_made_again(target: PairedTarget, calibration: Calibration) -> None:
    ready = target.make_ready(target._network(LARGE))  # which takes seconds that the connection is not used in
    (before,) = ssh_processes()
    dropping = threading.Timer(0.7, before.kill)
    dropping.start()
    (latency,) = target.time([ready], calibration)
    dropping.join()
    assert latency.repetitions > 1
    (after,) = ssh_processes()
    assert after.pid != before.pid


def test_device_that_drops_the_connection_each_time_is_given_up(access: dict[str, Any]) -> None:
    """The device's kernel may kill the runner for its memory, each time anew."""
    target = ssh_target(**SETTINGS, **access, reconnect_seconds=2.5)
    target.fingerprint()
    tries = 0

    def die(link: Link) -> None:
        nonlocal tries
        tries += 1
        link._process.kill()
        link.ask("hello", {"num_threads": 1, "cores": None})

    with pytest.raises(DeviceError, match="cannot be reached any more"):
        connection_of(target).run(die)
    assert tries == 2
    connection_of(target).close()


def test_device_that_is_gone_is_given_up_however_long_a_try_takes(access: dict[str, Any]) -> None:
    target = ssh_target(**SETTINGS, **access, connect_seconds=2.0, reconnect_seconds=1.5)
    target.fingerprint()
    connection = connection_of(target)
    connection.close()
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        connection.access = replace(connection.access, port=silent.getsockname()[1])
        with pytest.raises(DeviceError, match="cannot be reached any more"):
            target.fingerprint()


def test_device_is_measured_by_one_search_at_a_time(target: PairedTarget, calibration: Calibration) -> None:
    ready, released = target.make_ready(target._network(LARGE)), list[float]()
    lock = (Path(tempfile.gettempdir()) / f"hilo-nas-{os.getuid()}.lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)  # as another search does that measures there

    def release() -> None:
        released.append(time.monotonic())
        lock.close()

    releasing = threading.Timer(4.0, release)
    releasing.start()
    (latency,) = target.time([ready], calibration)
    releasing.join()
    assert time.monotonic() - latency.seconds >= released[0]


def test_device_keeps_only_the_anchor(target: PairedTarget, calibration: Calibration) -> None:
    target.measure(LARGE, calibration)

    def loaded(link: Link) -> list[str]:
        names = [f"network-{number}" for number in range(next(target.host._on_device._numbers))]
        assert len(names) > 1
        return [name for name in names if is_loaded(link, name)]

    assert len(connection_of(target).run(loaded)) == 1


def is_loaded(link: Link, name: str) -> bool:
    """False if the device's error names this network, rather than the anchor, as unknown."""
    with pytest.raises(DeviceError) as caught:
        link.ask("ratios", {"names": [name], "anchor": "", "tolerance": 1.0, "max_seconds": 1.0, "repeatability": {}})
    return name not in str(caught.value)


def test_two_targets_share_a_device(target: PairedTarget, access: dict[str, Any], calibration: Calibration) -> None:
    """A study may measure on one board with one thread and with two."""
    other = ssh_target(**{**SETTINGS, "num_threads": 2}, **access)
    for each in (target, other, target):
        assert each.measure(SMALL, calibration).repetitions > 1
    connection_of(other).close()


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"known_hosts": "empty"}, "Host key verification failed"),
        ({"identity_file": "other"}, "Permission denied"),
        ({"python": "/no/such/python"}, "/no/such/python"),
        ({"port": 1}, "Connection refused"),
    ],
)
def test_device_that_cannot_be_reached_is_one_clear_line(
    access: dict[str, Any], tmp_path: Path, changed: dict[str, Any], reason: str
) -> None:
    (tmp_path / "empty").touch()
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "other"], check=True)
    files = {key: str(tmp_path / value) if value in ("empty", "other") else value for key, value in changed.items()}
    with pytest.raises(UserError, match=f"latency.host=.* cannot be reached: .*{reason}") as caught:
        ssh_target(**SETTINGS, **{**access, **files}).fingerprint()
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_search_over_ssh(access: dict[str, Any], tmp_path: Path) -> None:
    """A whole search, with the device's interval in the export."""
    arguments = ["study.name=remote", "study.n_trials=4", "accuracy=scratch", "latency=ssh", *TINY]
    arguments += [f"latency.{key}={value}" for key, value in access.items()]
    arguments.append(f"latency.cores=[{min(os.sched_getaffinity(0))}]")
    with Command(tmp_path, "search.run", *arguments) as search:
        output = search.wait(500)
    assert search.returncode == 0, output
    exported = sorted((tmp_path / "outputs/remote/pareto").glob("trial-*.yaml"))
    assert exported
    for file in exported:
        target = yaml.safe_load(file.read_text(encoding="utf-8"))["targets"]["first"]
        latency, device = target["latency"], target["device"]
        assert 0 < latency["low_ms"] < latency["latency_ms"] < latency["high_ms"]
        assert device["node"] == socket.gethostname()
        assert "host" not in device

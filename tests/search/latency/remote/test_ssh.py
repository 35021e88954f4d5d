"""A device over ssh: a real sshd on loopback with keys of its own, connections that drop, and a device that lies."""

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
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from search import UserError
from search.latency.base import Calibration
from search.latency.remote.runner import MARK
from search.latency.remote.ssh import DeviceError, Link, LinkLost, SshTarget, bundle, number, numbers, text
from tests.contracts.latency_target import *  # noqa: F403
from tests.contracts.latency_target import LARGE, SMALL
from tests.support.commands import TINY, start

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
    """A server on loopback, and the settings of a target that reaches it."""
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
def target(access: dict[str, Any]) -> Iterator[SshTarget]:
    made = SshTarget(**SETTINGS, **access)
    yield made
    made._disconnect()


def test_outputs_are_those_of_pytorch(target: SshTarget, calibration: Calibration) -> None:
    parity = target.measure(LARGE, calibration).parity
    assert parity is not None
    assert parity < 1e-5


def test_fingerprint_is_the_device_s(target: SshTarget) -> None:
    found = target.fingerprint()
    assert found["host"] == target.host
    assert found["node"] == socket.gethostname()
    assert found["device_onnxruntime"]


def connections(target: SshTarget) -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if child.name() == "ssh" and child.status() != "zombie"]


def test_dropped_connection_is_made_again(target: SshTarget, calibration: Calibration) -> None:
    ready = target.make_ready(target._network(LARGE))  # which takes seconds that the connection is not used in
    (before,) = connections(target)
    dropping = threading.Timer(0.7, before.kill)
    dropping.start()
    (latency,) = target.time([ready], calibration)
    dropping.join()
    assert latency.repetitions > 1
    (after,) = connections(target)
    assert after.pid != before.pid


def test_device_that_drops_the_connection_each_time_is_given_up(access: dict[str, Any]) -> None:
    """As a runner that the device's kernel kills for its memory."""
    target = SshTarget(**SETTINGS, **access, reconnect_seconds=2.5)
    target.fingerprint()
    tries = 0

    def die(link: Link) -> None:
        nonlocal tries
        tries += 1
        link._process.kill()
        link.ask("hello", {"num_threads": 1, "cores": None})

    with pytest.raises(DeviceError, match="is not reached any more"):
        target._connected(die)
    assert tries == 2
    target._disconnect()


def test_device_that_is_gone_is_given_up_however_long_a_try_takes(access: dict[str, Any]) -> None:
    target = SshTarget(**SETTINGS, **access, connect_seconds=2.0, reconnect_seconds=1.5)
    target.fingerprint()
    target._disconnect()
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        target.port = silent.getsockname()[1]
        with pytest.raises(DeviceError, match="is not reached any more"):
            target.fingerprint()


def test_device_is_measured_by_one_search_at_a_time(target: SshTarget, calibration: Calibration) -> None:
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


def test_device_keeps_no_network_but_the_anchor(target: SshTarget, calibration: Calibration) -> None:
    target.measure(LARGE, calibration)

    def there(link: Link) -> list[str]:
        """Networks that it does not name as the one that it has not."""
        found = []
        for name in (f"network-{index}" for index in range(next(target._names))):
            with pytest.raises(DeviceError) as said:
                link.ask("ratios", {"names": [name], "anchor": "", "tolerance": 1.0, "max_seconds": 1.0})
            if name not in str(said.value):
                found.append(name)
        return found

    assert len(target._connected(there)) == 1


def test_two_targets_share_a_device(target: SshTarget, access: dict[str, Any], calibration: Calibration) -> None:
    """As two devices of one study do that are the same board, with one thread and with two."""
    other = SshTarget(**{**SETTINGS, "num_threads": 2}, **access)
    for one in (target, other, target):
        assert one.measure(SMALL, calibration).repetitions > 1
    other._disconnect()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"known_hosts": "empty"}, "Host key verification failed"),
        ({"identity_file": "other"}, "Permission denied"),
        ({"python": "/no/such/python"}, "/no/such/python"),
        ({"port": 1}, "Connection refused"),
    ],
)
def test_device_that_is_not_reached_is_one_clear_line(
    access: dict[str, Any], tmp_path: Path, changed: dict[str, Any], said: str
) -> None:
    (tmp_path / "empty").touch()
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "other"], check=True)
    files = {key: str(tmp_path / value) if value in ("empty", "other") else value for key, value in changed.items()}
    with pytest.raises(UserError, match=f"latency.host=.* is not reached: .*{said}") as caught:
        SshTarget(**SETTINGS, **{**access, **files}).fingerprint()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("host", "-oProxyCommand=touch /tmp/x"),
        ("host", ""),
        ("python", "python3; reboot"),
        ("port", 0),
        ("identity_file", "/no"),
        ("cores", "45"),
    ],
)
def test_settings_that_make_no_sense_are_named(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"latency.{name}="):
        SshTarget(**SETTINGS, **{"host": "pi", name: value})


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_search_over_ssh(access: dict[str, Any], tmp_path: Path) -> None:
    """The whole of it, with the device's interval in the export."""
    arguments = ["study.name=remote", "study.n_trials=4", "accuracy=scratch", "latency=ssh", *TINY]
    arguments += [f"latency.{key}={value}" for key, value in access.items()]
    arguments.append(f"latency.cores=[{min(os.sched_getaffinity(0))}]")
    search = start(tmp_path, "search.run", *arguments)
    output, _ = search.communicate(timeout=500)
    assert search.returncode == 0, output
    exported = sorted((tmp_path / "outputs/remote/pareto").glob("trial-*.yaml"))
    assert exported
    for file in exported:
        facts = yaml.safe_load(file.read_text(encoding="utf-8"))
        assert 0 < facts["latency"]["low_ms"] < facts["latency"]["latency_ms"] < facts["latency"]["high_ms"]
        assert facts["device"]["host"] == access["host"]


def speaking(*lines: str) -> Link:
    """A device that says this, whatever it is asked."""
    script = "import sys, time\n" + "".join(f"print({line!r}, flush=True)\n" for line in lines) + "time.sleep(20)\n"
    return Link([sys.executable, "-c", script], b"")


LIES = [
    "not json",
    "[1, 2]",
    '{"id": 7, "result": {}}',
    '{"id": 0, "result": [1]}',
    '{"id": 0, "error": "' + "x" * 5000 + '"}',
]


@pytest.mark.parametrize("lie", LIES)
def test_answers_are_checked(lie: str) -> None:
    link = speaking("Welcome to the device", MARK + lie)
    try:
        with pytest.raises(DeviceError) as caught:
            link.ask("hello", {})
        assert len(str(caught.value)) < 300
    finally:
        link.close()


def test_answer_without_an_end_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("search.latency.remote.ssh.ANSWER_BYTES", 10_000)
    link = Link([sys.executable, "-c", "print('x' * 100_000)"], b"")
    try:
        with pytest.raises(DeviceError, match="longer than 10000 bytes"):
            link.ask("hello", {})
    finally:
        link.close()


def test_silent_device_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("search.latency.remote.ssh.SILENCE_SECONDS", 0.5)
    link = speaking()
    try:
        with pytest.raises(LinkLost, match="does not answer"):
            link.ask("hello", {})
    finally:
        link.close()


@pytest.mark.parametrize("value", [None, [], ["1"], [True], [float("nan")], [float("inf")], [-1.0], {"a": 1}])
def test_times_are_numbers(value: object) -> None:
    with pytest.raises(DeviceError):
        numbers(value, 1e7)


def test_text_is_one_short_line() -> None:
    assert text("a\x1b[31m\nb" + "c" * 1000) == ("a[31mb" + "c" * 1000)[:200]
    assert number(3, 1, 5) == 3.0


def test_runner_needs_nothing_but_what_is_sent(tmp_path: Path) -> None:
    """In a Python without the project, and without PyTorch."""
    (tmp_path / "runner.zip").write_bytes(bundle())
    code = f"import sys; sys.path.insert(0, {str(tmp_path / 'runner.zip')!r}); sys.modules['torch'] = None\n"
    code += "from search.latency.remote.runner import main; main()"
    request = json.dumps({"id": 0, "do": "hello", "arguments": {"num_threads": 1, "cores": [10**6]}, "bytes": 0})
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment["TMPDIR"] = str(tmp_path)
    command = [sys.executable, "-I", "-c", code]
    done = subprocess.run(command, input=request + "\n", capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert "latency.cores=[1000000] must list" in done.stdout, done.stderr
    assert done.returncode == 0  # it ended when its input did

"""Settings of a connection, and the code that goes to the device."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from search.latency.remote.access import SshAccess, bundle
from search.latency.remote.host import SshHost


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("host", "-oProxyCommand=touch /tmp/x"),
        ("host", ""),
        ("python", "python3; reboot"),
        ("port", 0),
        ("identity_file", "/no"),
    ],
)
def test_invalid_settings_are_named(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"latency.{name}="):
        SshAccess(**{"host": "pi", name: value})


@pytest.mark.parametrize("cores", ["45", [], [-1], [True], 4])
def test_cores_that_are_not_a_list_of_numbers_are_named(cores: Any) -> None:
    with pytest.raises(ValueError, match="latency.cores="):
        SshHost(SshAccess("pi"), 1, cores)


def test_command_never_asks_and_never_trusts_a_new_host_key(tmp_path: Path) -> None:
    (tmp_path / "key").touch()
    access = SshAccess("pi@board", port=2222, identity_file=str(tmp_path / "key"), connect_seconds=1.5)
    command = access.command()
    assert {"BatchMode=yes", "StrictHostKeyChecking=yes", "ConnectTimeout=2", "Port=2222"} <= set(command)
    assert {"IdentitiesOnly=yes", f"IdentityFile={tmp_path / 'key'}"} <= set(command)
    assert command[command.index("--") + 1] == "pi@board"
    assert command[-1].startswith("python3 -c ")


def test_what_is_sent_runs_in_older_pythons(tmp_path: Path) -> None:
    """Such as JetPack's 3.10, and 3.9."""
    with zipfile.ZipFile(io.BytesIO(bundle())) as archive:
        archive.extractall(tmp_path)
    command = [str(Path(sys.executable).with_name("vermin")), "-t=3.9-", "--no-tips", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_runner_needs_nothing_but_what_is_sent(tmp_path: Path) -> None:
    """It starts in a Python without the project and without PyTorch."""
    (tmp_path / "runner.zip").write_bytes(bundle())
    code = f"import sys; sys.path.insert(0, {str(tmp_path / 'runner.zip')!r}); sys.modules['torch'] = None\n"
    code += "from search.latency.remote.runner import main; main()"
    request = json.dumps({"id": 0, "do": "hello", "arguments": {"num_threads": 1, "cores": [10**6]}, "bytes": 0})
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment["TMPDIR"] = str(tmp_path)
    command = [sys.executable, "-I", "-c", code]
    done = subprocess.run(command, input=request + "\n", capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert "latency.cores=[1000000] must list" in done.stdout, done.stderr
    assert done.returncode == 0  # it ends when its input does

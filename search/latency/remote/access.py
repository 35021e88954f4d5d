"""How a device is reached: the settings of the connection, the command line of ssh, and the code that it starts there."""

from __future__ import annotations

import io
import math
import re
import shlex
import zipfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from models.architecture import check_int, check_number

HOST = re.compile(r"(?:[A-Za-z0-9_][\w.-]*@)?[A-Za-z0-9_][\w.:-]*")
PYTHON = re.compile(r"[\w./~+-]+")
MODULES = (  # the runner and what it imports: Python 3.9, numpy and onnxruntime besides
    "search",
    "search.latency",
    "search.latency.estimate",
    "search.latency.memory",
    "search.latency.onnx_session",
    "search.latency.processor",
    "search.latency.protocol",
    "search.latency.remote",
    "search.latency.remote.runner",
    "search.latency.repeatability",
    "search.latency.rounds",
)
BOOT = (  # reads the zip file of these modules from standard input, and runs the runner from it
    "import atexit,os,runpy,sys,tempfile;"
    "f=tempfile.NamedTemporaryFile(suffix='.zip',delete=False);"
    "atexit.register(os.unlink,f.name);"
    "f.write(sys.stdin.buffer.read({size}));f.close();"
    "sys.path.insert(0,f.name);"
    "runpy.run_module('search.latency.remote.runner',run_name='__main__')"
)


@dataclass(frozen=True)
class SshAccess:
    """How a device is reached; measurements do not depend on it.

    Attributes:
        host: USER@HOST as ssh takes it, or a name of ~/.ssh/config.
        python: Path of Python on the device.
        port: Port of its ssh server; None for ssh's choice.
        identity_file: File of the private key; None for ssh's choice.
        known_hosts: File of the known host keys; None for ssh's choice.
        connect_seconds: Time limit for one attempt to connect.
        reconnect_seconds: How long to try when a connection drops.

    Raises:
        ValueError: If a setting is invalid, or a file does not exist.
    """

    host: str
    python: str = "python3"
    port: int | None = None
    identity_file: str | None = None
    known_hosts: str | None = None
    connect_seconds: float = 10.0
    reconnect_seconds: float = 300.0

    def __post_init__(self) -> None:
        if not isinstance(self.host, str) or not HOST.fullmatch(self.host):
            raise ValueError(f"latency.host={self.host} must be a device that ssh reaches, such as pi@raspberrypi.local")
        if not isinstance(self.python, str) or not PYTHON.fullmatch(self.python):
            raise ValueError(f"latency.python={self.python} must be the path of Python on the device")
        if self.port is not None:
            check_int("latency.port", self.port, 1, 65535)
        check_number("latency.connect_seconds", self.connect_seconds, 1)
        check_number("latency.reconnect_seconds", self.reconnect_seconds, 0)
        for key in ("identity_file", "known_hosts"):
            path = getattr(self, key)
            if path is not None and not Path(path).expanduser().is_file():
                raise ValueError(f"latency.{key}={path} is not a file; name one, or null")

    def command(self) -> list[str]:
        """Return the command that starts the runner on the device; it reads `bundle` first."""
        options = {
            "BatchMode": "yes",
            "StrictHostKeyChecking": "yes",
            "ConnectTimeout": str(math.ceil(self.connect_seconds)),
            "ServerAliveInterval": "5",
            "ServerAliveCountMax": "3",
            "ForwardAgent": "no",
            "ClearAllForwardings": "yes",
        }
        if self.known_hosts is not None:
            options["UserKnownHostsFile"] = str(Path(self.known_hosts).expanduser())
        if self.identity_file is not None:
            options |= {"IdentitiesOnly": "yes", "IdentityFile": str(Path(self.identity_file).expanduser())}
        if self.port is not None:
            options["Port"] = str(self.port)
        arguments = [part for key, value in options.items() for part in ("-o", f"{key}={value}")]
        boot = shlex.quote(BOOT.format(size=len(bundle())))
        return ["ssh", "-T", *arguments, "--", self.host, f"{self.python} -c {boot}"]


@lru_cache(maxsize=1)
def bundle() -> bytes:
    """Return the runner and what it imports, as a zip file that Python can import from."""
    root = Path(__file__).resolve().parents[3]
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for module in MODULES:
            base = root.joinpath(*module.split("."))
            file = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
            archive.writestr(zipfile.ZipInfo(str(file.relative_to(root))), file.read_bytes())
    return content.getvalue()

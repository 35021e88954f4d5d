"""A device that is reached over ssh, such as a Raspberry Pi: networks go there as ONNX and are timed there (runner.py).

The system's own ssh client connects, with keys and known host keys alone. What the device answers is checked as data: it is
never run or unpickled, and intervals are computed here. A connection that drops is made again, and the measurement repeated.
"""

from __future__ import annotations

import io
import itertools
import json
import logging
import math
import re
import selectors
import shlex
import subprocess
import tempfile
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from models.architecture import Architecture, check_int, check_number
from models.deploy.onnx import export_onnx
from search import UserError
from search.latency.base import Calibration, Latency, Round
from search.latency.protocol import Series, repeat_interval
from search.latency.remote.runner import MARK
from search.latency.target import (
    COPIES_BYTES,
    MAX_COPIES,
    ConversionError,
    Network,
    PairedTarget,
    Prepared,
    Ready,
    check_parity,
)

log = logging.getLogger(__name__)
Result = TypeVar("Result")

HOST = re.compile(r"(?:[A-Za-z0-9_][\w.-]*@)?[A-Za-z0-9_][\w.:-]*")
PYTHON = re.compile(r"[\w./~+-]+")
MODULES = ["models", "models.architecture", "search", "search.latency"]
MODULES += [
    "search.latency.remote",
    "search.latency.base",
    "search.latency.protocol",
    "search.latency.onnx_session",
    "search.latency.remote.runner",
]
FACTS = ["device", "node", "machine", "governor", "max_khz", "device_python", "device_numpy", "device_onnxruntime"]
BOOT = (
    "import atexit,os,runpy,sys,tempfile;"
    "f=tempfile.NamedTemporaryFile(suffix='.zip',delete=False);"
    "atexit.register(os.unlink,f.name);"
    "f.write(sys.stdin.buffer.read({size}));f.close();"
    "sys.path.insert(0,f.name);"
    "runpy.run_module('search.latency.remote.runner',run_name='__main__')"
)
ANSWER_BYTES = 2**26  # of one answer, at most
TEXT_LENGTH = 200
MAX_NUMBERS = 10**6
LONGEST_MS = 1e7
SILENCE_SECONDS = 300.0  # without a sign of life; ssh itself notices a connection that is cut within seconds
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 15.0  # seconds between two connections


class LinkLost(ConnectionError):
    """The connection to the device broke, or it does not answer."""


class DeviceError(RuntimeError):
    """What the device says went wrong there."""


class ProtocolError(DeviceError):
    """An answer that is none."""


@dataclass(frozen=True)
class RemoteReady(Ready):
    """A network as it is sent: its ONNX file and an input, and the model whose outputs the device's are compared with."""

    content: bytes = b""
    x: Tensor | None = None
    model: nn.Module | None = None
    num_copies: int = 1


@dataclass
class SshTarget(PairedTarget):
    """Networks run by ONNX Runtime on another device.

    host: as ssh takes it, USER@HOST or a name of ~/.ssh/config. python: there, with numpy and onnxruntime. port,
    identity_file, known_hosts: None for what ssh chooses. reconnect_seconds: how long to try when a connection drops.
    """

    host: str = ""
    python: str = "python3"
    port: int | None = None
    identity_file: str | None = None
    known_hosts: str | None = None
    connect_seconds: float = 10.0
    reconnect_seconds: float = 300.0

    name = "ssh"
    backend = "onnxruntime over ssh, CPUExecutionProvider"
    packages = ("torch", "torchvision", "timm", "onnx", "onnxscript")
    extra = "onnx"
    runs_files = False

    def __post_init__(self) -> None:
        cores, self.cores = self.cores, None  # which the device knows, not this machine
        super().__post_init__()
        self.cores = listed_cores(cores)
        if not isinstance(self.host, str) or not HOST.fullmatch(self.host):
            raise ValueError(f"latency.host={self.host} must be a device that ssh reaches, as pi@raspberrypi.local")
        if not isinstance(self.python, str) or not PYTHON.fullmatch(self.python):
            raise ValueError(f"latency.python={self.python} must be the path of Python on the device")
        if self.port is not None:
            check_int("latency.port", self.port, 1, 65535)
        check_number("latency.connect_seconds", self.connect_seconds, 1)
        check_number("latency.reconnect_seconds", self.reconnect_seconds, 0)
        for key in ("identity_file", "known_hosts"):
            path = getattr(self, key)
            if path is not None and not Path(path).expanduser().is_file():
                raise ValueError(f"latency.{key}={path}: there is no such file")
        self._link: Link | None = None
        self._facts: dict[str, str | int] | None = None
        self._loaded: dict[str, RemoteReady] = {}
        self._parity: dict[str, float] = {}
        self._names = itertools.count()

    def prepare(self, model: nn.Module, x: Tensor) -> Prepared:
        raise ConversionError("files of search.export are not measured over ssh; copy them to the device")

    def device(self) -> dict[str, str | int]:
        self._connected(lambda link: None)
        assert self._facts is not None
        return {"host": self.host, **self._facts}

    def calibrate(self, anchor: Architecture) -> Calibration:
        ready = self._anchor_ready(anchor)

        def timed(link: Link) -> list[list[float]]:
            arguments = {"name": self._load(link, ready), "between": None, "seconds": self.calibration_seconds}
            answer = link.ask("alone", arguments)
            return [numbers(one, LONGEST_MS / 1e3) for one in listed(answer, "rounds")]

        rounds = self._connected(timed)
        interval = repeat_interval(rounds)
        return Calibration(anchor, interval.median * 1e3, interval.low * 1e3, interval.high * 1e3, sum(map(len, rounds)))

    def make_ready(self, network: Network) -> Ready:
        start = time.perf_counter()
        model = self._model(network)
        x = torch.rand(self.batch_size, *network.input_shape)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            try:
                export_onnx(model, x, path)
            except Exception as error:
                raise ConversionError(f"this model has no ONNX form: {error}") from error
            content = path.read_bytes()
        copies = max(1, min(MAX_COPIES, COPIES_BYTES // len(content)))
        return RemoteReady([], None, time.perf_counter() - start, None, content, x, model, copies)

    def time(self, networks: Sequence[Ready], calibration: Calibration) -> list[Latency]:
        sent = [one for one in networks if isinstance(one, RemoteReady)]
        assert len(sent) == len(networks)
        anchor = self._anchor_ready(calibration.anchor)

        def timed(link: Link) -> tuple[list[float], list[Series], float]:
            names = [self._load(link, one) for one in sent]
            arguments = {
                "names": names,
                "anchor": self._load(link, anchor),
                "tolerance": self.tolerance,
                "max_seconds": self.max_seconds,
            }
            answer = link.ask("ratios", arguments)
            parities = [self._parity[name] for name in names]
            series = [self._series(one) for one in listed(answer, "series")]
            if len(series) != len(sent):
                raise ProtocolError(f"the device timed {len(series)} networks instead of {len(sent)}")
            return parities, series, number(answer.get("busy_cores"), 0.0, 1e6)

        parities, found, busy_cores = self._connected(timed)
        return [
            self._latency(replace(one, parity=parity), series, calibration, busy_cores)
            for one, parity, series in zip(sent, parities, found, strict=True)
        ]

    def num_cores(self) -> int:
        assert self._facts is not None
        return int(self._facts["cores"])

    def _anchor_ready(self, anchor: Architecture) -> RemoteReady:
        if self._anchor is None or self._anchor[0] != anchor:
            self._anchor = (anchor, self.make_ready(self._network(anchor)))
        ready = self._anchor[1]
        assert isinstance(ready, RemoteReady)
        return ready

    def _load(self, link: Link, ready: RemoteReady) -> str:
        """Send a network unless it is there, and compare its outputs. Returns its name on the device."""
        for name, there in self._loaded.items():
            if there is ready:
                return name
        assert ready.x is not None
        assert ready.model is not None
        name, given = f"network-{next(self._names)}", ready.x.numpy().tobytes()
        arguments = {
            "name": name,
            "shape": list(ready.x.shape),
            "num_copies": ready.num_copies,
            "input_bytes": len(given),
        }
        self._loaded[name] = ready  # whatever comes of it, it is dropped in the end
        answer = link.ask("load", arguments, given + ready.content)
        outputs = torch.tensor(numbers(answer.get("outputs"), 1e30, lowest=-1e30))
        with torch.inference_mode():
            shape = (len(ready.x), *ready.model(ready.x[:1]).shape[1:])
        if outputs.numel() != math.prod(shape):
            raise ProtocolError(f"the device gave {outputs.numel()} outputs instead of {math.prod(shape)}")
        self._parity[name] = check_parity(self.name, ready.model, ready.x, outputs.reshape(shape), self.dtype)
        return name

    def _series(self, told: object) -> Series:
        """As the device told it, its interval computed here."""
        rounds = [
            Round(tuple(numbers(one.get("candidate_ms"), LONGEST_MS)), tuple(numbers(one.get("anchor_ms"), LONGEST_MS)))
            for one in listed(mapping(told), "rounds")
            if isinstance(one, dict)
        ]
        if len(rounds) < 2 or any(len(one.anchor_ms) != len(one.candidate_ms) + 1 for one in rounds):
            raise ProtocolError("the device's times are not those of a measurement")
        series = Series(rounds, int(number(mapping(told).get("warmup_runs"), 0, MAX_NUMBERS)))
        series.seconds = number(mapping(told).get("seconds"), 0, 1e6)
        series.converged = series.interval.half_width <= self.tolerance
        return series

    def _connected(self, action: Callable[[Link], Result]) -> Result:
        """Do something with the device, again on a new connection if this one drops; then drop what it need not keep."""
        lost, pause = None, FIRST_PAUSE
        while True:
            connected = None
            try:
                if self._link is None:
                    self._link = self._new_link()
                connected = time.monotonic()
                try:
                    return action(self._link)
                finally:
                    self._drop_all_but_anchor(self._link)
            except LinkLost as error:
                self._disconnect()
                if self._facts is None:  # never reached: a mistake rather than bad luck
                    raise UserError(
                        f"latency.host={self.host} is not reached: {error}; see that ssh -o BatchMode=yes {self.host} works"
                    ) from error
                # It was there for longer than a device is waited for that has gone in silence.
                if connected is not None and time.monotonic() - connected > self.reconnect_seconds + SILENCE_SECONDS:
                    lost, pause = None, FIRST_PAUSE
                lost = lost or time.monotonic()
                if time.monotonic() - lost + pause > self.reconnect_seconds:
                    raise DeviceError(f"{self.host} is not reached any more: {error}") from error
                log.warning("the connection to %s dropped (%s); connecting again in %g s", self.host, error, pause)
            except ProtocolError:
                self._disconnect()
                raise
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def _drop_all_but_anchor(self, link: Link) -> None:
        """An anchor that did not load, or computes something else, is dropped too."""
        anchor = self._anchor[1] if self._anchor is not None else None
        for name in [name for name, ready in self._loaded.items() if ready is not anchor or name not in self._parity]:
            del self._loaded[name]
            if not link.is_broken:
                link.ask("drop", {"name": name})

    def _new_link(self) -> Link:
        """Connect, and see that it is the same device as before."""
        link = Link(self._command(), bundle())
        self._loaded.clear()
        self._parity.clear()
        try:
            answer = link.ask("hello", {"num_threads": self.num_threads, "cores": self.cores})
            facts: dict[str, str | int] = {key: text(answer.get(key)) for key in FACTS}
            facts["cores"] = int(number(answer.get("cores"), 1, 1e6))
            if self._facts is not None and facts != self._facts:
                changed = ", ".join(key for key, value in facts.items() if self._facts[key] != value)
                raise DeviceError(f"{self.host} is another device than before ({changed} differ)")
        except BaseException:
            link.close()
            raise
        self._facts = facts
        return link

    def _disconnect(self) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None

    def _command(self) -> list[str]:
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
        given = [part for key, value in options.items() for part in ("-o", f"{key}={value}")]
        boot = shlex.quote(BOOT.format(size=len(bundle())))
        return ["ssh", "-T", *given, "--", self.host, f"{self.python} -c {boot}"]


class Link:
    """A connection: a process of ssh, on the other end of which the runner runs."""

    def __init__(self, command: Sequence[str], code: bytes) -> None:
        self.is_broken = False
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, start_new_session=True
            )
        except FileNotFoundError as error:
            raise LinkLost("there is no ssh client on this machine") from error
        self._ids = itertools.count()
        self._read = bytearray()
        try:
            self._send(code)
        except LinkLost:
            self.close()
            raise

    def ask(self, action: str, arguments: Mapping[str, Any], content: bytes = b"") -> dict[str, Any]:
        """Raises: LinkLost if there is no sign of life for long, DeviceError with what went wrong there, ProtocolError."""
        self.is_broken = True  # until it is answered
        number = next(self._ids)
        request = {"id": number, "do": action, "arguments": arguments, "bytes": len(content)}
        self._send(json.dumps(request).encode() + b"\n" + content)
        while not (line := self._line()).startswith(MARK):
            pass  # what a login prints, and signs of life
        try:
            answer = mapping(json.loads(line.removeprefix(MARK)))
        except ValueError as error:
            raise ProtocolError("the device's answer is not JSON") from error
        if answer.get("id") != number:
            raise ProtocolError("the device answered something that was not asked")
        self.is_broken = False
        if "error" in answer:
            raise DeviceError(f"on the device: {text(answer['error'])}")
        return mapping(answer.get("result"))

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except BrokenPipeError:
                    log.debug("the connection was closed with words unsaid")
        self._errors.close()

    def _send(self, content: bytes) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(content)
            self._process.stdin.flush()
        except OSError as error:
            raise LinkLost(self._reason()) from error

    def _line(self) -> str:
        """The next one. Raises: LinkLost if the connection ends or is silent for too long."""
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while (cut := self._read.find(b"\n")) < 0:
                if not selector.select(SILENCE_SECONDS):
                    raise LinkLost("it does not answer")
                part = self._process.stdout.read1()  # type: ignore[attr-defined]
                if not part:
                    raise LinkLost(self._reason())
                self._read += part
                if len(self._read) > ANSWER_BYTES:
                    raise ProtocolError(f"the device's answer is longer than {ANSWER_BYTES} bytes")
        line = bytes(self._read[:cut]).decode(errors="replace")
        del self._read[: cut + 1]
        return line

    def _reason(self) -> str:
        """What ssh or Python there said last."""
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            log.debug("ssh closed its ends and still runs")
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors.read().decode(errors="replace").splitlines() if line.strip()]
        return text(lines[-1]) if lines else "the connection was closed"


def bundle() -> bytes:
    """The runner and what it imports, as a zip file that Python can run."""
    root = Path(__file__).resolve().parents[3]
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for module in MODULES:
            base = root.joinpath(*module.split("."))
            file = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
            entry = zipfile.ZipInfo(str(file.relative_to(root)))  # without a date: its size is told in advance
            archive.writestr(entry, file.read_bytes())
    return content.getvalue()


def listed_cores(cores: object) -> list[int] | None:
    """Raises: ValueError if these are no numbers of cores."""
    if cores is None:
        return None
    found = list(cores) if isinstance(cores, Sequence) and not isinstance(cores, str) else []
    if not found or not all(isinstance(core, int) and not isinstance(core, bool) and core >= 0 for core in found):
        raise ValueError(f"latency.cores={cores} must list cores of the device, as [4,5]")
    return found


def mapping(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ProtocolError("the device's answer is not what was asked for")
    return value


def listed(answer: Mapping[str, Any], key: str) -> list[Any]:
    value = answer.get(key)
    if not isinstance(value, list) or not value or len(value) > MAX_NUMBERS:
        raise ProtocolError(f"the device's answer has no {key}")
    return value


def number(value: object, lowest: float, highest: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not lowest <= value <= highest:
        raise ProtocolError(f"the device's answer has {text(repr(value))} where a number belongs")
    return float(value)


def numbers(value: object, highest: float, lowest: float = 1e-9) -> list[float]:
    if not isinstance(value, list) or not value or len(value) > MAX_NUMBERS:
        raise ProtocolError("the device's answer has no numbers where they belong")
    return [number(one, lowest, highest) for one in value]


def text(value: object) -> str:
    """Printable characters of one line, not too many."""
    return "".join(character for character in str(value) if character.isprintable())[:TEXT_LENGTH]

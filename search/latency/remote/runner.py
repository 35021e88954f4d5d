"""What runs on a device that is measured over ssh: times ONNX networks there, by the same protocol as everywhere.

It needs Python 3.11, numpy and onnxruntime, and is sent together with the few modules that it imports; see ssh.py. Requests
come on standard input, a line of JSON each, followed by as many bytes as it says; answers go to standard output, marked, as
a line of JSON. It ends when its input does. Nothing is kept on the device.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from search.latency.onnx_session import open_session
from search.latency.protocol import Run, Timer, scattered, time_alone, time_ratios, timer_on

MARK = "hilo-nas "  # of an answer, among whatever else a login prints
SAMPLE_SECONDS = 0.1
POLL_SECONDS = 0.5


class Runner:
    """Sessions by name, and what can be asked of them."""

    def __init__(self) -> None:
        self.copies: dict[str, list[Run]] = {}
        self.num_threads = 1
        self.cores: list[int] | None = None

    def hello(self, num_threads: int, cores: list[int] | None) -> dict[str, Any]:
        """What the device is."""
        import numpy
        import onnxruntime

        allowed = sorted(os.sched_getaffinity(0))
        if cores is not None and (len(cores) < num_threads or not set(cores) <= set(allowed)):
            raise ValueError(f"latency.cores={cores} must list {num_threads} or more of the cores {allowed}")
        self.num_threads, self.cores, self.allowed = num_threads, cores, allowed
        return {
            "device": cpu_name(),
            "node": platform.node(),
            "machine": platform.machine(),
            "cores": len(allowed),
            "governor": read_first("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
            "max_khz": read_first("/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq"),
            "device_python": platform.python_version(),
            "device_numpy": numpy.__version__,
            "device_onnxruntime": onnxruntime.__version__,
        }

    def load(self, name: str, shape: list[int], num_copies: int, input_bytes: int, content: bytes) -> dict[str, Any]:
        """Take a network and run it once. content: an input of float32 numbers, then the ONNX file. Gives its outputs."""
        import numpy

        x = numpy.frombuffer(content[:input_bytes], numpy.float32).reshape(shape)
        sessions = [open_session(content[input_bytes:], self.num_threads) for _ in range(num_copies)]
        entry = sessions[0].get_inputs()[0].name
        output = sessions[0].run(None, {entry: x})[0]
        self.copies[name] = [running(session, {entry: x.copy()}) for session in sessions]
        return {"outputs": [float(value) for value in output.ravel()]}

    def drop(self, name: str) -> dict[str, Any]:
        self.copies.pop(name, None)
        return {}

    def alone(self, name: str, between: str | None, seconds: float) -> dict[str, Any]:
        """Times of a network's copies, in seconds, by round."""
        others = self.copies[between][:1] if between is not None else []
        with alone_on_device():
            self._settle()
            return {"rounds": time_alone(self.copies[name], others, seconds, self._timer())}

    def ratios(self, names: list[str], anchor: str, tolerance: float, max_seconds: float) -> dict[str, Any]:
        """Times of networks beside the anchor's, in milliseconds."""
        networks = [self.copies[name] for name in names]
        with alone_on_device():
            self._settle()
            before, own, start = busy_seconds(), time.process_time(), time.perf_counter()
            found = time_ratios(networks, self.copies[anchor], tolerance, max_seconds, self._timer())
            passed = time.perf_counter() - start
            others = busy_seconds() - before - (time.process_time() - own)
        series = [
            {
                "rounds": [{"candidate_ms": one.candidate_ms, "anchor_ms": one.anchor_ms} for one in each.rounds],
                "warmup_runs": each.warmup_runs,
                "seconds": each.seconds,
            }
            for each in found
        ]
        return {"series": series, "busy_cores": max(0.0, others / passed)}

    def _timer(self) -> Timer:
        return timer_on(self.num_threads, scattered_memory_and_sign_of_life)

    def _settle(self) -> None:
        """Keep to the cores that were asked for, or to the least busy ones."""
        chosen = self.cores
        if chosen is None:
            if self.num_threads >= len(self.allowed):
                return
            before = core_seconds()
            time.sleep(SAMPLE_SECONDS)
            load = {core: seconds - before.get(core, 0.0) for core, seconds in core_seconds().items()}
            chosen = sorted(self.allowed, key=lambda core: load.get(core, 0.0))[: self.num_threads]
        for task in Path("/proc/self/task").iterdir():
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(int(task.name), chosen)


def running(session: Any, feed: dict[str, Any]) -> Run:
    return lambda: session.run(None, feed)


@contextlib.contextmanager
def alone_on_device() -> Iterator[None]:
    """Wait for other searches that measure here under the same account, or for a runner that has lost its connection."""
    path = Path(tempfile.gettempdir()) / f"hilo-nas-{os.getuid()}.lock"
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                give_sign_of_life()
                time.sleep(POLL_SECONDS)
        yield
    finally:
        os.close(lock)


def give_sign_of_life() -> None:
    sys.stdout.write("\n")
    sys.stdout.flush()


def scattered_memory_and_sign_of_life() -> list[bytearray]:
    """Before each round."""
    give_sign_of_life()
    return scattered(lambda num_floats: bytearray(4 * num_floats))


def cpu_name() -> str:
    """As the system names it; on ARM boards the board's model."""
    for line in read_lines("/proc/cpuinfo"):
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return read_first("/proc/device-tree/model").strip("\0") or platform.processor() or platform.machine()


def core_seconds() -> dict[int, float]:
    """Time that each core has worked so far."""
    found = {}
    for line in read_lines("/proc/stat"):
        name, *ticks = line.split() or [""]
        if name.startswith("cpu") and name != "cpu":
            user, nice, system, _, _, irq, softirq, *_ = (int(tick) for tick in ticks)
            found[int(name[3:])] = (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")
    return found


def busy_seconds() -> float:
    return sum(core_seconds().values())


def read_lines(path: str) -> list[str]:
    with contextlib.suppress(OSError):
        return Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    return []


def read_first(path: str) -> str:
    return next(iter(read_lines(path)), "").strip()


def serve(requests: BinaryIO, answer: Callable[[str], None]) -> None:
    """Answer requests until there are no more."""
    runner = Runner()
    actions: dict[str, Callable[..., dict[str, Any]]] = {
        "hello": runner.hello,
        "load": runner.load,
        "drop": runner.drop,
        "alone": runner.alone,
        "ratios": runner.ratios,
    }
    while line := requests.readline():
        request = json.loads(line)
        arguments: dict[str, Any] = request["arguments"]
        if request["bytes"]:
            arguments["content"] = requests.read(request["bytes"])
        try:
            answer(json.dumps({"id": request["id"], "result": actions[request["do"]](**arguments)}))
        except Exception as error:  # is the searcher's to judge
            answer(json.dumps({"id": request["id"], "error": f"{type(error).__name__}: {error}"}))


def main(arguments: Sequence[str] = ()) -> None:
    def answer(text: str) -> None:
        sys.stdout.write(f"\n{MARK}{text}\n")
        sys.stdout.flush()

    serve(sys.stdin.buffer, answer)


if __name__ == "__main__":
    main()

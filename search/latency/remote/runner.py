"""The program that runs on a device over ssh: times ONNX networks there by the protocol that is used everywhere.

It needs Python 3.9, numpy and onnxruntime, and is sent together with the few modules that it imports (access.py). Requests
come on standard input, each a line of JSON followed by as many bytes as it announces; answers go to standard output, each a
marked line of JSON. It ends when its input ends, and leaves nothing on the device but an empty lock file.
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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from search.latency.memory import ResidentMemory
from search.latency.onnx_session import open_session
from search.latency.processor import cpu_name
from search.latency.protocol import Run, Series, Timer, scatter_heap, time_alone, time_ratios, timer_on
from search.latency.repeatability import Repeatability

MARK = "hilo-nas "  # distinguishes an answer from whatever else a login prints
SAMPLE_SECONDS = 0.1
POLL_SECONDS = 0.5


class Runner:
    """Networks by name, and the actions that can be requested. The first one must be `hello`."""

    def __init__(self) -> None:
        self.copies: dict[str, list[Run]] = {}
        self.num_threads = 1
        self.cores: list[int] | None = None
        self.allowed: list[int] = []

    def hello(self, num_threads: int, cores: list[int] | None) -> dict[str, Any]:
        """Set the threads and cores of networks, and describe the device.

        Args:
            num_threads: Threads of one network.
            cores: The only cores to use; None for the least busy ones.

        Raises:
            ValueError: If cores are too few, or not allowed.
        """
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
        """Load a network and run it once.

        Args:
            name: Name of the network in later requests.
            shape: Shape of its input.
            num_copies: Sessions to open.
            input_bytes: Size of the input.
            content: The input as float32 numbers, then the ONNX file.

        Returns:
            The network's outputs for the input, and the peak memory of loading and running it once, if it is known.
        """
        import numpy

        x = numpy.frombuffer(content[:input_bytes], numpy.float32).reshape(shape)
        memory = ResidentMemory()
        first = open_session(content[input_bytes:], self.num_threads)
        entry = first.get_inputs()[0].name
        output = first.run(None, {entry: x})[0]
        peak_bytes = memory.growth()
        sessions = [first, *(open_session(content[input_bytes:], self.num_threads) for _ in range(num_copies - 1))]
        self.copies[name] = [run_of(session, {entry: x.copy()}) for session in sessions]
        return {"outputs": [float(value) for value in output.ravel()], "peak_bytes": peak_bytes}

    def drop(self, name: str) -> dict[str, Any]:
        """Unload a network, if it is loaded."""
        self.copies.pop(name, None)
        return {}

    def alone(self, name: str, seconds: float) -> dict[str, Any]:
        """Time a network by itself, in seconds, by round."""
        with device_lock():
            self._settle()
            return {"rounds": time_alone(self.copies[name], [], seconds, self._timer())}

    def ratios(
        self, names: list[str], anchor: str, tolerance: float, max_seconds: float, repeatability: dict[str, Any]
    ) -> dict[str, Any]:
        """Time networks in turn beside the anchor, in milliseconds."""
        networks = [self.copies[name] for name in names]
        with device_lock():
            self._settle()
            busy_before, process_before, start = busy_seconds(), time.process_time(), time.perf_counter()
            repeats = Repeatability.from_dict(repeatability)
            all_series = time_ratios(networks, self.copies[anchor], tolerance, max_seconds, self._timer(), repeats)
            passed = time.perf_counter() - start
            others = busy_seconds() - busy_before - (time.process_time() - process_before)
        return {"series": [as_data(series) for series in all_series], "busy_cores": max(0.0, others / passed)}

    def _timer(self) -> Timer:
        return timer_on(self.num_threads, scatter_and_give_sign_of_life)

    def _settle(self) -> None:
        """Pin this process to the cores that were given, or to the least busy ones."""
        cores = self.cores
        if cores is None:
            if self.num_threads >= len(self.allowed):
                return
            before = core_seconds()
            time.sleep(SAMPLE_SECONDS)
            load = {core: seconds - before.get(core, 0.0) for core, seconds in core_seconds().items()}
            cores = sorted(self.allowed, key=lambda core: load.get(core, 0.0))[: self.num_threads]
        for task in Path("/proc/self/task").iterdir():
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(int(task.name), cores)


def run_of(session: Any, feed: dict[str, Any]) -> Run:
    return lambda: session.run(None, feed)


def as_data(series: Series) -> dict[str, Any]:
    return {
        "rounds": [{"candidate_ms": round_.candidate_ms, "anchor_ms": round_.anchor_ms} for round_ in series.rounds],
        "warmup_runs": series.warmup_runs,
        "seconds": series.seconds,
    }


@contextlib.contextmanager
def device_lock() -> Iterator[None]:
    """Wait for other searches that measure here under the same account, and for a runner that has lost its connection."""
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
    """Print an empty line, so that the other end knows that this one still works."""
    sys.stdout.write("\n")
    sys.stdout.flush()


def scatter_and_give_sign_of_life() -> list[bytearray]:
    """Move later allocations to new addresses, and show that this end still works; called before each round."""
    give_sign_of_life()
    return scatter_heap(lambda num_floats: bytearray(4 * num_floats))


def core_seconds() -> dict[int, float]:
    """Return the time that each core has worked so far."""
    seconds = {}
    for line in read_lines("/proc/stat"):
        name, *ticks = line.split() or [""]
        if name.startswith("cpu") and name != "cpu":
            user, nice, system, _, _, irq, softirq, *_ = (int(tick) for tick in ticks)
            seconds[int(name[3:])] = (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")
    return seconds


def busy_seconds() -> float:
    """Return the time that all cores together have worked so far."""
    return sum(core_seconds().values())


def read_lines(path: str) -> list[str]:
    """Return the lines of a file, or none if it cannot be read."""
    with contextlib.suppress(OSError):
        return Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    return []


def read_first(path: str) -> str:
    """Return the first line of a file, or an empty text."""
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
        except Exception as error:  # goes to the other end, which decides what to do
            answer(json.dumps({"id": request["id"], "error": f"{type(error).__name__}: {error}"}))


def print_answer(text: str) -> None:
    """Print an answer on a line of its own."""
    sys.stdout.write(f"\n{MARK}{text}\n")
    sys.stdout.flush()


def main() -> None:
    serve(sys.stdin.buffer, print_answer)


if __name__ == "__main__":
    main()

"""A device over ssh as a host: networks go there as ONNX files and are timed there by the protocol (runner.py)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from search.latency.host import Timing
from search.latency.protocol import Run
from search.latency.remote.access import SshAccess
from search.latency.remote.answers import (
    LARGEST_OUTPUT,
    ProtocolError,
    check_number,
    check_numbers,
    series_in,
    times_alone,
)
from search.latency.remote.connection import Connection
from search.latency.remote.link import Link
from search.latency.repeatability import Repeatability
from search.latency.runtime import check_parity

Result = TypeVar("Result")
MAX_BUSY_CORES = 1e6
MOST_BYTES = 1e15  # of memory


@dataclass(frozen=True, eq=False)
class OnnxNetwork:
    """A network to send.

    Attributes:
        content: Its ONNX file.
        x: An input, (B, C, H, W), float32.
        model: The same network in PyTorch, whose outputs the device's are compared with.
        dtype: That of the file.
    """

    content: bytes
    x: Tensor
    model: nn.Module
    dtype: str = "float32"


@dataclass(frozen=True, eq=False)
class RemoteNetwork:
    """A network that is sent when it is timed. num_copies: sessions that the device opens of it."""

    network: OnnxNetwork
    num_copies: int


class SshHost:
    """A device that is reached over ssh.

    Args:
        access: How it is reached.
        num_threads: Threads of one network.
        cores: The only cores of the device to use; None for the least busy ones.

    Raises:
        ValueError: If cores is not a list of numbers. Whether they exist, only the device knows.
    """

    def __init__(self, access: SshAccess, num_threads: int, cores: Sequence[int] | None) -> None:
        self.connection = Connection(access, num_threads, list_cores(cores))
        self._on_device: NetworksOnDevice | None = None

    @property
    def num_cores(self) -> int:
        return self.connection.num_cores

    def facts(self) -> dict[str, str | int]:
        return self.connection.facts()

    def set_up(self) -> None:
        """Do nothing: the device sets its own threads and cores when it measures."""

    def load(self, network: OnnxNetwork, num_copies: int) -> RemoteNetwork:
        """Return the network, to be sent when it is timed: a new connection needs it again."""
        return RemoteNetwork(network, num_copies)

    def time_alone(self, anchor: RemoteNetwork, make_other: Callable[[], Run], seconds: float) -> list[list[float]]:
        def time(device: NetworksOnDevice) -> list[list[float]]:
            return times_alone(device.link.ask("alone", {"name": device.name_of(anchor), "seconds": seconds}))

        return self._run(time, anchor)

    def time_ratios(
        self,
        networks: Sequence[RemoteNetwork],
        anchor: RemoteNetwork,
        tolerance: float,
        max_seconds: float,
        repeatability: Repeatability,
    ) -> list[Timing]:
        def time(device: NetworksOnDevice) -> list[Timing]:
            names = [device.name_of(network) for network in networks]
            arguments = {
                "names": names,
                "anchor": device.name_of(anchor),
                "tolerance": tolerance,
                "max_seconds": max_seconds,
                "repeatability": repeatability.to_dict(),
            }
            answer = device.link.ask("ratios", arguments)
            busy_cores = check_number(answer.get("busy_cores"), 0.0, MAX_BUSY_CORES)
            all_series = series_in(answer, len(names), tolerance, repeatability)
            return [
                Timing(series, busy_cores, device.parities[name], device.peak_bytes[name], len(network.network.content))
                for name, network, series in zip(names, networks, all_series, strict=True)
            ]

        return self._run(time, anchor)

    def _run(self, action: Callable[[NetworksOnDevice], Result], anchor: RemoteNetwork) -> Result:
        """Do something with networks on the device, then drop all but the anchor there."""

        def run_on(link: Link) -> Result:
            if self._on_device is None or self._on_device.link is not link:
                self._on_device = NetworksOnDevice(link)
            try:
                return action(self._on_device)
            finally:
                self._on_device.drop_all_but(anchor)

        return self.connection.run(run_on)


class NetworksOnDevice:
    """The networks that the device has received over a link.

    Attributes:
        link: The connection.
        parities: Largest relative difference of each network's outputs from PyTorch's, by name.
        peak_bytes: Peak memory of loading and running each network, by name; None where the device does not report it.
    """

    def __init__(self, link: Link) -> None:
        self.link = link
        self.parities: dict[str, float] = {}
        self.peak_bytes: dict[str, int | None] = {}
        self._networks: dict[str, RemoteNetwork] = {}
        self._numbers = itertools.count()

    def name_of(self, remote: RemoteNetwork) -> str:
        """Return a network's name on the device; send it first if needed, and compare its outputs.

        Raises:
            ConversionError: If the device computes something else than PyTorch.
        """
        for name, sent in self._networks.items():
            if sent is remote:
                return name
        name, network = f"network-{next(self._numbers)}", remote.network
        self._networks[name] = remote  # also if it does not load, so that it is dropped
        x = network.x.numpy().tobytes()
        arguments = {
            "name": name,
            "shape": list(network.x.shape),
            "num_copies": remote.num_copies,
            "input_bytes": len(x),
        }
        answer = self.link.ask("load", arguments, x + network.content)
        peak_bytes = answer.get("peak_bytes")
        self.peak_bytes[name] = None if peak_bytes is None else int(check_number(peak_bytes, 0, MOST_BYTES))
        outputs = torch.tensor(check_numbers(answer.get("outputs"), LARGEST_OUTPUT, lowest=-LARGEST_OUTPUT))
        with torch.inference_mode():
            shape = (len(network.x), *network.model(network.x[:1]).shape[1:])
        if outputs.numel() != math.prod(shape):
            raise ProtocolError(f"the device returned {outputs.numel()} outputs instead of {math.prod(shape)}")
        self.parities[name] = check_parity("ssh", network.model, network.x, outputs.reshape(shape), network.dtype)
        return name

    def drop_all_but(self, anchor: RemoteNetwork) -> None:
        """Drop all networks but the anchor, and the anchor too if it did not load or computes something else."""
        dropped = [name for name, sent in self._networks.items() if sent is not anchor or name not in self.parities]
        for name in dropped:
            del self._networks[name]
            self.parities.pop(name, None)
            self.peak_bytes.pop(name, None)
            if not self.link.is_broken:
                self.link.ask("drop", {"name": name})


def list_cores(cores: object) -> list[int] | None:
    """Return cores as a list.

    Raises:
        ValueError: If these are not numbers of cores.
    """
    if cores is None:
        return None
    listed = list(cores) if isinstance(cores, Sequence) and not isinstance(cores, str) else []
    if not listed or not all(isinstance(core, int) and not isinstance(core, bool) and core >= 0 for core in listed):
        raise ValueError(f"latency.cores={cores} must list cores of the device, such as [4,5]")
    return listed

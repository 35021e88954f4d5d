"""The role of a host: a machine that runs networks and times them beside the anchor by the protocol.

`local.LocalHost` is this machine, in this process; `remote.host.SshHost` a device that is reached over ssh.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from search.latency.protocol import Run, Series
from search.latency.repeatability import Repeatability

NetworkT = TypeVar("NetworkT", contravariant=True)
LoadedT = TypeVar("LoadedT")


@dataclass(frozen=True)
class Timing:
    """Times of one network beside the anchor's, and what its host knows about them.

    Attributes:
        series: The rounds.
        busy_cores: Processor time that other processes used meanwhile, in cores.
        parity: As in `Converted`.
        peak_bytes: Peak memory of loading and running the network; None if it is unknown.
        file_bytes: Size of the file that the network was loaded from; None if it is not loaded from one.
    """

    series: Series
    busy_cores: float
    parity: float | None
    peak_bytes: int | None
    file_bytes: int | None = None


class Host(Protocol[NetworkT, LoadedT]):
    """A machine that runs networks. NetworkT: a network as a runtime converts it. LoadedT: the same, loaded by the host."""

    @property
    def num_cores(self) -> int:
        """Number of the machine's cores."""
        ...

    def facts(self) -> dict[str, str | int]:
        """Return the device's name and what else distinguishes it; part of the fingerprint."""
        ...

    def set_up(self) -> None:
        """Prepare this process for building and converting networks."""
        ...

    def load(self, network: NetworkT, num_copies: int) -> LoadedT:
        """Load copies of a network, which differ in where their weights lie in memory."""
        ...

    def time_alone(self, anchor: LoadedT, make_other: Callable[[], Run], seconds: float) -> list[list[float]]:
        """Time the anchor by itself.

        Args:
            anchor: The network.
            make_other: Builds a network for this process, which a host of this process runs between single copies.
            seconds: Minimum duration.

        Returns:
            Times in seconds, by round.
        """
        ...

    def time_ratios(
        self,
        networks: Sequence[LoadedT],
        anchor: LoadedT,
        tolerance: float,
        max_seconds: float,
        repeatability: Repeatability,
    ) -> list[Timing]:
        """Time networks in turn beside the anchor.

        Args:
            networks: The networks.
            anchor: The network that they are compared with.
            tolerance: Relative half-width of the 95 % confidence interval at which to stop.
            max_seconds: Time limit for each network.
            repeatability: Of this machine.

        Returns:
            The times of each network, in the order of networks.
        """
        ...

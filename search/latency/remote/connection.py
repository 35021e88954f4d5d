"""A lasting connection to a device: made when it is first needed, and again when it drops.

The retry loop is written out because a library such as tenacity counts from the first attempt, and here an attempt may
measure for minutes before the connection drops; what counts is how long the device has been away.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from search import UserError
from search.latency.remote.access import SshAccess, bundle
from search.latency.remote.answers import DeviceError, ProtocolError, check_number, printable
from search.latency.remote.link import SILENCE_SECONDS, Link, LinkLost

log = logging.getLogger(__name__)
Result = TypeVar("Result")

FACTS = ("device", "node", "machine", "governor", "max_khz", "device_python", "device_numpy", "device_onnxruntime")
MAX_CORES = 1e6
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 15.0  # seconds between two attempts to connect


class Connection:
    """A connection to a device.

    Args:
        access: How the device is reached.
        num_threads: Threads of one network there.
        cores: The only cores to use there; None for the least busy ones.
    """

    def __init__(self, access: SshAccess, num_threads: int, cores: list[int] | None) -> None:
        self.access = access
        self._num_threads = num_threads
        self._cores = cores
        self._link: Link | None = None
        self._facts: dict[str, str | int] | None = None

    @property
    def num_cores(self) -> int:
        """Number of the device's cores; only after it was reached."""
        assert self._facts is not None
        return int(self._facts["cores"])

    def facts(self) -> dict[str, str | int]:
        """Return what the device is. Raises: as `run`."""
        self.run(lambda link: None)
        assert self._facts is not None
        return dict(self._facts)

    def run(self, action: Callable[[Link], Result]) -> Result:
        """Do something with the device, and again on a new connection if this one drops.

        Args:
            action: What to do. It must be idempotent, and expect a runner without networks on each new link.

        Raises:
            UserError: If the device was never reached.
            DeviceError: If it is away for more than `reconnect_seconds`, is another one than before, or the action fails.
        """
        away_since, pause = None, FIRST_PAUSE
        while True:
            connected_at = None
            try:
                if self._link is None:
                    self._link = self._connect()
                connected_at = time.monotonic()
                return action(self._link)
            except ProtocolError:
                self.close()
                raise
            except LinkLost as error:
                self.close()
                host = self.access.host
                if self._facts is None:  # never reached: a mistake in the settings is more likely than a failure
                    raise UserError(
                        f"latency.host={host} cannot be reached: {error}; check that `ssh -o BatchMode=yes {host}` works"
                    ) from error
                now = time.monotonic()
                if connected_at is not None and self._has_lasted(now - connected_at):
                    away_since, pause = None, FIRST_PAUSE
                away_since = away_since or now
                if now - away_since + pause > self.access.reconnect_seconds:
                    raise DeviceError(f"{host} cannot be reached any more: {error}") from error
                log.warning("the connection to %s dropped (%s); connecting again in %g s", host, error, pause)
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def close(self) -> None:
        """Disconnect, if connected. The next use connects again."""
        if self._link is not None:
            self._link.close()
            self._link = None

    def _has_lasted(self, seconds: float) -> bool:
        """True if a connection lasted so long that its loss does not belong to an earlier one."""
        return seconds > self.access.reconnect_seconds + SILENCE_SECONDS

    def _connect(self) -> Link:
        """Start the runner, and check that the device is the same as before."""
        link = Link(self.access.command(), bundle())
        try:
            answer = link.ask("hello", {"num_threads": self._num_threads, "cores": self._cores})
            facts: dict[str, str | int] = {key: printable(answer.get(key)) for key in FACTS}
            facts["cores"] = int(check_number(answer.get("cores"), 1, MAX_CORES))
            if self._facts is not None and facts != self._facts:
                changed = ", ".join(key for key, value in facts.items() if self._facts[key] != value)
                raise DeviceError(f"{self.access.host} is another device than before ({changed} differ)")
        except BaseException:
            link.close()
            raise
        self._facts = facts
        return link

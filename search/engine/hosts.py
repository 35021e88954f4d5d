"""Which work may run beside which on a host."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class HostLock:
    """Exclusive for a measurement, shared by trainings; first come, first served."""

    def __init__(self) -> None:
        self._num_shared = 0
        self._is_exclusive = False
        self._waiting: deque[tuple[asyncio.Future[None], bool]] = deque()

    @asynccontextmanager
    async def acquire(self, exclusive: bool) -> AsyncIterator[None]:
        """Hold the host, once everyone before is done with it."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((turn, exclusive))
        self._grant()
        try:
            await turn
            yield
        finally:
            if turn.done() and not turn.cancelled():  # it was granted, even if whoever waited was cancelled just then
                self._num_shared -= not exclusive
                self._is_exclusive &= not exclusive
            else:
                self._waiting.remove((turn, exclusive))
            self._grant()

    def _grant(self) -> None:
        """Let those in front have the host, as far as they may."""
        while self._waiting and not self._is_exclusive:
            turn, exclusive = self._waiting[0]
            if exclusive and self._num_shared:
                return
            self._waiting.popleft()
            self._num_shared += not exclusive
            self._is_exclusive = exclusive
            turn.set_result(None)

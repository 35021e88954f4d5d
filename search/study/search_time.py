"""The time that a search has taken, over all its runs: it is kept with the study, so that a limit holds for all of them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import optuna

from search import SearchStopped, one_line
from search.study.locks import StudyLock
from search.study.storage import SEARCH_SECONDS, is_fault_of_database

log = logging.getLogger(__name__)

SAVE_SECONDS = 10.0


@dataclass
class SearchTime:
    """Counts the time of a run on top of that of earlier ones.

    Attributes:
        study: has the time of earlier runs, and gets that of this one.
        lock: of the study.
        limit_minutes: of all runs together; None without one.
        start: of this run, by the clock.
        clock: in seconds.
    """

    study: optuna.Study
    lock: StudyLock
    limit_minutes: float | None
    start: float
    clock: Callable[[], float]
    _before: float = field(init=False)

    def __post_init__(self) -> None:
        self._before = seconds_of(self.study)

    @property
    def seconds(self) -> float:
        """The time of all runs until now."""
        return self._before + self.clock() - self.start

    def minutes_left(self) -> float | None:
        """The limit less the time of all runs; None without a limit."""
        return None if self.limit_minutes is None else self.limit_minutes - self.seconds / 60

    async def count(self, search: Awaitable[None]) -> None:
        """Run a search, and store the time at its start, every few seconds and at its end."""
        self._save()
        saving = asyncio.create_task(self._keep_saving())
        try:
            await search
        finally:
            saving.cancel()
            self._save()

    async def _keep_saving(self) -> None:
        while True:
            await asyncio.sleep(SAVE_SECONDS)
            self._save()

    def _save(self) -> None:
        """Store the time. Nothing is stored while the database is away, or once another search has the study."""
        try:
            self.lock.renew()
            self.study.set_user_attr(SEARCH_SECONDS, self.seconds)
        except SearchStopped as error:
            log.debug("the time is not stored: %s", error)
        except Exception as error:
            if not is_fault_of_database(error):
                raise
            log.debug("the time is not stored: %s", one_line(error))


def seconds_of(study: optuna.Study) -> float:
    """The time that all runs of a study's search have taken; 0 for a study of a version that did not count."""
    return float(study.user_attrs.get(SEARCH_SECONDS, 0.0))

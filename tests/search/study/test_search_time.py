"""The time of a search is that of all its runs."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

import optuna
import pytest
import sqlalchemy

from search import SearchStopped
from search.study.locks import NullLock
from search.study.search_time import SearchTime, seconds_of
from search.study.storage import SEARCH_SECONDS, open_study


@pytest.fixture
def study(tmp_path: Path) -> optuna.Study:
    return open_study("test", f"sqlite:///{tmp_path / 'study.db'}", create=True)


class TakenOver(NullLock):
    """The lock of a study that another search has."""

    def renew(self) -> None:
        raise SearchStopped("another search has taken over")


def clock_of(*times: float) -> Callable[[], float]:
    """A clock that shows these times, and the last one from then on."""
    return partial(next, itertools.chain(times, itertools.repeat(times[-1])))


def run(study: optuna.Study, seconds: float) -> None:
    """A run that takes so many seconds."""
    asyncio.run(SearchTime(study, NullLock(), None, 100.0, clock_of(100.0, 100.0 + seconds)).count(asyncio.sleep(0)))


def test_time_of_runs_adds_up(study: optuna.Study) -> None:
    for expected in (90.0, 180.0):
        run(study, 90.0)
        assert seconds_of(study) == expected
    assert SearchTime(study, NullLock(), 10.0, 100.0, clock_of(160.0)).minutes_left() == 6.0
    assert SearchTime(study, NullLock(), 1.0, 100.0, clock_of(100.0)).minutes_left() == -2.0
    assert SearchTime(study, NullLock(), None, 100.0, clock_of(100.0)).minutes_left() is None


def test_time_is_stored_before_the_end(study: optuna.Study, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is killed has been counted until then."""
    monkeypatch.setattr("search.study.search_time.SAVE_SECONDS", 0.01)

    async def search() -> None:
        while seconds_of(study) < 45:
            await asyncio.sleep(0.01)

    taken = SearchTime(study, NullLock(), None, 0.0, clock_of(0.0, 30.0, 45.0, 60.0))
    asyncio.run(asyncio.wait_for(taken.count(search()), 20.0))
    assert seconds_of(study) == 60.0


def test_time_of_a_run_that_fails_counts(study: optuna.Study) -> None:
    async def search() -> None:
        raise SearchStopped("the disk is full")

    with pytest.raises(SearchStopped, match="the disk is full"):
        asyncio.run(SearchTime(study, NullLock(), None, 0.0, clock_of(0.0, 30.0)).count(search()))
    assert seconds_of(study) == 30.0


def test_study_of_another_search_gets_no_time(study: optuna.Study, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="search.study.search_time"):
        asyncio.run(SearchTime(study, TakenOver(), None, 0.0, clock_of(30.0)).count(asyncio.sleep(0)))
    assert SEARCH_SECONDS not in study.user_attrs
    assert "the time is not stored: another search has taken over" in caplog.text


def test_database_that_is_away_does_not_end_the_run(
    study: optuna.Study, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(key: str, value: object) -> None:
        raise sqlalchemy.exc.OperationalError("UPDATE", None, Exception("server closed the connection"))

    monkeypatch.setattr(study, "set_user_attr", fail)
    with caplog.at_level(logging.DEBUG, logger="search.study.search_time"):
        run(study, 90.0)
    assert "the time is not stored" in caplog.text

"""Locks that keep a study to one search, and waiting for a database that does not answer."""

from __future__ import annotations

import hashlib
import logging
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import optuna
import sqlalchemy
from filelock import FileLock, Timeout
from sqlalchemy.exc import SQLAlchemyError
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_before_delay, wait_exponential

from search import SearchStopped, UserError, one_line
from search.study.storage import POSTGRESQL, UNUSABLE, cannot_be_used, driver_error, is_away, public_url

log = logging.getLogger(__name__)
Result = TypeVar("Result")

RETAKE_SECONDS = 5.0  # for a server to notice that the connection which held a study has ended
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 5.0  # seconds between two tries


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Lock a study's folder for one search; the system frees it even if the process is killed.

    Raises:
        UserError: if another process has it, or the folder cannot be written.
    """
    lock = FileLock(folder / ".lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(f"{folder} is in use by another search; wait for it or choose another study.name") from error
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}); make room or change study.name") from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def export_lock(folder: Path) -> Iterator[None]:
    """Let one command at a time write a study's exported files; others wait. A study may be exported while it is searched.

    Raises:
        UserError: if the folder cannot be written.
    """
    lock = FileLock(folder / ".export.lock")
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log.info("waiting for another command that exports %s", folder)
            lock.acquire()
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}); make room or give it other permissions") from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def training_lock(architecture: Path) -> Iterator[Path]:
    """Mark a network as being trained: nobody else trains it meanwhile, and no export removes its file.

    Yields:
        The file of the lock, beside that of the architecture; it stays.

    Raises:
        UserError: if another process trains the network, or the folder cannot be written.
    """
    lock = FileLock(architecture.with_name(f".{architecture.stem}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(f"{architecture} is being trained by another process; wait for it, or train a copy") from error
    except OSError as error:
        raise UserError(
            f"the folder of arch={architecture} cannot be written ({error.strerror}), and the weights go there; copy the "
            "file elsewhere"
        ) from error
    try:
        yield Path(lock.lock_file)
    finally:
        lock.release()


class StudyLock(Protocol):
    """The lock of a study in its database."""

    def renew(self) -> None:
        """Lock the study again if the database was away. Raises: SearchStopped if another search has it now."""
        ...


class NullLock:
    """No lock: for a database that has none, or that nobody else can reach."""

    def renew(self) -> None:
        """Do nothing."""


class SqliteLock:
    """A lock beside a SQLite file, which may be elsewhere than the study's folder."""

    def __init__(self, file: Path) -> None:
        self.lock = FileLock(f"{file}.lock")

    def take(self) -> bool:
        try:
            self.lock.acquire(timeout=0)
        except Timeout:
            return False
        return True

    def renew(self) -> None:
        """Do nothing: a file stays locked."""

    def release(self) -> None:
        self.lock.release()


class PostgresqlLock:
    """An advisory lock of the study's name, which the server frees when its connection ends.

    https://www.postgresql.org/docs/current/explicit-locking.html#ADVISORY-LOCKS
    """

    def __init__(self, url: str, name: str) -> None:
        digest = hashlib.sha256(f"hilo-nas {name}".encode()).digest()
        self.key = int.from_bytes(digest[:8], signed=True)
        self.name = name
        self.label = f"hilo-nas {secrets.token_hex(8)}"  # tells connections of this lock from those of other searches
        self.engine = sqlalchemy.create_engine(
            url,
            poolclass=sqlalchemy.NullPool,
            connect_args={**POSTGRESQL, "application_name": self.label},
            isolation_level="AUTOCOMMIT",
        )
        self.connection: sqlalchemy.Connection | None = None

    def take(self) -> bool:
        self.connection = self.engine.connect()
        is_taken = bool(self._query("SELECT pg_try_advisory_lock(:key)", key=self.key))
        if not is_taken:
            self._end_dead_connection()
            self.release()
        return is_taken

    def renew(self) -> None:
        try:
            if self.connection is not None:
                self._query("SELECT 1")
                return
        except SQLAlchemyError:
            self.release()
        end = time.monotonic() + RETAKE_SECONDS
        while not self.take():
            if time.monotonic() > end:
                raise SearchStopped(
                    f"another search has taken over study {self.name} while the database was away; let that one finish"
                )
            time.sleep(FIRST_PAUSE)
        log.warning("the database was away; study %s is locked again", self.name)

    def release(self) -> None:
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.invalidate()
            connection.close()

    def _query(self, query: str, **values: int | str) -> Any:
        assert self.connection is not None
        return self.connection.execute(sqlalchemy.text(query), values).scalar()

    def _end_dead_connection(self) -> None:
        """End our own earlier connection: the server may take one that was cut for alive for hours.

        It is known by its label: after a restart the server gives the number of its process to somebody else's.
        """
        high, low = (self.key >> 32) & 0xFFFFFFFF, self.key & 0xFFFFFFFF
        self._query(
            "SELECT pg_terminate_backend(pid) FROM pg_locks JOIN pg_stat_activity USING (pid) "
            "WHERE locktype = 'advisory' AND classid = :high AND objid = :low AND objsubid = 1 "
            "AND application_name = :label AND pid <> pg_backend_pid()",
            label=self.label, high=high, low=low,
        )  # fmt: skip


@contextmanager
def study_lock(name: str, url: str) -> Iterator[StudyLock]:
    """Lock a study wherever it is stored, so that two searches on different machines cannot both work on it.

    In databases other than SQLite and PostgreSQL nothing but the lock of the study's folder protects it.

    Raises:
        UserError: if another search has the lock.
    """
    lock: SqliteLock | PostgresqlLock | None = None
    try:
        parts = sqlalchemy.make_url(url)
        if parts.get_backend_name() == "sqlite":
            if not parts.database:
                raise ValueError("storage.url={url} names no file: a study in memory would be lost; take sqlite:///FILE")
            lock = SqliteLock(Path(str(parts.database)))
        elif parts.get_backend_name() == "postgresql":
            lock = PostgresqlLock(url, name)
        is_taken = lock is None or lock.take()
    except (*UNUSABLE, OSError) as error:
        raise UserError(cannot_be_used(url, error)) from error
    if not is_taken:
        raise UserError(
            f"study {name} in {public_url(url)} is in use by another search; wait for it or choose another study.name"
        )
    try:
        yield lock or NullLock()
    finally:
        if lock is not None:
            lock.release()


class RetryPolicy:
    """Checks that the study is still locked, and retries an action while its database does not answer.

    The action must be idempotent: an answer that was lost may have been a success.

    Args:
        seconds: how long to retry.
        lock: of the study.
    """

    def __init__(self, seconds: float, lock: StudyLock) -> None:
        self.seconds = seconds
        self.lock = lock

    def __call__(self, action: Callable[[], Result]) -> Result:
        retrying = Retrying(
            retry=retry_if_exception(_is_retried),
            wait=wait_exponential(multiplier=FIRST_PAUSE, max=LONGEST_PAUSE),
            stop=stop_before_delay(self.seconds),
            before_sleep=self._warn,
            reraise=True,
        )

        def locked_action() -> Result:
            self.lock.renew()
            return action()

        return retrying(locked_action)

    def _warn(self, state: RetryCallState) -> None:
        """Log the first failure."""
        error = None if state.outcome is None else state.outcome.exception()
        if state.attempt_number == 1 and error is not None:
            reason = one_line(driver_error(error))
            log.warning("the database does not answer (%s); trying for up to %g s", reason, self.seconds)


def _is_retried(error: BaseException) -> bool:
    return isinstance(error, SQLAlchemyError | optuna.exceptions.StorageInternalError) and is_away(error)

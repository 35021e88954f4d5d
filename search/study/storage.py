"""Where studies are kept: opened and checked, held by one coordinator at a time, and waited for if a database is away.

Any database that Optuna takes will do. In SQLite a study is one file beside its results; PostgreSQL is for studies that are
watched from elsewhere, or whose machine may go away.
"""

from __future__ import annotations

import hashlib
import logging
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import optuna
import sqlalchemy
from filelock import FileLock, Timeout
from optuna.storages import BaseStorage, RDBStorage
from optuna.study import StudyDirection
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, PendingRollbackError, SQLAlchemyError

from search import SearchStopped, UserError, differences, one_line
from search.study.sole_writer import SoleWriter

log = logging.getLogger(__name__)
Result = TypeVar("Result")

# A connection that is cut without a word is noticed within half a minute rather than after the system's quarter of an hour.
POSTGRESQL = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,  # ms
}
RETAKE_SECONDS = 5.0  # for a server to notice that the connection which held a study has ended
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 5.0  # seconds between two tries
UNUSABLE = (SQLAlchemyError, optuna.exceptions.StorageInternalError, ImportError, ValueError, RuntimeError)


@contextmanager
def quiet_experimental() -> Iterator[None]:
    """Optuna calls multivariate TPE and metric names experimental; they have been stable for years."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield


def study_folder(name: object) -> Path:
    """Of a study of this machine. Raises: UserError if its name cannot be a folder's."""
    if name is None or not re.fullmatch(r"[\w-][\w.-]*", str(name)):
        raise UserError(f"study.name={name} may hold letters, digits, '_', '.' and '-' alone, and not start with '.'")
    return Path("outputs") / str(name)


def existing_folder(name: object) -> Path:
    """The folder of a study of this machine. Raises: UserError if there is none."""
    folder = study_folder(name)
    if not folder.is_dir():
        raise UserError(f"there is no {folder} here; run a search with study.name={name} first, or change folder")
    return folder


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a study's folder for one coordinator; freed by the system even if the process is killed.

    Raises: UserError if another process holds it, or the folder cannot be written.
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


def directions(num_latencies: int) -> list[StudyDirection]:
    """Of a study's objectives: accuracy, then latency on each device that counts."""
    return [StudyDirection.MAXIMIZE, *[StudyDirection.MINIMIZE] * num_latencies]


def open_study(name: str, storage: str, create: bool, num_latencies: int = 1) -> optuna.Study:
    """Open a study by its Optuna name and storage URL, or create it.

    create: to write it, as its only writer. num_latencies: how many a search has for objectives; an existing study that is
    only read may have others.
    Raises: UserError if the storage cannot be read, the study is missing, or its objectives are not ours.
    """
    wanted = directions(num_latencies)
    try:
        backend = _connected(storage, write=create)
        if create:
            study = optuna.create_study(study_name=name, storage=backend, directions=wanted, load_if_exists=True)
        else:
            study = optuna.load_study(study_name=name, storage=backend)
            wanted = directions(max(1, len(study.directions) - 1))
    except KeyError as error:
        raise UserError(
            f"there is no study {name} in {public_url(storage)}; run a search with study.name={name} first"
        ) from error
    except UNUSABLE as error:
        raise UserError(_unusable(storage, error)) from error
    if study.directions != wanted:
        found, ours = (", ".join(one.name.lower() for one in listed) for listed in (study.directions, wanted))
        raise UserError(f"study {name} optimises {found}; this search needs {ours}; use another study.name")
    return study


def _unusable(storage: str, error: BaseException) -> str:
    reason = one_line(driver_error(error))
    if parsed(storage) is None:
        reason = "that is no database URL"  # what the parser says may hold a password
    remedy = "put back a copy, move it away to start anew, or change storage.url"
    if not storage.startswith("sqlite"):
        remedy = "see that the database runs and takes this user, or change storage.url"
    return f"the study storage {public_url(storage)} cannot be used ({reason}); {remedy}"


def _connected(url: str, write: bool) -> BaseStorage:
    """Connections are tried before they are used: one that a restart of the database cut is replaced."""
    settings: dict[str, Any] = {"pool_pre_ping": True}
    if url.startswith("postgresql"):
        settings["connect_args"] = dict(POSTGRESQL)
    storage = RDBStorage(url, settings)
    if url.startswith("sqlite") and write:
        _write_ahead(storage.engine)
    return SoleWriter(storage) if write else optuna.storages.get_storage(storage)


def _write_ahead(engine: sqlalchemy.Engine) -> None:
    """Have SQLite append what is written to a log: a trial's two dozen writes then take half the time, just as safely.

    https://www.sqlite.org/wal.html: with synchronous=NORMAL a power cut may lose the last of them, but breaks nothing.
    """

    def prepare(connection: Any, record: object) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")

    sqlalchemy.event.listen(engine, "connect", prepare)
    engine.dispose()  # those from now on


def parsed(url: str) -> sqlalchemy.URL | None:
    """None if it is no database URL."""
    try:
        return sqlalchemy.make_url(url)
    except (SQLAlchemyError, ValueError):
        return None


def public_url(url: str) -> str:
    """A storage URL without user, password and options."""
    parts = parsed(url)
    if parts is None:
        return f"{url.partition('://')[0]}://***" if set(url) & set("@?") else url
    if parts.username is None and parts.password is None and not parts.query:
        return url
    shown = sqlalchemy.URL.create(parts.drivername, host=parts.host, port=parts.port, database=parts.database)
    text = shown.render_as_string()
    return text if parts.username is None else text.replace("://", "://***@", 1)


def has_password(url: str) -> bool:
    parts = parsed(url)
    return parts is not None and (parts.password is not None or "password" in parts.query)


class Hold(Protocol):
    """A study in a database, held for this coordinator."""

    def renew(self) -> None:
        """If the database was away, take the study again. Raises: SearchStopped if another search has it now."""
        ...


class FileHold:
    """Of a SQLite file, which may be elsewhere than the study's folder. The system frees it when the process ends."""

    def __init__(self, file: Path) -> None:
        self.lock = FileLock(f"{file}.lock")

    def take(self) -> bool:
        try:
            self.lock.acquire(timeout=0)
        except Timeout:
            return False
        return True

    def renew(self) -> None:
        """A file stays held."""

    def release(self) -> None:
        self.lock.release()


class AdvisoryHold:
    """A PostgreSQL advisory lock of the study's name, which the server frees when its connection ends.

    https://www.postgresql.org/docs/current/explicit-locking.html#ADVISORY-LOCKS
    """

    def __init__(self, url: str, name: str) -> None:
        digest = hashlib.sha256(f"hilo-nas {name}".encode()).digest()
        self.key = int.from_bytes(digest[:8], signed=True)
        self.name = name
        self.engine = sqlalchemy.create_engine(
            url, poolclass=sqlalchemy.NullPool, connect_args=dict(POSTGRESQL), isolation_level="AUTOCOMMIT"
        )
        self.connection: sqlalchemy.Connection | None = None
        self.backend = 0  # process of the server that holds it

    def take(self) -> bool:
        self.connection = self.engine.connect()
        taken = bool(self._ask("SELECT pg_try_advisory_lock(:key)", key=self.key))
        if taken:
            self.backend = int(self._ask("SELECT pg_backend_pid()"))
        else:
            self._end_own_ghost()
            self.release()
        return taken

    def renew(self) -> None:
        try:
            if self.connection is not None:
                self._ask("SELECT 1")
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
        log.warning("the database was away; study %s is held again", self.name)

    def release(self) -> None:
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.invalidate()
            connection.close()

    def _ask(self, query: str, **values: int) -> Any:
        assert self.connection is not None
        return self.connection.execute(sqlalchemy.text(query), values).scalar()

    def _end_own_ghost(self) -> None:
        """The server may take a connection that was cut for alive for hours: the one that held this study for us."""
        high, low = (self.key >> 32) & 0xFFFFFFFF, self.key & 0xFFFFFFFF
        self._ask(
            "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND pid = :backend "
            "AND classid = :high AND objid = :low AND objsubid = 1",
            backend=self.backend, high=high, low=low,
        )  # fmt: skip


@contextmanager
def held(name: str, url: str) -> Iterator[Hold]:
    """Hold a study for one coordinator wherever it is kept, so that two on different machines cannot both work on it.

    In databases other than SQLite and PostgreSQL nothing holds it but the lock on the study's folder.
    Raises: UserError if another search holds it.
    """
    try:
        parts = sqlalchemy.make_url(url)
        hold: FileHold | AdvisoryHold | None = None
        if parts.get_backend_name() == "sqlite":
            if not parts.database:
                raise ValueError("a study in memory would be lost")
            hold = FileHold(Path(str(parts.database)))
        elif parts.get_backend_name() == "postgresql":
            hold = AdvisoryHold(url, name)
        taken = hold is None or hold.take()
    except (*UNUSABLE, OSError) as error:
        raise UserError(_unusable(url, error)) from error
    if not taken:
        raise UserError(
            f"study {name} in {public_url(url)} is in use by another search; wait for it or choose another study.name"
        )
    try:
        yield hold or Unheld()
    finally:
        if hold is not None:
            hold.release()


class Unheld:
    """Of a database that has no such thing, or one that nobody else can reach."""

    def renew(self) -> None:
        """There is nothing to take again."""


class Patience:
    """Sees that the study is still held, and repeats what its database did not answer to, for so many seconds in a row.

    What is repeated must bear it.
    """

    def __init__(self, seconds: float, hold: Hold) -> None:
        self.seconds = seconds
        self.hold = hold

    def __call__(self, action: Callable[[], Result]) -> Result:
        since, pause = None, FIRST_PAUSE
        while True:
            try:
                self.hold.renew()
                return action()
            except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
                now = time.monotonic()
                if not is_away(error) or now - (since or now) + pause > self.seconds:
                    raise
                if since is None:
                    since = now
                    reason = one_line(driver_error(error))
                    log.warning("the database does not answer (%s); trying for up to %g s", reason, self.seconds)
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)


def is_away(error: BaseException | None) -> bool:
    """Whether an error says that a database cannot be reached, rather than that it refuses.

    PendingRollbackError: Optuna asks once more, on the connection that was lost.
    """
    while error is not None:
        if isinstance(error, OperationalError | InterfaceError | PendingRollbackError) or (
            isinstance(error, DBAPIError) and error.connection_invalidated
        ):
            return True
        error = error.__cause__
    return False


def has_trials(study: optuna.Study) -> bool:
    """Whether a study has begun; until then nothing that is kept with it binds."""
    return bool(study.get_trials(deepcopy=False))


def remember(study: optuna.Study, key: str, value: Any, remedy: str) -> None:
    """Keep a study's setting until it has trials; from then on refuse another one.

    Raises: UserError naming the first values that differ and the remedy.
    """
    if not has_trials(study):
        study.set_user_attr(key, value)
        return
    if changed := differences(_flatten(study.user_attrs[key]), _flatten(value)):
        raise UserError(f"study {study.study_name} was made otherwise: {changed}; {remedy}")


def driver_error(error: BaseException) -> BaseException:
    """The error of a database's driver, below those that SQLAlchemy (which keeps it as `orig`) and Optuna raise."""
    below: BaseException | None = error
    while below is not None:
        original = getattr(below, "orig", None)
        if isinstance(original, BaseException):
            return original
        below = below.__cause__ or below.__context__
    return error


def _flatten(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping):
        return {k: v for key, item in value.items() for k, v in _flatten(item, f"{path}.{key}" if path else key).items()}
    return {path: value}

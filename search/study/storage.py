"""Where studies are stored: opened and checked, written by one process, with the settings that they depend on.

Any database that Optuna takes will do. In SQLite a study is one file beside its results; PostgreSQL is for studies that are
watched from elsewhere, or whose machine may go away.
"""

from __future__ import annotations

import copy
import re
import sqlite3
import warnings
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage, RDBStorage
from optuna.storages._cached_storage import _CachedStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import (
    DatabaseError,
    DBAPIError,
    InterfaceError,
    InternalError,
    OperationalError,
    PendingRollbackError,
    SQLAlchemyError,
)

from search import UserError, causes, differences, one_line

# A connection that is cut silently is noticed within half a minute rather than after the system's quarter of an hour.
POSTGRESQL = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,  # ms
}
ASKED_WRONGLY = {sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISMATCH, sqlite3.SQLITE_MISUSE}
PRIMARY_CODE = 0xFF  # of SQLite's extended codes, https://www.sqlite.org/rescode.html
UNUSABLE = (SQLAlchemyError, optuna.exceptions.StorageInternalError, ImportError, ValueError, RuntimeError)
FORMAT_KEY, FORMAT = "format", 3  # attribute of a study: raise the number with every change that older studies do not fit
VERSION_KEY = "hilo_nas"  # attribute of a study: the version that created it
FIRST_VERSION = "0.1"  # the one that stored neither
SUPERNET = "supernet"  # attribute of a study: the file of the weights that its networks are scored with
WEIGHTS = "weights"  # attribute of a study: their digest
NORMALISATION = "normalisation"  # attribute of a study: of the images that its networks are trained on
SEARCH_SECONDS = "search_seconds"  # attribute of a study: time of all runs of its search
SHARED_SECONDS = "shared_weights_seconds"  # attribute of a study: what training them took, where it trained them itself


@contextmanager
def quiet_experimental() -> Iterator[None]:
    """Silence Optuna, which calls multivariate TPE and metric names experimental though they have been stable for years."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield


def study_folder(name: object) -> Path:
    """The folder of a study on this machine. Raises: UserError if its name cannot be a folder's."""
    if name is not None and not isinstance(name, str):
        raise UserError(f"study.name={name} is not text; write it in quotes in the YAML file that sets it")
    if name is None or not re.fullmatch(r"[\w-][\w.-]*", str(name)):
        raise UserError(f"study.name={name} may hold only letters, digits, '_', '.' and '-', and not start with '.'")
    return Path("outputs") / str(name)


def existing_folder(name: object) -> Path:
    """The folder of a study on this machine. Raises: UserError if there is none."""
    folder = study_folder(name)
    if not folder.is_dir():
        raise UserError(f"there is no {folder} here; run a search with study.name={name} first, or go where it ran")
    return folder


def directions(num_objectives: int) -> list[StudyDirection]:
    """Directions of a study's objectives: accuracy, then latency on each target that is an objective."""
    return [StudyDirection.MAXIMIZE, *[StudyDirection.MINIMIZE] * num_objectives]


def open_study(name: str, storage: str, create: bool, num_latencies: int = 1) -> optuna.Study:
    """Open a study, or create it.

    Args:
        name: its Optuna name.
        storage: a database URL.
        create: open it to write, as its only writer, and create it if it is missing.
        num_latencies: how many latencies are objectives of a search; a study that is only read may have any number.

    Raises:
        UserError: if the storage cannot be read, the study is missing, its objectives are others, or another version of
            this project wrote it.
    """
    wanted = directions(num_latencies)
    try:
        backend = _connect(storage, write=create)
        if create:
            study = optuna.create_study(study_name=name, storage=backend, directions=wanted, load_if_exists=True)
        else:
            study = optuna.load_study(study_name=name, storage=backend)
            wanted = directions(max(1, len(study.directions) - 1))
        attributes = study.user_attrs
    except KeyError as error:
        raise UserError(
            f"there is no study {name} in {public_url(storage)}; run a search with study.name={name} first"
        ) from error
    except UNUSABLE as error:
        raise UserError(cannot_be_used(storage, error)) from error
    if study.directions != wanted:
        stored, needed = (", ".join(d.name.lower() for d in listed) for listed in (study.directions, wanted))
        raise UserError(f"study {name} optimises {stored}; this search needs {needed}; use another study.name")
    _check_format(study, attributes, create)
    return study


@contextmanager
def reading(name: str, storage: str) -> Iterator[optuna.Study]:
    """Open a study to read it, as often as wanted, and close its connections at the end. Raises: as `open_study`."""
    study = open_study(name, storage, create=False)
    try:
        yield study
    finally:
        study._storage.remove_session()
        study._storage._backend.engine.dispose()  # type: ignore[attr-defined]  # below Optuna's cache


def _check_format(study: optuna.Study, attributes: Mapping[str, Any], create: bool) -> None:
    """Mark a new study; refuse one that another version wrote in another format."""
    if attributes.get(FORMAT_KEY) == FORMAT:
        return
    if not attributes and not has_trials(study):
        if create:
            study.set_user_attr(VERSION_KEY, package_version())
            study.set_user_attr(FORMAT_KEY, FORMAT)
        return
    raise UserError(
        f"study {study.study_name} was written by hilo-nas {attributes.get(VERSION_KEY) or FIRST_VERSION}, and version "
        f"{package_version()} stores trials in another way: choose another study.name; its exported networks "
        f"(outputs/{study.study_name}/pareto/*.yaml) still load"
    )


def package_version() -> str:
    """The version of this project."""
    try:
        return version("hilo-nas")
    except PackageNotFoundError:  # a checkout that is not installed
        return "unknown"


def cannot_be_used(storage: str, error: BaseException) -> str:
    """Why a storage cannot be used and what to do, without passwords."""
    reason = one_line(driver_error(error))
    if parsed(storage) is None:
        reason = "this is not a database URL"  # the parser's message may hold a password
    remedy = "put back a copy, move it away to start anew, or change storage.url"
    if not storage.startswith("sqlite"):
        remedy = "check that the database runs and accepts this user, or change storage.url"
    return f"the study storage {public_url(storage)} cannot be used ({reason}); {remedy}"


def _connect(url: str, write: bool) -> BaseStorage:
    """Connections are tested before use: one that a restart of the database cut is replaced."""
    settings: dict[str, Any] = {"pool_pre_ping": True}
    if url.startswith("postgresql"):
        settings["connect_args"] = dict(POSTGRESQL)
    storage = RDBStorage(url, settings)
    if url.startswith("sqlite") and write:
        _write_ahead(storage.engine)
    return SoleWriter(storage) if write else optuna.storages.get_storage(storage)


def _write_ahead(engine: sqlalchemy.Engine) -> None:
    """Make SQLite append writes to a log: a trial's two dozen writes then take half the time, just as safely.

    https://www.sqlite.org/wal.html: with synchronous=NORMAL a power cut may lose the last of them, but breaks nothing.
    """

    def prepare(connection: Any, record: object) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")

    sqlalchemy.event.listen(engine, "connect", prepare)
    engine.dispose()  # for connections from now on


def parsed(url: str) -> sqlalchemy.URL | None:
    """A database URL in its parts, or None if it is not one."""
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
    """Whether a storage URL contains a password."""
    parts = parsed(url)
    return parts is not None and (parts.password is not None or "password" in parts.query)


def is_away(error: BaseException | None) -> bool:
    """Whether an error means that a database cannot be reached, rather than that it refuses.

    PendingRollbackError: Optuna retries once by itself, on the connection that was lost.
    """
    return error is not None and any(_is_away(cause) for cause in causes(error, with_contexts=False))


def _is_away(error: BaseException) -> bool:
    if isinstance(error, OperationalError | InterfaceError | PendingRollbackError):
        return True
    return isinstance(error, DBAPIError) and error.connection_invalidated


def is_fault_of_database(error: BaseException) -> bool:
    """Whether a database cannot do what it is asked for (away, full, broken, not writable), rather than is asked wrongly."""
    chain = list(causes(error, with_contexts=False))
    for original in (getattr(cause, "orig", cause) for cause in chain):
        if isinstance(original, sqlite3.Error):  # SQLAlchemy calls wrong statements operational errors, too
            return getattr(original, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & PRIMARY_CODE not in ASKED_WRONGLY
    return is_away(error) or any(type(cause) in (InternalError, DatabaseError) for cause in chain)


def driver_error(error: BaseException) -> BaseException:
    """The error of a database's driver, below those that SQLAlchemy (which keeps it as `orig`) and Optuna raise."""
    for cause in causes(error):
        if isinstance(original := getattr(cause, "orig", None), BaseException):
            return original
    return error


def has_trials(study: optuna.Study) -> bool:
    """Whether a study has begun; until then its settings may change."""
    return bool(study.get_trials(deepcopy=False))


def remember(study: optuna.Study, key: str, value: Any, remedy: str) -> None:
    """Store a setting with a study until it has trials; from then on refuse another value.

    Raises:
        UserError: naming the first values that differ, and the remedy.
    """
    if has_trials(study):
        refuse_changes(study, study.user_attrs.get(key, {}), value, remedy)
    else:
        study.set_user_attr(key, value)


def refuse_changes(study: optuna.Study, before: Any, now: Any, remedy: str) -> None:
    """Raises: UserError naming the first values that differ, and the remedy."""
    if changed := differences(_flatten(before), _flatten(now)):
        raise UserError(f"study {study.study_name} was started with other settings: {changed}; {remedy}")


def _flatten(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping):
        return {k: v for key, item in value.items() for k, v in _flatten(item, f"{path}.{key}" if path else key).items()}
    return {path: value}


class SoleWriter(_CachedStorage):
    """Optuna's storage for the one process that writes a study: what it wrote is not read again and again.

    Optuna's own cache trusts finished trials only. Whenever anything asks for all trials it reads all that are open, since
    another process might have changed them: with 128 of them 80 ms, twice per trial. Here a trial is read again only if this
    process has written it since. Trials that something else adds are found when the next one is created.

    A write marks its trial first: one that failed, or whose answer was lost, is read again too. Optuna's `Trial` holds the
    objects that it gets here and changes them as it writes, after such marks.
    """

    def __init__(self, backend: RDBStorage) -> None:
        super().__init__(backend)
        self._cached: dict[int, FrozenTrial] | None = None  # by id, rising; None to read all again
        self._study_id: int | None = None  # of those
        self._written: set[int] = set()

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        cached, self._cached = self._cached, None
        trial_id = super().create_new_trial(study_id, template_trial)
        trial = self._backend.get_trial(trial_id)
        # Optuna retries by itself if an answer is lost, and then may have created two.
        if cached is not None and trial.number == len(cached):
            cached[trial_id] = trial
            self._cached = cached
        return trial_id

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        self._written.add(trial_id)
        super().set_trial_param(trial_id, param_name, param_value_internal, distribution)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        self._written.add(trial_id)
        return super().set_trial_state_values(trial_id, state, values)

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        self._written.add(trial_id)
        super().set_trial_intermediate_value(trial_id, step, intermediate_value)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        self._written.add(trial_id)
        super().set_trial_user_attr(trial_id, key, value)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        self._written.add(trial_id)
        super().set_trial_system_attr(trial_id, key, value)

    def get_trial(self, trial_id: int) -> FrozenTrial:
        if self._cached is None or trial_id not in self._cached:
            return super().get_trial(trial_id)
        if trial_id in self._written:
            self._cached[trial_id] = self._backend.get_trial(trial_id)
            self._written.remove(trial_id)
        return self._cached[trial_id]

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """By number."""
        if self._cached is None:
            self._cached = {trial._trial_id: trial for trial in super().get_all_trials(study_id, deepcopy=False)}
            self._study_id = study_id
            self._written.clear()
        assert study_id == self._study_id
        for trial_id in list(self._written):
            self.get_trial(trial_id)
        trials = [trial for trial in self._cached.values() if states is None or trial.state in states]
        return copy.deepcopy(trials) if deepcopy else trials

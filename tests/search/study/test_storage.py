"""Where studies are stored: locked for one search, waited for while a database is away. PostgreSQL is the real one."""

from __future__ import annotations

import gc
import os
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState
from sqlalchemy.exc import OperationalError, PendingRollbackError, ProgrammingError

from search import SearchStopped, UserError
from search.study.locks import NullLock, PostgresqlLock, RetryPolicy, study_lock
from search.study.storage import is_away, open_study, public_url
from search.study.trial import finished_trials
from tests.support.commands import TINY, Command
from tests.support.known_engine import KnownEngine, coordinator, fill, run
from tests.support.postgresql import PostgreSql, programs

# Optuna leaves the connections of its pool to the garbage collector, which psycopg warns of.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")


@pytest.fixture(autouse=True)
def _collect_garbage() -> Iterator[None]:
    yield
    gc.collect()  # or a test of another module gets the warnings


AWAY = OperationalError("select 1", {}, Exception("server closed the connection"))


class Answers:
    """Fails so many times before it answers."""

    def __init__(self, num_failures: int, error: Exception = AWAY) -> None:
        self.left = num_failures
        self.error = error

    def __call__(self) -> str:
        self.left -= 1
        if self.left >= 0:
            raise self.error
        return "here"


def test_database_that_comes_back_is_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    assert RetryPolicy(10.0, NullLock())(Answers(3)) == "here"
    assert [record.message for record in caplog.records] == [
        "the database does not answer (Exception: server closed the connection); trying for up to 10 s"
    ]


def test_retrying_ends() -> None:
    with pytest.raises(OperationalError):
        RetryPolicy(0.5, NullLock())(Answers(100))


def test_what_waiting_does_not_fix_is_not_waited_for() -> None:
    refused = ProgrammingError("select", {}, Exception("no such table"))
    answers = Answers(1, refused)
    with pytest.raises(ProgrammingError):
        RetryPolicy(60.0, NullLock())(answers)
    assert not is_away(refused)


def test_what_optuna_makes_of_a_lost_connection_is_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    """It asks once more, on the connection that was lost, and hides the error of the driver."""
    hidden = StorageInternalError("An exception is raised during the commit.")
    hidden.__cause__ = PendingRollbackError("Can't reconnect until invalid transaction is rolled back.")
    hidden.__cause__.__context__ = AWAY
    assert RetryPolicy(10.0, NullLock())(Answers(1, hidden)) == "here"
    assert "server closed the connection" in caplog.text


def test_file_is_locked_for_one_search(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'study.db'}"
    with (
        study_lock("one", url),
        pytest.raises(UserError, match="study one in .* is in use by another search"),
        study_lock("one", url),
    ):
        pass
    with study_lock("one", url):
        pass


def test_study_in_memory_is_refused() -> None:
    with pytest.raises(UserError, match="would be lost"), study_lock("one", "sqlite://"):
        pass


def test_secrets_of_an_address_are_not_shown() -> None:
    assert public_url("postgresql://me:secret@db/x?password=secret&sslkey=a") == "postgresql://***@db/x"
    assert public_url("postgresql://db/x?password=secret") == "postgresql://db/x"
    assert public_url("postgresql://me:sec?ret@db:5432/x") == "postgresql://***@db:5432/x"
    assert public_url("postgresql://me:sec@ret@db:port/x") == "postgresql://***"


def test_address_that_cannot_be_read_is_not_repeated() -> None:
    with (
        pytest.raises(UserError, match="this is not a database URL") as caught,
        study_lock("one", "postgresql://me:sec:ret@db:word/x"),
    ):
        pass
    assert "ret" not in str(caught.value)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgreSql]:
    if programs() is None:
        pytest.skip("PostgreSQL's programs are not installed and cannot be")
    pytest.importorskip("psycopg", reason="the extra postgresql is not installed")
    folder = tmp_path_factory.mktemp("postgresql")
    for parent in (folder, *folder.parents):
        if parent.owner() == folder.owner() and os.getuid() == 0:
            parent.chmod(parent.stat().st_mode | 0o011)  # the server runs as somebody else
    with PostgreSql(folder) as server:
        yield server


def test_study_in_postgresql_goes_on_as_in_a_file(server: PostgreSql, tmp_path: Path) -> None:
    def keys(url: str) -> list[str]:
        for n_trials in (7, 15):
            trials = run(url, n_trials)
        return [trial.architecture.key for trial in trials]

    assert keys(server.url) == keys(f"sqlite:///{tmp_path / 'study.db'}")


def test_study_in_postgresql_is_locked_for_one_search(server: PostgreSql) -> None:
    refused = pytest.raises(UserError, match=r"study mine in postgresql://\*\*\*@.* is in use")
    with study_lock("mine", server.url), study_lock("another", server.url), refused, study_lock("mine", server.url):
        pass
    with study_lock("mine", server.url):
        pass


def test_lock_is_taken_again_after_a_restart(server: PostgreSql) -> None:
    with study_lock("mine", server.url) as lock:
        server.stop()
        server.start()
        lock.renew()
        with pytest.raises(UserError, match="is in use"), study_lock("mine", server.url):
            pass


def test_own_connection_that_the_server_still_believes_in_is_ended(server: PostgreSql) -> None:
    """As after a cut that the server has not noticed: it holds the study for a connection that nobody has any more."""
    with study_lock("mine", server.url) as lock:
        assert isinstance(lock, PostgresqlLock)
        lost = lock.connection
        lock.connection = None
        lock.renew()
        assert lock.connection is not None
        assert lost is not None
        lost.invalidate()
        lost.close()


def test_connection_of_another_search_is_left_alone(server: PostgreSql) -> None:
    """After a restart the server gives the numbers of its processes anew: a remembered one may be another search's."""
    with study_lock("mine", server.url) as lock:
        assert isinstance(lock, PostgresqlLock)
        server.stop()
        server.start()
        with study_lock("mine", server.url) as other:
            assert isinstance(other, PostgresqlLock)
            lock.backend = other._query("SELECT pg_backend_pid()")  # type: ignore[attr-defined]  # what was remembered once
            with pytest.raises(SearchStopped, match="another search has taken over study mine"):
                lock.renew()
            other.renew()
            assert other._query("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == 1


def test_study_that_another_search_took_meanwhile_is_left_to_it(server: PostgreSql) -> None:
    with study_lock("mine", server.url) as lock:
        server.cut_connections()
        with study_lock("mine", server.url), pytest.raises(SearchStopped, match="another search has taken over study mine"):
            lock.renew()


@pytest.mark.parametrize("fault", ["restart", "cut"])
def test_search_survives_its_database(server: PostgreSql, fault: str) -> None:
    """The server is away in the middle of a search: nothing lost, nothing twice, exactly as many as asked for."""
    name = f"survives-{fault}"
    engine = KnownEngine()
    study = open_study(name, server.url, create=True)
    ended = threading.Event()

    def strike() -> None:
        pause = 0.2  # seconds; it grows, so that a slow machine too gets on between two faults
        while not ended.wait(pause):
            pause *= 1.2
            if fault == "restart":
                server.stop()
                time.sleep(0.5)
                server.start()
                ended.wait(1.0)
            else:
                server.cut_connections()

    striking = threading.Thread(target=strike)
    with study_lock(name, server.url) as lock:
        striking.start()
        try:
            fill(coordinator(study, engine, retry=RetryPolicy(60.0, lock)), 25)
        finally:
            ended.set()
            striking.join()
    stored = open_study(name, server.url, create=False)
    assert len(finished_trials(stored)) == 25
    assert {trial.state for trial in stored.trials} <= {TrialState.COMPLETE, TrialState.FAIL}
    assert len(engine.trained) == len(set(engine.trained))


def test_search_keeps_the_password_to_itself(server: PostgreSql, tmp_path: Path) -> None:
    arguments = ["+search=cpu_latency", "study.name=secretive", "study.n_trials=2", "accuracy=scratch", *TINY]
    with Command(tmp_path, "search.run", *arguments, "storage=postgresql", f"storage.url={server.url}") as search:
        output = search.wait()
    assert search.returncode == 0, output
    assert "secret@" not in output
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert written
    assert not [path for path in written if re.search(rb"study:secret", path.read_bytes())]
    study = open_study("secretive", server.url, create=False)
    assert len(finished_trials(study)) == 2
    assert "secret@" not in f"{study.user_attrs} {study._storage.get_study_system_attrs(study._study_id)}"


def test_database_that_is_not_there_is_one_clear_line() -> None:
    with pytest.raises(
        UserError, match=r"postgresql://\*\*\*@127.0.0.1:1/x cannot be used .*check that the database runs"
    ) as caught:
        open_study("test", "postgresql://me:secret@127.0.0.1:1/x", create=True)
    assert "secret" not in str(caught.value)

"""How a command ends: expected errors in one line, with the traceback in the log; a bug with its traceback."""

from __future__ import annotations

import asyncio
import errno
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import optuna
import pytest
from omegaconf import OmegaConf
from sqlalchemy.exc import ArgumentError, OperationalError

from search import SearchStopped, UserError, causes
from search.commands.cli import build
from search.commands.targets import prepare_targets
from search.engine.base import Fingerprint
from search.latency.runtime import ConversionError
from search.study.storage import driver_error, is_away, is_fault_of_database, open_study
from tests.support.commands import call
from tests.support.known_engine import SPACE, KnownEngine, studied


def of_database(code: int, message: str) -> OperationalError:
    """What SQLAlchemy makes of an error of SQLite."""
    original = sqlite3.OperationalError(message)
    original.sqlite_errorcode = code
    return OperationalError("insert", {}, original)


def raising(error: BaseException) -> Callable[..., NoReturn]:
    def fail(*args: object, **kwargs: object) -> NoReturn:
        raise error

    return fail


@pytest.fixture
def shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a study."""
    monkeypatch.chdir(tmp_path)
    folder = Path("outputs/shown")
    folder.mkdir(parents=True)
    studied("sqlite:///outputs/shown/study.db", 3)
    return folder


EXPECTED = [
    (OSError(errno.ENOSPC, "No space left on device"), 1, "OSError: [Errno 28] No space left on device; fix this and run"),
    (PermissionError(errno.EACCES, "Permission denied"), 1, "PermissionError: [Errno 13] Permission denied; fix this"),
    (of_database(sqlite3.SQLITE_FULL, "database or disk is full"), 1, "OperationalError: database or disk is full; fix"),
    (of_database(sqlite3.SQLITE_IOERR_WRITE, "disk I/O error"), 1, "OperationalError: disk I/O error; fix this"),
    (SearchStopped("it cannot go on"), 1, "error: it cannot go on"),
    (UserError("value=3 is too small"), 2, "error: value=3 is too small"),
]


@pytest.mark.parametrize(("error", "code", "message"), EXPECTED)
def test_expected_error_is_one_line_with_its_traceback_in_the_log(
    shown: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    code: int,
    message: str,
) -> None:
    monkeypatch.setattr("search.commands.report.write", raising(error))
    assert call("report", ["study.name=shown"]) == code
    printed = capsys.readouterr().err.strip()
    assert message in printed
    assert len(printed.splitlines()) == 1
    log = (shown / "run.log").read_text(encoding="utf-8")
    assert f"the command ends with exit code {code}\nTraceback (most recent call last):" in log
    assert "in fail" in log


BUGS = [
    AttributeError("'NoneType' object has no attribute 'latency'"),
    KeyError("latency"),
    FileNotFoundError(errno.ENOENT, "No such file or directory"),
    ArgumentError("wrongly used"),
    of_database(sqlite3.SQLITE_ERROR, "no such column: latency"),
    optuna.exceptions.UpdateFinishedTrialError("Trial#1 has already finished."),
]


@pytest.mark.parametrize("error", BUGS, ids=lambda error: type(error).__name__)
def test_bug_ends_in_a_traceback(shown: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    monkeypatch.setattr("search.commands.report.write", raising(error))
    with pytest.raises(type(error)):
        call("report", ["study.name=shown"])
    assert "Traceback" in (shown / "run.log").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (AttributeError("no attribute"), AttributeError),
        (TypeError("an argument too many"), TypeError),
        (RuntimeError("no kernel for this type"), SearchStopped),
        (ConversionError("cannot take this model"), SearchStopped),
    ],
)
def test_bug_while_devices_are_prepared_ends_in_a_traceback(
    tmp_path: Path, error: Exception, raised: type[Exception]
) -> None:
    class Broken(KnownEngine):
        async def fingerprint(self, role: str) -> Fingerprint:
            raise error

    cfg = OmegaConf.create({"latency": {"devices": {}, "objectives": "all", "budget_ms": None}, "limits": {}})
    study = open_study("test", f"sqlite:///{tmp_path / 'study.db'}", create=True)
    with pytest.raises(raised) as caught:
        asyncio.run(prepare_targets(cfg, study, Broken(), SPACE))
    assert error in causes(caught.value)


def circle() -> OSError:
    """Two errors, each the cause of the other."""
    cause, effect = OSError(errno.EIO, "Input/output error"), RuntimeError("effect")
    cause.__cause__, effect.__cause__ = effect, cause
    return cause


@pytest.mark.timeout(60)
def test_circle_of_causes_ends(shown: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(list(causes(circle()))) == 2
    assert not is_away(circle())
    assert not is_fault_of_database(circle())
    assert str(driver_error(circle())) == "[Errno 5] Input/output error"
    monkeypatch.setattr("search.commands.report.write", raising(circle()))
    assert call("report", ["study.name=shown"]) == 1
    assert capsys.readouterr().err.startswith("error: OSError: [Errno 5] Input/output error; fix this")
    stop = KeyboardInterrupt()
    stop.__cause__ = circle()
    monkeypatch.setattr("search.commands.report.write", raising(stop))
    assert call("report", ["study.name=shown"]) == 130


def refuse(error: Exception) -> NoReturn:
    raise error


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (OSError(errno.EACCES, "Permission denied"), OSError),
        (AttributeError("a bug"), AttributeError),
        (UserError("a mistake"), UserError),
        (ValueError("out of range"), UserError),
    ],
)
def test_error_of_a_constructor_is_not_its_own_cause(error: Exception, raised: type[Exception]) -> None:
    with pytest.raises(raised) as caught:
        build({"_target_": f"{__name__}.refuse"}, error=error)
    chain, below = [], caught.value
    while below is not None and len(chain) < 10:
        chain.append(below)
        below = below.__cause__ or below.__context__
    assert len(chain) < 10, "a circle"
    assert error in chain

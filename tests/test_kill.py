"""A study survives SIGKILL, SIGTERM and Ctrl-C, and ends with exactly what was asked for (many more: test_faults.py)."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.support.search_process import SearchProcess, Tally


def processes_in(folder: Path) -> list[int]:
    """Processes still running in `folder`."""
    pids = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and (entry / "cwd").readlink() == folder and int(entry.name) != os.getpid():
                pids.append(int(entry.name))
        except OSError:
            continue
    return pids


@pytest.mark.timeout(900)  # it starts a search four times
def test_stopped_search_goes_on(tmp_path: Path) -> None:
    """One study, stopped in three ways one after the other."""
    with SearchProcess(tmp_path, 6) as search:
        for times, (stop, code) in enumerate(((signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)), start=1):
            search.start()
            search.wait_for("phase: training", 2 * times)
            search.running.send(stop)
            message = search.end()
            assert search.running.returncode == code, message
            if stop != signal.SIGKILL:
                assert message == "stopped; run the same command again to continue"
            deadline = time.monotonic() + 20
            while processes_in(tmp_path):
                assert time.monotonic() < deadline, "the measuring process outlived the search"
                time.sleep(0.2)
            search.record()
        search.finish()
        tally = Tally()
        search.count(tally)
    assert tally.after == 6 > tally.before
    assert (tally.lost, tally.duplicated, tally.inexact) == (0, 0, 0)

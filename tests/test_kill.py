"""A study survives SIGKILL, SIGTERM and Ctrl-C at any moment, and ends with exactly what was asked for."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
from optuna.trial import TrialState

from search.study import finished_trials, open_study
from tests.commands import TINY, start

N_TRIALS = 6
ARGUMENTS = ["+search=cpu_latency", "study.name=killed", f"study.n_trials={N_TRIALS}", *TINY]


def check_complete(folder: Path) -> None:
    """Exactly n_trials finished, no network trained twice, nothing half-written."""
    url = f"sqlite:///{folder / 'outputs/killed/study.db'}"
    study = open_study("killed", url, create=False)
    finished = finished_trials(study)
    assert len(finished) == N_TRIALS
    assert not [t for t in study.trials if t.state == TrialState.RUNNING]
    trained = Counter(t.architecture.key for t in finished if t.outcome.accuracy and not t.outcome.reused_accuracy)
    assert set(trained.values()) <= {1}
    for trial in finished:
        samples = json.loads((folder / f"outputs/killed/latency/trial-{trial.number:05d}.json").read_text(encoding="utf-8"))
        assert samples["latency_ms"] == trial.outcome.latency.latency_ms


def measuring_processes(folder: Path) -> list[int]:
    """Processes still running in `folder`."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and (entry / "cwd").readlink() == folder and int(entry.name) != os.getpid():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_stopped_search_goes_on(tmp_path: Path, stop: signal.Signals) -> None:
    search = start(tmp_path, "search.run", *ARGUMENTS)
    assert search.stdout is not None
    for line in search.stdout:
        if "trial 2:" in line:
            break
    time.sleep(0.3)
    search.send_signal(stop)
    rest, _ = search.communicate(timeout=60)
    assert search.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[stop]
    if stop != signal.SIGKILL:
        assert rest.strip().splitlines()[-1] == "stopped; the same command goes on from here"
        assert "Traceback" not in rest
    deadline = time.monotonic() + 20
    while measuring_processes(tmp_path):
        assert time.monotonic() < deadline, "the measuring process outlived the search"
        time.sleep(0.2)
    search = start(tmp_path, "search.run", *ARGUMENTS)
    output, _ = search.communicate(timeout=200)
    assert search.returncode == 0, output
    check_complete(tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_twenty_times_at_random(tmp_path: Path) -> None:
    """Twenty studies, each killed once at a random moment and resumed. Prints what each was doing when it was killed."""
    rng = random.Random(0)
    phases: Counter[str] = Counter()
    for number in range(20):
        folder = tmp_path / str(number)
        folder.mkdir()
        search = start(folder, "search.run", *ARGUMENTS)
        assert search.stdout is not None
        wait_for = rng.choice(["preparing the data", "calibrating", *(f"trial {n}:" for n in range(N_TRIALS))])
        for line in search.stdout:
            if wait_for in line:
                break
        time.sleep(rng.uniform(0, 2.0))
        search.kill()
        search.communicate()
        phases[phase(folder)] += 1
        resumed = start(folder, "search.run", *ARGUMENTS)
        output, _ = resumed.communicate(timeout=300)
        assert resumed.returncode == 0, output
        check_complete(folder)
    print(f"killed while {dict(phases)}; all {sum(phases.values())} ended with {N_TRIALS} finished trials")


def phase(folder: Path) -> str:
    log = folder / "outputs/killed/run.log"
    lines = [line for line in log.read_text(encoding="utf-8").splitlines() if "phase:" in line] if log.exists() else []
    return lines[-1].partition("phase:")[2].strip() if lines else "starting"

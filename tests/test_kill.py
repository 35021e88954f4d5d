"""A study survives SIGKILL, SIGTERM and Ctrl-C at any moment, and ends with exactly what was asked for."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest
from optuna.trial import TrialState

from search.storage import open_study
from search.trials import finished_trials
from tests.commands import TINY, start

N_TRIALS = 6
ARGUMENTS = ["+search=cpu_latency", "study.name=killed", f"study.n_trials={N_TRIALS}", "accuracy=scratch", *TINY]


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


def processes_in(folder: Path) -> list[int]:
    """Processes still running in `folder`."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and (entry / "cwd").readlink() == folder and int(entry.name) != os.getpid():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def run_log(folder: Path) -> str:
    log = folder / "outputs/killed/run.log"
    return log.read_text(encoding="utf-8") if log.exists() else ""


def wait_for(search: subprocess.Popen[str], folder: Path, text: str, times: int) -> None:
    """Until the log holds `text` so many times, or the search is over."""
    while search.poll() is None and run_log(folder).count(text) < times:
        time.sleep(0.01)


def finish(folder: Path) -> None:
    """Repeat the command, to its end."""
    resumed = start(folder, "search.run", *ARGUMENTS)
    output, _ = resumed.communicate(timeout=300)
    assert resumed.returncode == 0, output
    check_complete(folder)


def test_stopped_search_goes_on(tmp_path: Path) -> None:
    """One study, stopped in three ways one after the other."""
    for times, (stop, code) in enumerate(((signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)), start=1):
        search = start(tmp_path, "search.run", *ARGUMENTS)
        wait_for(search, tmp_path, "phase: training", 2 * times)
        search.send_signal(stop)
        output, _ = search.communicate(timeout=60)
        assert search.returncode == code, output
        if stop != signal.SIGKILL:
            assert output.strip().splitlines()[-1] == "stopped; the same command goes on from here"
            assert "Traceback" not in output
        deadline = time.monotonic() + 20
        while processes_in(tmp_path):
            assert time.monotonic() < deadline, "the measuring process outlived the search"
            time.sleep(0.2)
    finish(tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(5400)
def test_killed_twenty_times_at_random(tmp_path: Path) -> None:
    """Twenty studies, each killed once at a random moment of a random phase and resumed; says what each was doing."""
    rng = random.Random(0)
    lasts = {"study": 15.0, "phase: measuring": 0.4, "phase: training": 0.2, "phase: writing": 0.1}  # seconds, about
    phases: Counter[str] = Counter()
    for number in range(20):
        folder = tmp_path / str(number)
        folder.mkdir()
        chosen = rng.choice(list(lasts))
        search = start(folder, "search.run", *ARGUMENTS)
        wait_for(search, folder, chosen, 1 if chosen == "study" else rng.randint(1, N_TRIALS))
        time.sleep(rng.uniform(0, lasts[chosen]))
        assert search.poll() is None, "over before it was killed"
        search.kill()
        search.communicate()
        *_, last = [
            "starting",
            *(line.partition("phase: ")[2] for line in run_log(folder).splitlines() if "phase: " in line),
        ]
        phases[last] += 1
        finish(folder)
    print(f"killed while {dict(phases)}; all {sum(phases.values())} ended with {N_TRIALS} finished trials")

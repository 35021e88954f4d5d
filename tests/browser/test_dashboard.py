"""optuna-dashboard, in a real headless browser, on a study of ours."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from search import dashboard
from search.study import finished_trials, open_study
from tests.known_engine import SPACE, KnownEngine, coordinator

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium on the system, such as Debian's package chromium"),
    pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning"),
]
BUDGET_MS = 2.0
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    """Address of a study in optuna-dashboard with a front, dominated and infeasible trials; number of an infeasible one."""
    folder = tmp_path_factory.mktemp("dashboard")
    storage = f"sqlite:///{folder / 'study.db'}"
    study = open_study("shown", storage, create=True)
    device = {"device": "Known CPU", "backend": "torch eager", "num_threads": 1, "batch_size": 1, "input_size": "1x32x32"}
    study.set_user_attr("device", device)
    dashboard.write_note(study, storage, SPACE, BUDGET_MS)
    publish = lambda trials: dashboard.publish_front(study, trials, BUDGET_MS)  # noqa: E731
    coordinator(study, KnownEngine(), BUDGET_MS, publish=publish).run(25, None)
    trials = finished_trials(study)
    infeasible = [t.number for t in trials if not t.outcome.feasible]
    assert 0 < len(infeasible) < len(trials)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(Path(sys.executable).parent / "optuna-dashboard"), storage, "--host", "127.0.0.1", "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for(port)
        yield f"http://127.0.0.1:{port}/dashboard/studies/1", infeasible[0]
    finally:
        server.terminate()
        server.wait()


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise AssertionError("optuna-dashboard did not start")


def test_front_metrics_and_infeasible_trials_are_shown(shown: tuple[str, int], tmp_path: Path) -> None:
    url, infeasible = shown
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1500, "height": 1400})
        page.goto(url)
        front = page.locator("#graph-pareto-front")
        front.locator(".main-svg").first.wait_for(timeout=30_000)
        page.get_by_text("Front and budget").first.wait_for(timeout=30_000)
        text = page.inner_text("body")
        page.screenshot(path=tmp_path / "dashboard.png", full_page=True)
        assert "accuracy" in text
        assert "latency_ms" in text
        plot = page.locator(".main-svg", has_text="Front and budget").first
        assert "Infeasible" in plot.inner_html()
        assert "budget 2 ms" in plot.inner_html()
        page.goto(f"{url}/trials?numbers={infeasible}")
        page.get_by_text("infeasible: latency", exact=False).first.wait_for(timeout=30_000)
        page.screenshot(path=tmp_path / "trial.png", full_page=True)
        page.goto(f"{url}/note")
        page.get_by_text("Search for LITv2 networks", exact=False).first.wait_for(timeout=30_000)
        page.screenshot(path=tmp_path / "note.png", full_page=True)
        browser.close()

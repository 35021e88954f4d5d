"""optuna-dashboard, in a real headless browser, on a study of ours."""

from __future__ import annotations

import shutil
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from search.study.front import front
from search.study.trial import finished_trials
from tests.support.commands import Command
from tests.support.known_engine import studied

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


@dataclass(frozen=True)
class Shown:
    """Address of a study in the dashboard; numbers of an infeasible trial and of a trial on the front."""

    url: str
    infeasible: int
    member: int


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    folder = tmp_path_factory.mktemp("dashboard")
    study_folder = folder / "outputs" / "shown"
    study_folder.mkdir(parents=True)
    trials = finished_trials(studied(f"sqlite:///{study_folder / 'study.db'}", 25, BUDGET_MS, folder=study_folder))
    infeasible = [trial.number for trial in trials if not trial.result.feasible]
    assert 0 < len(infeasible) < len(trials)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with Command(folder, "search.dashboard", "study.name=shown", f"port={port}") as server:
        server.wait_until(lambda: is_served(port))
        yield Shown(f"http://127.0.0.1:{port}/dashboard/studies/1", infeasible[0], front(trials)[0].number)
        server.send(signal.SIGINT)
        server.wait()
        assert server.returncode in (0, 130)


def is_served(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def page_of(browser: Browser, scheme: str, complaints: list[str]) -> Page:
    page = browser.new_page(viewport={"width": 1500, "height": 1400}, color_scheme=scheme)  # type: ignore[arg-type]
    page.on("pageerror", lambda error: complaints.append(str(error)))
    return page


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_front_plots_and_notes_are_shown(shown: Shown, tmp_path: Path, scheme: str) -> None:
    complaints: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = page_of(browser, scheme, complaints)
        page.goto(shown.url)
        page.locator("#graph-pareto-front .main-svg").first.wait_for(timeout=30_000)
        for title in (
            "Accuracy over latency",
            "Hypervolume of the front",
            "What mattered, by objective",
            "Latency by stage",
        ):
            page.get_by_text(title).first.wait_for(timeout=30_000)
        text = page.inner_text("body")
        page.screenshot(path=tmp_path / f"dashboard-{scheme}.png", full_page=True)
        assert "accuracy" in text
        assert "latency_ms" in text
        plot = page.locator(".main-svg", has_text="Accuracy over latency").first
        assert "infeasible" in plot.inner_html()
        assert "budget 2 ms" in plot.inner_html()
        page.goto(f"{shown.url}/note")
        page.get_by_text("Search for LITv2 networks", exact=False).first.wait_for(timeout=30_000)
        page.screenshot(path=tmp_path / f"note-{scheme}.png", full_page=True)
        browser.close()
    assert complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_trials_have_a_note_a_picture_and_their_network_as_yaml(shown: Shown, tmp_path: Path, scheme: str) -> None:
    complaints: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = page_of(browser, scheme, complaints)
        page.goto(f"{shown.url}/trials?numbers={shown.infeasible}")
        page.get_by_text("infeasible: latency", exact=False).first.wait_for(timeout=30_000)
        page.goto(f"{shown.url}/trials?numbers={shown.member}")
        page.get_by_text("embed_dim", exact=False).first.wait_for(timeout=30_000)
        drawn = page.locator('img[alt="the network"]').first
        drawn.wait_for(timeout=30_000)
        assert drawn.evaluate("image => image.naturalWidth") > 200
        for suffix in (".yaml", ".svg"):
            page.get_by_text(f"trial-{shown.member:05d}{suffix}").first.wait_for(timeout=30_000)
        page.screenshot(path=tmp_path / f"trial-{scheme}.png", full_page=True)
        browser.close()
    assert complaints == []

"""The report: every section that a study has something for, as a page that asks for nothing and as Markdown."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from search.results.page import Grid, Section, html, markdown
from search.results.sections import Found, influences, sections
from search.study.evaluate import Objective
from search.study.trial import finished_trials
from tests.support.commands import call
from tests.support.known_engine import KnownEngine, finished, studied

ALWAYS = [
    "What was asked", "Front", "Networks of the front", "Against the authors' pattern", "Progress", "What mattered",
    "Where the latency goes", "How well latency was measured", "Failed, infeasible and unmeasured", "Time",
    "Go on from here",
]  # fmt: skip


class Ids(HTMLParser):
    """Every id of a page, and every address it names."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" and value:
                self.ids.append(value)
            if name in ("src", "href", "xlink:href") and value:
                self.addresses.append(value)


@pytest.fixture
def found(tmp_path: Path) -> Found:
    engine = KnownEngine()
    objective = Objective(engine.known_devices(), seed=0, accuracy_first=True)
    return Found(studied(f"sqlite:///{tmp_path / 'study.db'}", 40, objective=objective), tmp_path)


def test_page_has_every_section_and_asks_for_nothing(found: Found) -> None:
    made = sections(found)
    assert [section.title for section in made] == ALWAYS
    parsed = Ids(html("Study", made))
    assert len(parsed.ids) == len(set(parsed.ids)) > 100
    assert all(address.startswith(("#", "data:")) for address in parsed.addresses)


def test_front_of_the_report_is_the_study_s(found: Found) -> None:
    (section,) = [section for section in sections(found) if section.title == "Front"]
    assert [int(row[0]) for row in section.tables[0].rows] == [member.number for member in found.members]


def test_what_was_not_measured_is_counted(found: Found) -> None:
    (section,) = [section for section in sections(found) if section.title.startswith("Failed")]
    unmeasured = sum(not trial.outcome.latency.measured for trial in finished_trials(found.study))
    assert ["dominated by the block model: scored, not measured", str(unmeasured)] in [
        list(row) for row in section.tables[0].rows
    ]


def test_budget_is_reported(tmp_path: Path) -> None:
    study = studied(f"sqlite:///{tmp_path / 'study.db'}", 20, budget_ms=2.0)
    text = markdown("Study", sections(Found(study, tmp_path)))
    assert "| budget | 2 ms |" in text
    assert "over the latency budget: not trained" in text


def test_check_and_confirmation_are_shown(found: Found) -> None:
    tau = {"value": 0.7, "low": 0.5, "high": 0.9}
    check = {"meaningful": False, "advice": ["widen the space"], "spread": 0.1, "seed_noise": 0.05, "num_networks": 12}
    found.folder.joinpath("check.json").write_text(
        json.dumps({**check, **dict.fromkeys(("evaluator", "macs", "params", "seeds"), tau)})
    )
    latency = found.members[0].outcome.latency.summary()
    values = {"accuracy": 0.8, "standard_error": 0.01, "latency": latency, "front_probability": 0.5}
    networks = [{"trial": 3, "search": values, "confirmed": {**values, "accuracies": [1, 2], "accuracy": 0.9}}]
    found.folder.joinpath("confirmed.json").write_text(json.dumps({"networks": networks}))
    text = markdown("Study", sections(found))
    assert "Not meaningful: widen the space" in text
    assert "0.70 [0.50, 0.90]" in text
    assert "0.9000 ±0.0100 (2)" in text


def test_what_cannot_be_read_is_left_out(found: Found) -> None:
    found.folder.joinpath("check.json").write_text("{torn")
    assert [section.title for section in sections(found)] == ALWAYS


def test_text_stays_text() -> None:
    hostile = "<script>alert(1)</script> | x"
    section = Section(hostile, [hostile], [Grid(("a",), [(hostile,)])], commands=[hostile])
    assert "<script>" not in html(hostile, [section])
    assert "&lt;script&gt;" in html(hostile, [section])
    assert re.search(r"\| <script>alert\(1\)</script> \\\| x \|", markdown("", [section]))


def test_influence_is_the_share_of_variance_between_values() -> None:
    judged = [
        finished(number, 0.5 + 0.1 * (number % 2), 1.0 + number // 2, parameters={"a": number % 2, "b": number // 2})
        for number in range(4)
    ]
    by_name = {one.dimension: one for one in influences(judged)}
    assert by_name["a"].accuracy == pytest.approx(1.0)
    assert by_name["a"].accuracy_gain == pytest.approx(0.1)
    assert by_name["b"].accuracy == pytest.approx(0.0)
    assert by_name["b"].latency == pytest.approx(1.0)
    assert by_name["b"].latency_gain == pytest.approx(1.0)


def test_report_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    Path("outputs/shown").mkdir(parents=True)
    studied("sqlite:///outputs/shown/study.db", 12)
    assert call("report", ["study.name=shown"]) == 0
    assert "saved outputs/shown/report.html" in capsys.readouterr().out
    assert "http-equiv" not in Path("outputs/shown/report.html").read_text(encoding="utf-8")
    assert Path("outputs/shown/report.md").read_text(encoding="utf-8").startswith("# Study shown")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [(["study.name=missing"], "there is no outputs/missing here"), (["study.name=empty"], "there is no study empty")],
)
def test_mistakes_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], overrides: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("outputs/empty").mkdir(parents=True)
    assert call("report", overrides) == 2
    assert message in capsys.readouterr().err

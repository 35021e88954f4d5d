"""The report: every section that a study has something for, as a page that requests nothing and as Markdown."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import optuna
import pytest
import sqlalchemy

from search.results.report import sections
from search.results.report.page import Section, Table, html, markdown
from search.results.report.study_data import StudyData
from search.study.evaluate import Rules
from search.study.trial import finished_trials
from tests.support.commands import call
from tests.support.known_engine import KnownEngine, constraint, known_targets, studied

ALWAYS = [
    "Setup", "Front", "More than noise?", "Networks on the front", "Comparison with the LITv2 pattern", "Progress",
    "What mattered", "Latency by stage", "Quality of the latency measurements",
    "Failed, infeasible and unmeasured trials", "Time", "Next steps",
]  # fmt: skip


class Ids(HTMLParser):
    """Collects every id of a page, and every address in it."""

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


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> optuna.Study:
    rules = Rules(seed=0, scores_before_measuring=True)
    return studied(f"sqlite:///{tmp_path_factory.mktemp('study') / 'study.db'}", 40, rules=rules)


@pytest.fixture
def study(stored: optuna.Study, tmp_path: Path) -> StudyData:
    return StudyData(stored, tmp_path)


def test_page_has_every_section_and_requests_nothing(study: StudyData) -> None:
    parts = sections(study)
    assert [section.title for section in parts] == ALWAYS
    parsed = Ids(html("Study", parts))
    assert len(parsed.ids) == len(set(parsed.ids)) > 100
    assert all(address.startswith(("#", "data:")) for address in parsed.addresses)


def test_front_of_the_report_is_the_study_s(study: StudyData) -> None:
    (section,) = [section for section in sections(study) if section.title == "Front"]
    assert [int(row[0]) for row in section.tables[0].rows] == [member.number for member in study.members]


def test_what_was_not_measured_is_counted(study: StudyData) -> None:
    (section,) = [section for section in sections(study) if section.title.startswith("Failed")]
    unmeasured = sum(not trial.result.measured for trial in finished_trials(study.study))
    assert unmeasured
    assert ["dominated by the block model: scored, not measured", str(unmeasured)] in [
        list(row) for row in section.tables[0].rows
    ]


def test_budget_is_reported(tmp_path: Path) -> None:
    study = studied(f"sqlite:///{tmp_path / 'study.db'}", 20, limit_ms=2.0)
    text = markdown("Study", sections(StudyData(study, tmp_path)))
    assert "| budget | 2 ms |" in text
    assert "over the latency budget: not trained" in text


def test_scored_networks_over_the_budget_are_counted(tmp_path: Path) -> None:
    rules = Rules(seed=0, scores_before_measuring=True)
    study = studied(f"sqlite:///{tmp_path / 'study.db'}", 20, limit_ms=2.0, rules=rules)
    over = sum(not trial.result.feasible for trial in finished_trials(study))
    assert over
    text = markdown("Study", sections(StudyData(study, tmp_path)))
    assert f"| over the latency budget: scored, but infeasible | {over} |" in text
    assert "not trained" not in text


def test_one_target_needs_no_name(study: StudyData) -> None:
    text = markdown("Study", sections(study))
    assert "| trial | accuracy | latency, ms [95 % CI] | on the front by score |" in text
    assert "| latency | torch eager, 1 thread(s), batch 1, input 1x32x32 |" in text
    assert "times as fast [95 % CI]" in text
    assert "on first" not in text


def test_several_targets_are_named(tmp_path: Path) -> None:
    targets = known_targets(KnownEngine(targets=("first", "phone", "tablet")), tablet=constraint(20.0))
    study = StudyData(studied(f"sqlite:///{tmp_path / 'study.db'}", 30, targets=targets), tmp_path)
    parts = sections(study)
    text = markdown("Study", parts)
    assert "| latency on phone | Known CPU, torch eager, 1 thread(s), batch 1, input 1x32x32, minimised |" in text
    assert "input 1x32x32, constraint, budget 20 ms |" in text
    assert (
        "| trial | accuracy | first, ms [95 % CI] | phone, ms [95 % CI] | tablet, ms [95 % CI] | on the front by score |"
        in text
    )
    assert "| network of the front | pattern | times as fast on first [95 % CI] | times as fast on phone [95 % CI] |" in text
    assert "| network on phone | stem and head |" in text
    assert "| of the variance of latency on first | latency on first | of the variance of latency on phone |" in text
    captions = [caption for section in parts for caption in section.figures]
    for name in ("first", "phone"):
        assert f"Accuracy over latency on {name}: standard errors, 95 % confidence intervals" in captions
        assert f"Latency by stage on {name}" in captions
    parsed = Ids(html("Study", parts))
    assert len(parsed.ids) == len(set(parsed.ids))


def test_what_mattered_says_what_it_measures(study: StudyData) -> None:
    (section,) = [section for section in sections(study) if section.title == "What mattered"]
    assert "share of the variance" in section.text[0]
    assert "Hyperparameter Importance" in section.text[1]


def test_check_and_confirmation_are_shown(study: StudyData) -> None:
    tau = {"value": 0.7, "low": 0.5, "high": 0.9}
    taus = dict.fromkeys(("evaluator", "macs", "params", "seeds", "over_macs", "over_params"), tau)
    equal_cost = {"num_pairs": 18, "evaluator": tau, "macs": tau}
    quality = {"spread": 0.1, "seed_noise": 0.05, "num_networks": 12, "equal_cost": equal_cost, **taus}
    check = {"verdict": "undecided", "reasons": ["tau is 0.7"], "more_networks": 9, "quality": quality}
    study.folder.joinpath("check.json").write_text(json.dumps(check))
    latencies = {name: latency.summary() for name, latency in study.members[0].result.latencies.items()}
    values = {"accuracy": 0.8, "standard_error": 0.01, "latencies": latencies, "front_probability": 0.5}
    networks = [
        {"trial": 3, "search": values, "confirmed": {**values, "accuracies": [1, 2], "accuracy": 0.9}},
        {"trial": 4, "search": values, "confirmed": {"latencies": {}}},
    ]
    study.folder.joinpath("confirmed.json").write_text(json.dumps({"by_score": True, "networks": networks}))
    text = markdown("Study", sections(study))
    assert "Undecided: tau is 0.7." in text
    assert "9 more networks would decide" in text
    assert "scores, 18 pairs of about equal cost" in text
    assert "0.70 [0.50, 0.90]" in text
    assert "+0.70 [+0.50, +0.90]" in text
    assert "0.9000 ±0.0100 (2)" in text
    assert re.search(r"\| 4 \| 0\.8000 \|  \| [\d.]+ \[.*\] \|  \| 50% \|  \|", text)


def test_what_cannot_be_read_is_left_out(study: StudyData) -> None:
    study.folder.joinpath("check.json").write_text("{torn")
    assert [section.title for section in sections(study)] == ALWAYS


def test_text_stays_text() -> None:
    hostile = "<script>alert(1)</script> | x"
    figures = {hostile: "<svg></svg>"}
    section = Section(hostile, [hostile], [Table(("a",), [(hostile,)])], figures, commands=[hostile])
    assert "<script>" not in html(hostile, [section])
    assert "&lt;script&gt;" in html(hostile, [section])
    assert re.search(r"\| <script>alert\(1\)</script> \\\| x \|", markdown("", [section]))


def test_report_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    Path("outputs/shown").mkdir(parents=True)
    studied("sqlite:///outputs/shown/study.db", 12)
    assert call("report", ["study.name=shown"]) == 0
    assert "saved outputs/shown/report.html" in capsys.readouterr().out
    assert "http-equiv" not in Path("outputs/shown/report.html").read_text(encoding="utf-8")
    assert Path("outputs/shown/report.md").read_text(encoding="utf-8").startswith("# Study shown")


def test_watched_report_takes_one_connection_and_closes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("outputs/shown").mkdir(parents=True)
    study = studied("sqlite:///outputs/shown/study.db", 12)
    counts = {"connect": 0, "close": 0}
    reported: list[bool] = []

    def count(name: str) -> Callable[..., None]:
        def listener(*args: object) -> None:
            counts[name] += 1

        return listener

    def sleep(seconds: float) -> None:
        text = Path("outputs/shown/report.md").read_text(encoding="utf-8")
        reported.append(f"| {12 + len(reported)} finished, " in text)
        if len(reported) == 4:
            raise KeyboardInterrupt
        study.add_trial(study.trials[0])  # which the next report has

    monkeypatch.setattr("search.commands.report.time.sleep", sleep)
    listeners = {name: count(name) for name in counts}
    for name, listener in listeners.items():
        sqlalchemy.event.listen(sqlalchemy.pool.Pool, name, listener)
    try:
        assert call("report", ["study.name=shown", "watch=1"]) == 130
    finally:
        for name, listener in listeners.items():
            sqlalchemy.event.remove(sqlalchemy.pool.Pool, name, listener)
    assert reported == [True] * 4
    assert counts["connect"] == counts["close"] <= 2


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

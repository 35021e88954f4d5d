"""The report of a study: sections of text, tables and figures, for a page that explains itself and for Markdown."""

from __future__ import annotations

from search.results.report import analysis, course, networks
from search.results.report.page import Section
from search.results.report.study_data import StudyData

PARTS = (
    course.setup,
    networks.front,
    analysis.told_apart,
    networks.pictures,
    networks.comparison,
    networks.peers,
    analysis.progress,
    analysis.influence,
    analysis.latency_by_stage,
    analysis.accuracy_check,
    networks.confirmation,
    analysis.latency_quality,
    course.incomplete_trials,
    course.time_spent,
    course.next_steps,
)


def sections(study: StudyData) -> list[Section]:
    """All sections that the study has something for, in the order in which a reader would ask."""
    return [section for part in PARTS if (section := part(study)) is not None]

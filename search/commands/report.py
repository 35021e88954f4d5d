"""`python -m search.report study.name=NAME`: write the report of a study as one page and as Markdown.

With `report.peers=[...]`, models of timm are measured first, and stand in it.
"""

from __future__ import annotations

import time
from pathlib import Path

import optuna
from omegaconf import DictConfig
from rich.console import Console

from models.architecture import check_number
from search import UserError
from search.commands.cli import construct, listed, set_up_logging
from search.files import write_text
from search.results.report import sections
from search.results.report.page import html, markdown
from search.results.report.study_data import StudyData
from search.study.storage import existing_folder, reading
from search.study.trial import finished_trials

REFRESH_SECONDS = 10


def main(cfg: DictConfig) -> None:
    """Write outputs/NAME/report.html and report.md; with `watch`, again and again until the user stops it."""
    folder = existing_folder(cfg.study.name)
    if cfg.watch is not None:
        construct(check_number, name="watch", value=cfg.watch, low=1)
    set_up_logging(Console(), folder / "run.log")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with reading(folder.name, cfg.storage.url) as study:
        if peers := listed(cfg.report.peers):
            from search.commands.peers import measure_peers  # torch takes seconds, and the report alone does without

            check_finished(study)
            measure_peers(peers, cfg.latency, study, folder)
        write(study, folder, refresh=cfg.watch is not None)
        print(f"saved {folder / 'report.html'} and {folder / 'report.md'}")
        while cfg.watch is not None:
            time.sleep(cfg.watch)
            write(study, folder, refresh=True)


def check_finished(study: optuna.Study) -> None:
    """Raises: UserError if there is nothing to report yet."""
    if not finished_trials(study):
        raise UserError(f"study {study.study_name} has no finished trial yet; continue the search first")


def write(study: optuna.Study, folder: Path, refresh: bool) -> None:
    """Write both files. Raises: UserError if there is nothing to report yet."""
    check_finished(study)
    parts = sections(StudyData(study, folder))
    title = f"Study {study.study_name}"
    texts = {
        "report.html": html(title, parts, REFRESH_SECONDS if refresh else None),
        "report.md": markdown(title, parts),
    }
    for name, text in texts.items():
        write_text(folder / name, text)

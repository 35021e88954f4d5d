"""`python -m search.dashboard study.name=NAME`: serve a study with optuna-dashboard, including our pictures and plots."""

from __future__ import annotations

import optuna
from omegaconf import DictConfig
from optuna_dashboard import run_server
from rich.console import Console

from models.architecture import check_int
from search import UserError
from search.commands.cli import construct, set_up_logging
from search.results.dashboard import DashboardPublisher
from search.study.storage import existing_folder, reading
from search.study.trial import finished_trials


def main(cfg: DictConfig) -> None:
    """Serve a study until the user stops it."""
    folder = existing_folder(cfg.study.name)
    construct(check_int, name="port", value=cfg.port, low=1, high=65535)
    set_up_logging(Console(), folder / "run.log")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with reading(folder.name, cfg.storage.url) as study:
        dashboard = DashboardPublisher(study, folder)
        if trials := finished_trials(study):
            dashboard.publish(trials)
        print(f"http://{cfg.host}:{cfg.port}/dashboard/studies/{study._study_id}  (Ctrl-C stops it)", flush=True)
        try:
            run_server(study._storage, cfg.host, cfg.port, artifact_store=dashboard.store)
        except OSError as error:
            raise UserError(
                f"host={cfg.host} port={cfg.port} cannot be served ({error.strerror}); choose another port"
            ) from error

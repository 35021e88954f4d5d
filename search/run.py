"""`python -m search.run +search=cpu_latency`: search architectures, or go on with a search where it stopped."""

from __future__ import annotations

from omegaconf import DictConfig

from search.cli import main
from search.engine.local import start_server


def run(cfg: DictConfig) -> None:
    if "address" not in cfg.engine:  # of a cluster
        start_server()  # it takes as long as the next line, on another core
    from search.session import run_search  # torch and what builds on it take ten seconds: --help need not wait

    run_search(cfg)


if __name__ == "__main__":
    main(run, "config", after_stop="stopped; the same command goes on from here")

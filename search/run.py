"""`python -m search.run +search=cpu_latency`: search architectures, or go on with a search where it stopped."""

from __future__ import annotations

from omegaconf import DictConfig

from search.cli import main


def run(cfg: DictConfig) -> None:
    from search.session import run_search  # torch and what builds on it take ten seconds: --help need not wait

    run_search(cfg)


if __name__ == "__main__":
    main(run, "config", after_stop="stopped; the same command goes on from here")

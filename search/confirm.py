"""`python -m search.confirm +search=cpu_latency`: settle which networks are on the front of a study."""

from __future__ import annotations

from omegaconf import DictConfig

from search.cli import main


def run(cfg: DictConfig) -> None:
    from search.confirmation import confirm  # torch and what builds on it take ten seconds: --help need not wait

    confirm(cfg)


if __name__ == "__main__":
    main(run, "confirm", after_stop="stopped; the same command goes on from here")

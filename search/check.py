"""`python -m search.check +search=cpu_latency`: does the accuracy that a search goes by mean anything?"""

from __future__ import annotations

from omegaconf import DictConfig

from search.cli import main


def run(cfg: DictConfig) -> None:
    from search.fidelity import check  # torch and what builds on it take ten seconds: --help need not wait

    check(cfg)


if __name__ == "__main__":
    main(run, "check", after_stop="stopped; the same command goes on from here")

"""`python -m search.measure model=litv2_s`: latency of timm models and exported architectures on this machine."""

from __future__ import annotations

from omegaconf import DictConfig

from search.cli import main


def run(cfg: DictConfig) -> None:
    from search.lab import measure  # torch and what builds on it take ten seconds: --help need not wait

    measure(cfg)


if __name__ == "__main__":
    main(run, "measure")

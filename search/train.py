"""`python -m search.train arch=FILE`: build a network from an exported file, train it, and report its test accuracy."""

from __future__ import annotations

from omegaconf import DictConfig

from search.cli import main


def train(cfg: DictConfig) -> None:
    from search.retrain import retrain  # torch and what builds on it take ten seconds: --help need not wait

    retrain(cfg)


if __name__ == "__main__":
    main(train, "train")

"""`python -m search.train arch=FILE`: train an exported network, and report its test accuracy."""

from __future__ import annotations

from search.commands.cli import main

if __name__ == "__main__":
    main("train")

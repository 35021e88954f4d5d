"""`python -m search.export study.name=NAME`: the front as YAML files, all trials as CSV, a plot; files to deploy."""

from __future__ import annotations

from search.commands.cli import main

if __name__ == "__main__":
    main("export")

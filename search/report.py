"""`python -m search.report study.name=NAME`: the report of a study, as one page and as Markdown."""

from __future__ import annotations

from search.commands.cli import main

if __name__ == "__main__":
    main("report")

"""`python -m search.dashboard study.name=NAME`: look into a study with optuna-dashboard, pictures and plots included."""

from __future__ import annotations

from search.commands.cli import main

if __name__ == "__main__":
    main("dashboard")

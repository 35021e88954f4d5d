"""`python -m search.confirm +search=cpu_latency`: settle which networks are on the front of a study."""

from __future__ import annotations

from search.commands.cli import main

if __name__ == "__main__":
    main("confirm")

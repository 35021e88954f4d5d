"""`python -m search.run +search=cpu_latency`: search architectures, or continue a search where it stopped."""

from __future__ import annotations

from search.commands.cli import main

if __name__ == "__main__":
    main("run")

"""`python -m search.check +search=cpu_latency`: do the accuracies of a search mean anything?"""

from __future__ import annotations

from search.commands.cli import main

if __name__ == "__main__":
    main("check")

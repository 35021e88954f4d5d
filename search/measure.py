"""`python -m search.measure model=litv2_s`: latency of timm models and exported architectures on this machine."""

from __future__ import annotations

from search.commands.cli import main

if __name__ == "__main__":
    main("measure")

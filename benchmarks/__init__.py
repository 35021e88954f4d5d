"""Side-by-side measurements, each `python -m benchmarks.NAME`, each comparing within one run."""

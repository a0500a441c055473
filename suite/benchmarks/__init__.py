"""Benchmarks of the suite's own parts, run by `python -m suite.bench`."""

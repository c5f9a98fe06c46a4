"""Benchmarks. Run them with `python -m tests.benchmarks`; pytest does not run them."""

"""Measurements by command, never by test: `python -m tests.benchmarks`."""

"""Evaluation: metrics, baselines, held-out pairs, tables and picture sheets."""

"""Stages of `tests.benchmarks.gpu_acceptance`. Each is a function `run(options, rows)` in its module."""

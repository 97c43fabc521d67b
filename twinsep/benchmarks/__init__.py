"""Benchmarks of speed and memory, one file each; :mod:`twinsep.benchmarks.suite` runs them."""

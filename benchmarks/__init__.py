"""Benchmarks: each prints ratios of two things measured in one run, for absolute figures depend on the machine."""

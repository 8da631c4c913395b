"""Benchmarks that compare in one run; see `benchmarks/README.md`."""

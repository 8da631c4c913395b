"""What the benchmarks compare with; needs the extra `interop`."""

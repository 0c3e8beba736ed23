"""Benchmarks: fastconv, its peers and the machine's own limits, on the same cases."""

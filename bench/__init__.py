"""Benchmarks: fastconv, its peers and the machine's own limits, on one table of convolutions (`cases.csv`)."""

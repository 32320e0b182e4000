"""The groups of measurements, by the names that --only takes; each is measure(bench)."""

"""Benchmarks: run by hand, beside whichever peers are on PATH; nothing here is a test."""

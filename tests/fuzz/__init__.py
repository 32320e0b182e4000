"""Fuzzing of what reads untrusted bytes; see `python -m tests.fuzz --help`."""

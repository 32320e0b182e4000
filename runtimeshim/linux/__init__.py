"""The kernel's interfaces that CPython lacks: the only package of the project with ctypes in it."""

"""Everything that becomes processes: spawner, shims, the OCI executor and its command line.

An import costs every `runtimeshim run` its time. So what is on the way to a container's start goes
without typing, re, enum, collections, contextlib, json, signal and socket, which took as long as
all the rest: types are imported for the type checker only (`TYPE_CHECKING`, which is False, and
which it takes for True), and the C modules below the last three are used directly.
tests/unit/test_start_imports.py holds it.
"""

"""The OCI executor: from a runtime-spec (1.3) to execve, one module a concern.

All of it runs in forks of the spawner, so it imports only the standard library's small modules
and runtimeshim.linux, and imports nothing later.
"""

"""Seccomp filters of containers: compiled once for each profile, kept on disk by its digest.

Compiling the default profile costs more than everything else of a start; the result is the same
for the same profile, libseccomp and machine, and the directory does not outlive a boot.
"""

from __future__ import annotations

import marshal
import os
import time

from runtimeshim.linux import seccomp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any


def load() -> None:
    """Import what `prepare` needs of a profile: in the init, after the fork, it would be too late.

    OpenSSL comes along, so a container without a profile goes without.
    """
    import hashlib  # noqa: F401 - kept by sys.modules

    seccomp.load_library()


def prepare(profile: Mapping[str, Any] | None, cache: str | None) -> Callable[[], int] | None:
    """Return what installs the filter of linux.seccomp, allocated ahead; None without one.

    It returns the notify fd where the profile notifies.
    """
    if not profile:
        return None
    program = seccomp.compile_profile(profile) if cache is None else _cached(profile, cache)
    flags = list(profile.get("flags") or ())
    if seccomp.needs_listener(profile):
        flags.append("SECCOMP_FILTER_FLAG_NEW_LISTENER")
    return seccomp.installer(program, flags)


def _cached(profile: Mapping[str, Any], cache: str) -> bytes:
    import hashlib  # as `load` has done

    # Version 2 has no references to what came before: equal profiles have equal bytes.
    digest = hashlib.sha256(marshal.dumps(dict(profile), 2)).hexdigest()
    path = f"{cache}/{digest}.bpf"
    try:
        with open(path, "rb") as stored:
            return stored.read()
    except FileNotFoundError:
        program = seccomp.compile_profile(profile)
        _store(path, program)
        return program


def _store(path: str, program: bytes) -> None:
    """Write a file whole or not at all; several inits may do it at once."""
    os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
    new = f"{path}.{os.getpid()}.{time.monotonic_ns()}"
    with open(new, "wb") as out:
        out.write(program)
    os.rename(new, path)

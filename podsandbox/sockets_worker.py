"""Makes sockets in a pod's network namespace; runs in a short-lived fork of the spawner.

A socket belongs to the namespace that its maker is in, for good: whoever gets it connects through
the pod's loopback without entering anything.
"""

from __future__ import annotations

import errno
import os
import socket
from typing import Any

from runtimeshim.linux import syscalls

_FAMILIES = {"ipv4": socket.AF_INET, "ipv6": socket.AF_INET6}


def main(args: dict[str, Any], fds: list[int]) -> tuple[dict[str, Any], list[int]]:
    """Make one TCP socket of each family that the kernel has.

    netns       path of the pinned network namespace

    Returns {"families": names of "ipv4" and "ipv6"} and their sockets, not connected.
    """
    netns = os.open(args["netns"], os.O_RDONLY | os.O_CLOEXEC)
    syscalls.setns(netns, syscalls.CLONE_NEWNET)
    made: dict[str, int] = {}
    for name, family in _FAMILIES.items():
        try:
            made[name] = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC).detach()
        except OSError as err:
            if err.errno != errno.EAFNOSUPPORT:
                raise
    return {"families": list(made)}, list(made.values())

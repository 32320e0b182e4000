"""linux.seccomp.listenerPath: whom the notify fd of the filter goes to.

The filter is in force when its fd comes into being. So the connection and the message are made
before, and what is left is one sendmsg.
"""

from __future__ import annotations

import _socket
import os

from runtimeshim import json_text
from runtimeshim.linux import seccomp, syscalls
from runtimeshim.oci.errors import StageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any


def connect(profile: Mapping[str, Any] | None) -> int | None:
    """Connect to the profile's listener, on the host; None when nothing is notified."""
    if not profile or not seccomp.needs_listener(profile):
        return None
    path = profile["listenerPath"]
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        connection.connect(path)
    except OSError as err:
        connection.close()
        raise StageError("seccomp", f"linux.seccomp.listenerPath: {path}: {err.strerror}") from err
    return connection.detach()


def host_pid() -> int:
    """Return the caller's pid on the host, as long as /proc is the host's."""
    return int(os.readlink("/proc/self"))


def wrap(
    install: Callable[[], int],
    connection: int,
    profile: Mapping[str, Any],
    state: Mapping[str, Any],
) -> Callable[[], None]:
    """Return what installs a filter and sends its fd: a container process state, and closes.

    See config-linux.md, "The Container Process State".
    """
    message = {
        "ociVersion": state["ociVersion"],
        "fds": ["seccompFd"],
        "pid": state["pid"],
        "metadata": profile.get("listenerMetadata") or "",
        "state": dict(state),
    }
    send = syscalls.prepare_send_fd(connection, json_text.dumps(message).encode())

    def install_and_send() -> None:
        send(install())

    return install_and_send

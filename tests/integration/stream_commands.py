"""Execs and attaches of a daemon under test, by their URLs, and what tests do with them."""

from __future__ import annotations

import threading
from collections.abc import Callable

from api.cri import api_pb2 as cri
from tests.integration import leaks
from tests.integration.daemon import RPC_SECONDS
from tests.integration.pods import Pods
from tests.integration.stream_clients import Command

Opener = Callable[..., Command]

OUT = "stdout stderr"
ALL = "stdin stdout stderr"
TERMINAL = "stdin stdout resize"


def exec_url(pods: Pods, container: str, *command: str, streams: str, tty: bool = False) -> str:
    wanted = {name: True for name in streams.split() if name != "resize"}
    request = cri.ExecRequest(container_id=container, cmd=command, tty=tty, **wanted)
    return str(pods.daemon.runtime.Exec(request, timeout=RPC_SECONDS).url)


def attach_url(pods: Pods, container: str, *, streams: str, tty: bool = False) -> str:
    wanted = {name: True for name in streams.split() if name != "resize"}
    request = cri.AttachRequest(container_id=container, tty=tty, **wanted)
    return str(pods.daemon.runtime.Attach(request, timeout=RPC_SECONDS).url)


def processes(command: str) -> list[str]:
    return [name for name in leaks.session_processes().values() if name.endswith(command)]


def writing(command: Command, data: bytes) -> threading.Thread:
    """Write in a thread, as a client does that reads meanwhile; then end the input."""

    def write() -> None:
        try:
            command.write(data)
            command.end_stdin()
        except OSError:
            pass  # the command has ended before it has read everything

    thread = threading.Thread(target=write)
    thread.start()
    return thread

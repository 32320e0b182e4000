"""A shim's everyday work, done once by the template: what CPython notes of it is shared then.

At their first runs CPython specialises the instructions of functions and caches the look-ups of
attributes, in memory that each shim would write to anew, and keep a copy of for its life.
"""

from __future__ import annotations

import gc
import os
import signal
import socket

from runtimeshim import wire
from runtimeshim.shim.handler import Handler
from runtimeshim.shim.log import LogFile
from runtimeshim.shim.supervisor import Supervisor
from runtimeshim.shim.task import Task

# CPython 3.11 specialises a function at its eighth call (Include/cpython/code.h).
TIMES = 10


def rehearse(handler: Handler) -> None:
    """Supervise a container that there is not, in a process that has nothing else to do."""
    for _ in range(TIMES):
        _rehearse_once(handler)
    signal.set_wakeup_fd(-1)
    # Not collected: in the holes of that, what a shim allocates would be scattered (100 KB more).
    gc.freeze()


def _rehearse_once(handler: Handler) -> None:
    out_r, out_w = os.pipe2(os.O_CLOEXEC)
    err_r, err_w = os.pipe2(os.O_CLOEXEC)
    fds = {"stdout": out_r, "stderr": err_r, "pidfd": os.pidfd_open(os.getpid())}
    options = {"stdin_once": False, "seccomp_cache": "", "spawner": "", "log_path": None}
    request = {"bundle": "", "container": "", "options": {**options, "runtime": None}}
    made = {"pid": 0, "cgroup": "/none", "hooks": False, "timings": {}, "warnings": []}
    kept, spawner = wire.pair()
    client, daemon = wire.pair()
    sync, init = wire.pair()
    fds["sync"] = sync.detach()
    with spawner, daemon:
        task = Task(handler, request, made, fds)
        supervised = Supervisor(task, LogFile(None), request, kept)
        supervised.keep()
        supervised.answer_created(client, 1)
        wire.receive(daemon)
        wire.send(daemon, {"op": "start", "id": 2})
        init.shutdown(socket.SHUT_WR)  # as if it had executed its program
        os.write(out_w, b"a line\nand")
        os.write(err_w, b"another\n")
        supervised.rehearse(client)
        init.close()
        _close_received(spawner)
    for fd in (out_w, err_w):
        os.close(fd)


def _close_received(sock: socket.socket) -> None:
    received = wire.receive(sock)
    for fd in received[1] if received is not None else ():
        os.close(fd)

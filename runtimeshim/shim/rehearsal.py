"""Everyday work, done before there is any: to be quick and small when there is.

A shim's, by the template: at their first runs CPython specialises the instructions of functions and
caches the look-ups of attributes, in memory that each shim would write to anew, and keep a copy of
for its life.

A creator's and an init's, by themselves while they wait: a page that a process writes to after its
fork is copied for it first, and CPython writes to whatever it looks at. These copies would take as
long as all else of a creation (2 µs each, measured).
"""

from __future__ import annotations

import gc
import os
import signal
import socket

from runtimeshim import json_text, wire
from runtimeshim.linux import capabilities, mounts, seccomp, syscalls
from runtimeshim.linux.cgroups import devices
from runtimeshim.oci import devices as oci_devices
from runtimeshim.oci import mount_options, resolve
from runtimeshim.oci import spec as oci_spec
from runtimeshim.oci.default_spec import default_spec
from runtimeshim.oci.namespaces import Namespaces
from runtimeshim.shim.handler import Handler
from runtimeshim.shim.log import LogFile
from runtimeshim.shim.supervisor import Supervisor
from runtimeshim.shim.task import Task

# CPython 3.11 specialises a function at its eighth call (Include/cpython/code.h).
TIMES = 10

_SPEC = json_text.dumps(default_spec("1.3.0"))


def rehearse(handler: Handler) -> None:
    """Supervise a container that there is not, in a process that has nothing else to do."""
    for _ in range(TIMES):
        _rehearse_once(handler)
    signal.set_wakeup_fd(-1)
    # Not collected: in the holes of that, what a shim allocates would be scattered (100 KB more).
    gc.freeze()


def rehearse_create() -> None:
    """Read and check a specification, and what follows without a trace, in a creator."""
    spec = json_text.loads(_SPEC)
    oci_spec.check(spec)
    Namespaces(spec["linux"]["namespaces"], spec["linux"]).close()
    for rule in devices.allowlist(()):
        rule.line()


def rehearse_init() -> None:
    """Take apart what an init is told, and fill a root that is nowhere mounted."""
    spec = json_text.loads(_SPEC)
    capabilities.prepare(spec["process"]["capabilities"])
    seccomp.installer(b"")
    syscalls.prepare_execve("", spec["process"]["args"], spec["process"]["env"])
    root = mounts.new_mount("tmpfs", [("source", "rehearsal")])
    for mount in spec["mounts"]:
        mount_options.parse(mount["options"], mount["type"], "mounts")
        os.close(resolve.make_directory(root, mount["destination"]))
    oci_devices.fill(root, ())
    os.close(root)


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

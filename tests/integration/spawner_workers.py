"""Workers that the spawner's tests run: what can happen in a fork."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any


def main(args: dict[str, Any], fds: list[int]) -> tuple[dict[str, Any], list[int]]:
    """Do what args["do"] says."""
    match args["do"]:
        case "echo":
            return {"args": args, "fds": len(fds)}, []
        case "pipe":
            read, write = os.pipe()
            os.write(write, b"from the worker")
            return {}, [read]
        case "raise":
            raise FileNotFoundError(2, "No such thing", "/nowhere")
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "hang":
            os.write(fds[0], b"%d" % os.getpid())
            time.sleep(1000)
        case "facts":
            return facts(), []
    return {}, []


def facts() -> dict[str, Any]:
    """Return what a container's init would inherit."""
    return {
        "environ": dict(os.environ),
        "fds": sorted(os.listdir("/proc/self/fd")),
        "modules": sorted(sys.modules),
        "exe": os.readlink("/proc/self/exe"),
        "pid": os.getpid(),
        "ppid": os.getppid(),
        "threads": len(os.listdir("/proc/self/task")),
    }

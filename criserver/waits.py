"""What a stage of a container's or a pod's operation waits for, in words: looked up when asked."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from criserver.bundle import read_spec
from runtimeshim.linux import process_state
from runtimeshim.linux.process_state import UNINTERRUPTIBLE

if TYPE_CHECKING:
    from criserver.runtime import Runtime


def shim(pid: int) -> str:
    """Say what a shim and what it has started are doing: an init that is made, a hook that runs."""
    below = process_state.look_at(process_state.descendants(pid))
    return "; ".join(map(str, below or process_state.look_at([pid])))


def creator(runtime: Runtime, container_id: str) -> str:
    """Say what the shim of a container that is to be started is doing."""
    found = runtime.shims.get(container_id)
    init = found and process_state.look(found.pid)
    if not init:
        return "its init has ended"
    return shim(process_state.parent(init.pid))


def signalled(runtime: Runtime, container_id: str, number: int) -> str:
    """Say why a container's init is still there after a signal."""
    found = runtime.shims.get(container_id)
    init = found and process_state.look(found.pid)
    if not init:
        return "its init has ended; its end is being recorded"
    sent = signal.Signals(number).name if number in set(signal.Signals) else str(number)
    why = init.disregards(number)
    return f"{sent} was sent; {init}" + (f": {why}" if why else "")


def killed(runtime: Runtime, container_id: str) -> str:
    """Say which processes of a container that was killed are still there."""
    states = process_state.look_at(_pids(runtime, container_id))
    if not states:
        return "its processes have ended; its shim records the end"
    stuck = [state for state in states if state.state == UNINTERRUPTIBLE]
    words = "; ".join(map(str, stuck or states))
    reason = f": {stuck[0].disregards(signal.SIGKILL)}" if stuck else ""
    return f"SIGKILL was sent; {words}{reason}"


def stuck(runtime: Runtime, container_id: str) -> str:
    """Name the processes of a container that hang in the kernel; "" if none does."""
    states = process_state.look_at(_pids(runtime, container_id), only=UNINTERRUPTIBLE)
    return "; ".join(map(str, states))


def _pids(runtime: Runtime, container_id: str) -> list[int]:
    spec = read_spec(runtime.bundle(container_id))
    path = (spec or {}).get("linux", {}).get("cgroupsPath", "")
    try:
        return runtime.cgroups.pids(path) if path else []
    except OSError:  # it has just gone
        return []

"""What daemons and shims of different builds say to each other is only ever added to."""

from __future__ import annotations

import inspect
import re

from runtimeshim import spawner, wire
from runtimeshim.shim import execs, keeper, supervisor

# What was there from the first protocol on. Nothing may leave these sets.
SHIM_OPERATIONS = {
    "start", "state", "kill", "exec", "exec-kill", "exec-resize", "attach", "resize", "reopen-log"
}  # fmt: skip
SHIM_EVENTS = {"exit", "oom", "exec-exit"}
STATE_FIELDS = {"protocol", "pid", "running", "timings", "warnings", "log_bytes_lost"}
WARD_OPERATIONS = {"ward", "keep", "started", "drop", "exit", "release"}


def operations() -> set[str]:
    table = inspect.getsource(supervisor.Supervisor.__init__).partition("_operations")[2]
    return set(re.findall(r'"([a-z-]+)": self\.', table))


def test_a_shim_knows_every_operation_that_one_ever_knew() -> None:
    assert operations() == SHIM_OPERATIONS | set(wire.SINCE)


def test_every_later_operation_came_with_a_protocol_that_was_reached() -> None:
    assert not SHIM_OPERATIONS & set(wire.SINCE)
    assert all(1 < since <= wire.PROTOCOL for since in wire.SINCE.values())


def test_every_field_and_event_of_old_is_there() -> None:
    described = inspect.getsource(supervisor.Supervisor._describe)
    assert set(re.findall(r'"([a-z_]+)":', described)) >= STATE_FIELDS
    sent = inspect.getsource(supervisor) + inspect.getsource(execs)
    assert set(re.findall(r'"event": "([a-z-]+)"', sent)) >= SHIM_EVENTS


def test_a_spawner_takes_what_every_shim_leaves_with_it() -> None:
    known = set(re.findall(r'case "([a-z]+)"', inspect.getsource(spawner)))
    assert known >= WARD_OPERATIONS | {"hello", "retire"}
    assert set(re.findall(r'"op": "([a-z]+)"', inspect.getsource(keeper))) == WARD_OPERATIONS

"""Capability sets applied to a real process and read back from /proc."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from runtimeshim.linux import capabilities, syscalls
from runtimeshim.linux.capabilities import prepare, to_mask

pytestmark = pytest.mark.integration

NAMES = ["CAP_CHOWN", "CAP_NET_BIND_SERVICE", "CAP_CHECKPOINT_RESTORE"]
MASK = to_mask(NAMES)


def sets_after(action: Callable[[], None]) -> dict[str, int]:
    """Run `action` in a child and return its CapXxx of /proc/self/status."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            action()
            os.write(writer, Path("/proc/self/status").read_bytes())
            os._exit(0)
        finally:
            traceback.print_exc()
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader) as file:
        status = file.read()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    fields = (line.split(":") for line in status.splitlines() if line.startswith("Cap"))
    return {name.removeprefix("Cap"): int(value, 16) for name, value in fields}


def test_current_is_what_proc_says() -> None:
    shown = sets_after(lambda: None)
    sets = capabilities.current()
    assert (sets.bounding, sets.effective, sets.permitted, sets.inheritable) == (
        shown["Bnd"],
        shown["Eff"],
        shown["Prm"],
        shown["Inh"],
    )


def test_all_sets_as_root() -> None:
    def action() -> None:
        kinds = ("bounding", "effective", "permitted", "inheritable")
        sets, warnings = prepare(dict.fromkeys(kinds, NAMES))
        assert not warnings
        capabilities.apply_bounding(sets.bounding)
        capabilities.apply(sets)

    shown = sets_after(action)
    assert shown == {"Inh": 0, "Prm": MASK, "Eff": MASK, "Bnd": MASK, "Amb": 0}


def test_no_capability_at_all() -> None:
    def action() -> None:
        sets, _ = prepare({})
        capabilities.apply_bounding(sets.bounding)
        capabilities.apply(sets)

    assert set(sets_after(action).values()) == {0}


def test_ambient_survives_the_change_to_another_user() -> None:
    def action() -> None:
        kinds = ("bounding", "effective", "permitted", "ambient")
        sets, _ = prepare(dict.fromkeys(kinds, NAMES))
        capabilities.apply_bounding(sets.bounding)
        syscalls.set_keepcaps(True)
        os.setresgid(1000, 1000, 1000)
        os.setresuid(1000, 1000, 1000)
        capabilities.apply(sets)

    shown = sets_after(action)
    assert shown == {"Inh": MASK, "Prm": MASK, "Eff": MASK, "Bnd": MASK, "Amb": MASK}


def test_every_capability_that_the_kernel_knows_has_a_name() -> None:
    assert capabilities.last() < len(capabilities.KNOWN)

"""How processes end: whether one is over, and what its wait status says (man 2 waitid)."""

from __future__ import annotations

import os
import select


def has_ended(pidfd: int) -> bool:
    """Tell whether a process is over, with all its threads."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def status_of(found: os.waitid_result) -> int:
    """Return the wait status that waitpid(2) has for an end that waitid(2) has found."""
    if found.si_code == os.CLD_EXITED:
        return found.si_status << 8
    return found.si_status | (0x80 if found.si_code == os.CLD_DUMPED else 0)


def exit_code(status: int) -> int:
    """Return the shell's code of a wait status: 128 + signal for a death by signal."""
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code

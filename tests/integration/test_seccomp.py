"""Filters installed on real processes."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from runtimeshim.linux import seccomp, syscalls
from runtimeshim.oci.seccomp_default import default_profile

pytestmark = pytest.mark.integration

UNAMES = {"names": ["uname"], "action": "SCMP_ACT_ERRNO", "errnoRet": 77}
MACHINE = os.uname().machine


def in_child(action: Callable[[], int]) -> int:
    """Run `action` in a child; returns its exit code, negative for a signal."""
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(action())
        finally:
            traceback.print_exc()
            os._exit(255)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_denied_call_fails_with_the_profiles_errno() -> None:
    program = seccomp.compile_profile({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [UNAMES]})

    def action() -> int:
        assert seccomp.installer(program)() == 0
        try:
            os.uname()
        except OSError as err:
            return err.errno or 1
        return 0

    assert in_child(action) == 77


def test_no_privilege_is_needed_with_no_new_privs_and_a_clear_error_without() -> None:
    program = seccomp.compile_profile({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [UNAMES]})

    def action() -> int:
        os.setresuid(1000, 1000, 1000)
        install = seccomp.installer(program)
        try:
            install()
        except PermissionError as err:
            assert "seccomp(SET_MODE_FILTER)" in str(err)
        else:
            return 1
        syscalls.set_no_new_privs()
        install()
        status = Path("/proc/self/status").read_text()
        return 0 if "Seccomp:\t2" in status else 2

    assert in_child(action) == 0


@pytest.mark.parametrize("flag", ["TSYNC", "LOG", "SPEC_ALLOW"])
def test_flags_are_taken_by_the_kernel(flag: str) -> None:
    program = seccomp.compile_profile({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [UNAMES]})
    assert in_child(seccomp.installer(program, [f"SECCOMP_FILTER_FLAG_{flag}"])) == 0


def test_a_notified_call_gives_a_listener() -> None:
    notify = {"names": ["uname"], "action": "SCMP_ACT_NOTIFY"}
    profile = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [notify]}
    assert seccomp.needs_listener(profile)
    program = seccomp.compile_profile(profile)

    def action() -> int:
        fd = seccomp.installer(program, ["SECCOMP_FILTER_FLAG_NEW_LISTENER"])()
        return 0 if "seccomp" in os.readlink(f"/proc/self/fd/{fd}") else 1

    assert in_child(action) == 0


def test_kill_process_kills() -> None:
    kill = {"names": ["uname"], "action": "SCMP_ACT_KILL_PROCESS"}
    program = seccomp.compile_profile({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [kill]})

    def action() -> int:
        seccomp.installer(program)()
        return len(os.uname())

    assert in_child(action) == -signal.SIGSYS


def test_the_default_profile_runs_programs_and_stops_what_it_should() -> None:
    program = seccomp.compile_profile(default_profile([], MACHINE))

    def action() -> int:
        install = seccomp.installer(program)
        libc = ctypes.CDLL(None, use_errno=True)
        install()
        if libc.unshare(syscalls.CLONE_NEWUTS) == 0 or ctypes.get_errno() != errno.EPERM:
            return 1
        if libc.syscall(4000) == 0 or ctypes.get_errno() != errno.ENOSYS:
            return 2
        return os.execv("/bin/sh", ["sh", "-c", "ls / | cat >/dev/null && exit 42"])

    assert in_child(action) == 42


def test_between_the_filter_and_execve_only_execve_is_called() -> None:
    """The strictest filter that can start a program: nothing but execve and exit."""
    rules = [
        {"names": ["execve", "exit_group"], "action": "SCMP_ACT_ALLOW"},
    ]
    program = seccomp.compile_profile({"defaultAction": "SCMP_ACT_KILL_PROCESS", "syscalls": rules})

    def action() -> int:
        libc = ctypes.CDLL(None, use_errno=True)
        arguments = (ctypes.c_char_p * 2)(b"/nonexistent", None)
        environment = (ctypes.c_char_p * 1)(None)
        install = seccomp.installer(program)
        install()
        libc.execve(b"/nonexistent", arguments, environment)
        os._exit(43)

    assert in_child(action) == 43

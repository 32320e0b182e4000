"""The counts of system calls that the budget is held to, from strace's own lines."""

from __future__ import annotations

import pytest

from tests.bench import budget
from tests.bench.counts import COUNTED, calls, count, without_checkpoint

FORK = "10 1.000001 clone(child_stack=NULL, flags=CLONE_CHILD_SETTID|SIGCHLD) = 11"
THREAD = "10 1.000002 clone3({flags=CLONE_VM|CLONE_THREAD, exit_signal=0}, 88) = 12"
EXEC = (
    '11 1.000003 execve("/bin/true", ["true"], ["PATH=/bin"] <unfinished ...>',
    "11 1.000009 <... execve resumed>) = 0",
)
FAILED_EXEC = '11 1.000003 execve("/bin/x", ["x"], []) = -1 ENOENT (No such file or directory)'
SYNC = "10 1.000004 syncfs(24</var/lib/criserver>) = 0"
FRAME = (
    r'10 1.000005 pwrite64(9</var/criserver.db-wal>, "\0\0\0\17\0\0\0\0G\324R\334"..., 24, 67) = 24'
)
FRAME_BEFORE_A_DIGIT = FRAME.replace(r"\0G", r"\0007")
LAST_FRAME = (
    r'10 1.000006 pwrite64(9</var/criserver.db-wal>, "\0\0\0\21\0\0\0.G\324R\334"..., 24, 68) = 24'
)
PAGE = r'10 1.000007 pwrite64(9</var/criserver.db-wal>, "\r\0\0\0\1\17A\0\17A"..., 4096, 99) = 4096'
NETLINK = (
    "10 1.000008 sendto(27<socket:[718]>, [[{nlmsg_len=48, nlmsg_type=RTM_NEWLINK}, {}],"
    " [{nlmsg_len=44, nlmsg_type=RTM_SETLINK}, {}]], 92, 0, NULL, 0) = 92"
)
ANSWER = "10 1.000009 recvmsg(27<socket:[718]>, {msg_iov=[{iov_base=[{nlmsg_len=36}]}]}, 0) = 36"
MOUNT = '11 1.000010 mount("proc", "/proc", "proc", 0, NULL) = 0'
READ = r'10 1.000011 read(8</etc/hosts>, "1) = 9\n", 4096) = 7'
AGAIN = "10 1.000012 recvmsg(21<socket:[7]>, {msg_namelen=0}, 0) = -1 EAGAIN (Resource…)"
OPENED = '11 1.000013 open_tree(AT_FDCWD</>, "/x", OPEN_TREE_CLONE) = 5</x>'


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ((FORK, THREAD), {"forks": 1}),
        (EXEC, {"execs": 1}),
        ((FAILED_EXEC,), {}),
        ((SYNC,), {"syncs": 1}),
        ((FRAME,), {"bytes": 24}),
        ((FRAME_BEFORE_A_DIGIT,), {"bytes": 24}),
        ((FRAME, LAST_FRAME, PAGE), {"commits": 1, "bytes": 24 + 24 + 4096}),
        ((NETLINK,), {"netlink": 2, "bytes": 92}),
        ((ANSWER,), {"bytes": 36}),
        ((MOUNT, OPENED), {"mounts": 2}),
        ((READ, AGAIN), {"bytes": 7}),
        (("strace: Process 11 attached", "10 1.0 +++ exited with 0 +++"), {}),
    ],
)
def test_what_a_trace_holds_is_counted(lines: tuple[str, ...], expected: dict[str, int]) -> None:
    assert {what: number for what, number in count(calls(lines)).items() if number} == expected


def test_a_call_that_was_interrupted_in_the_trace_began_when_it_began() -> None:
    (call,) = calls(EXEC)
    assert call.began == 1.000003


def test_the_folding_of_the_databases_log_is_no_operations() -> None:
    log_sync = "10 1.000014 fdatasync(9</var/criserver.db-wal>) = 0"
    written = r'10 1.000016 pwrite64(8</var/criserver.db>, "\r\0"..., 4096, 0) = 4096'
    sync = "10 1.000017 fdatasync(8</var/criserver.db>) = 0"
    everything = calls([SYNC, LAST_FRAME, log_sync, written, sync])
    assert list(without_checkpoint(everything)) == list(calls([SYNC, LAST_FRAME]))


BUDGET = {"StopContainer": {"forks": 2, "bytes": 1000}}


@pytest.mark.parametrize(
    ("counted", "expected"),
    [
        ({"forks": 2, "bytes": 1100}, []),
        ({"forks": 3, "bytes": 1000}, ["StopContainer: forks rose from 2 to 3"]),
        ({"forks": 2, "bytes": 1101}, ["StopContainer: bytes rose from 1000 to 1101"]),
        ({"forks": 2, "bytes": 9, "execs": 0}, ["StopContainer: execs: 0, and no budget"]),
        ({"forks": 2}, ["StopContainer: bytes is not counted"]),
    ],
)
def test_what_exceeds_its_budget_is_named(counted: dict[str, int], expected: list[str]) -> None:
    assert budget.exceeded({"StopContainer": counted}, BUDGET) == expected


def test_what_is_well_under_its_budget_is_told() -> None:
    counted = {"StopContainer": {"forks": 1, "bytes": 900}}
    assert budget.well_under(counted, BUDGET) == ["StopContainer: forks fell from 2 to 1"]
    assert budget.exceeded(counted, BUDGET) == []


def test_a_budget_is_read_as_it_was_written(tmp_path) -> None:
    budget.write(BUDGET, tmp_path / "budget.toml")
    assert budget.read(tmp_path / "budget.toml") == BUDGET


def test_every_operation_has_a_budget_of_everything() -> None:
    assert all(set(counted) == set(COUNTED) for counted in budget.read().values())

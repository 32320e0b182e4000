"""Counters of processes, interfaces and devices, from files and from the running kernel."""

from __future__ import annotations

import os
import resource
import socket
from pathlib import Path

import pytest

from runtimeshim.linux import processes
from runtimeshim.linux.block_devices import device_name, device_of
from runtimeshim.linux.network_counters import InterfaceCounters, parse_counters

NET_DEV = """\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo
    lo:     100       1    0    0    0     0          0         0      100       1    0    0    0
  eth0:    1000      10    1    2    0     0          0         3     2000      20    3    4    0
a:b.7:    5 6 7 8 0 0 0 0 9 10 11 12 0 0 0 0
"""


def test_interfaces_without_the_loopback() -> None:
    assert parse_counters(NET_DEV) == [
        InterfaceCounters("eth0", 1000, 10, 1, 2, 2000, 20, 3, 4),
        InterfaceCounters("a:b.7", 5, 6, 7, 8, 9, 10, 11, 12),
    ]


def test_descriptors_and_sockets_of_a_process() -> None:
    before = processes.descriptors([os.getpid()])
    first, second = socket.socketpair()
    read, write = os.pipe()
    try:
        after = processes.descriptors([os.getpid()])
    finally:
        first.close()
        second.close()
        os.close(read)
        os.close(write)
    assert (after.open - before.open, after.sockets - before.sockets) == (4, 2)


def test_a_process_that_has_ended_holds_nothing() -> None:
    assert processes.descriptors([1 << 22]) == (0, 0)
    assert processes.max_open_files(1 << 22) is None


def test_a_process_with_very_many_descriptors_is_counted_and_not_walked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(processes, "MAX_DESCRIPTORS", 1)
    first, second = socket.socketpair()
    try:
        found = processes.descriptors([os.getpid()])
    finally:
        first.close()
        second.close()
    assert found.sockets == 0
    assert found.open >= 2


def test_the_limit_of_open_files() -> None:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    expected = -1 if soft == resource.RLIM_INFINITY else soft
    assert processes.max_open_files(os.getpid()) == expected


def test_a_device_without_a_name_is_its_number() -> None:
    assert device_name(0, 12345) == "0:12345"


def test_the_device_of_a_path(tmp_path: Path) -> None:
    number = tmp_path.stat().st_dev
    assert device_of(str(tmp_path)) == device_name(os.major(number), os.minor(number))

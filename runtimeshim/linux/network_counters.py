"""What the interfaces of a network namespace have carried, from /proc/net/dev (man 5 proc)."""

from __future__ import annotations

import os
from typing import NamedTuple

from runtimeshim.linux.syscalls import CLONE_NEWNET, setns

# Of the calling thread: a thread may be in another namespace than its process.
_COUNTERS = "/proc/thread-self/net/dev"
_OWN = "/proc/thread-self/ns/net"


class InterfaceCounters(NamedTuple):
    """One interface since it was made."""

    name: str
    rx_bytes: int
    rx_packets: int
    rx_errors: int
    rx_dropped: int
    tx_bytes: int
    tx_packets: int
    tx_errors: int
    tx_dropped: int


def read_counters(netns: str) -> list[InterfaceCounters]:
    """Return the counters of all interfaces but the loopback in the namespace bound at `netns`.

    The calling thread enters the namespace and comes back; it must not be one on which others
    rely meanwhile. Raises OSError: FileNotFoundError when the namespace is gone.
    """
    target = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
    try:
        home = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
        try:
            setns(target, CLONE_NEWNET)
            try:
                content = _read(_COUNTERS)
            finally:
                setns(home, CLONE_NEWNET)
        finally:
            os.close(home)
    finally:
        os.close(target)
    return parse_counters(content)


def _read(path: str) -> str:
    with open(path, encoding="ascii", errors="replace") as file:
        return file.read()


def parse_counters(content: str) -> list[InterfaceCounters]:
    """Parse /proc/net/dev: two lines of heading, then "name:" and 16 numbers a line."""
    found = []
    for line in content.splitlines()[2:]:
        name, _, numbers = line.rpartition(":")
        rx_bytes, rx_packets, rx_errors, rx_dropped, *rest = map(int, numbers.split())
        name = name.strip()
        if name != "lo":
            sent = rest[4:8]
            found.append(
                InterfaceCounters(name, rx_bytes, rx_packets, rx_errors, rx_dropped, *sent)
            )
    return found

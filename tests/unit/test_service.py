"""What systemd hears of the daemon, over a socket as its own."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from criserver.service import Service


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(10)
        yield listener


def environment(systemd: socket.socket, **more: str) -> dict[str, str]:
    return {"NOTIFY_SOCKET": systemd.getsockname(), "HOME": "/", **more}


def test_the_states_are_told_and_the_variables_are_gone(systemd: socket.socket) -> None:
    variables = environment(systemd, WATCHDOG_USEC="1000000")
    service = Service(variables)
    assert variables == {"HOME": "/"}
    service.ready()
    service.stopping()
    assert (systemd.recv(100), systemd.recv(100)) == (b"READY=1", b"STOPPING=1")


def test_a_reload_is_told_with_its_outcome(systemd: socket.socket) -> None:
    service = Service(environment(systemd))
    before = time.monotonic_ns() // 1000
    service.reloading()
    state, _, since = systemd.recv(100).decode().partition("\nMONOTONIC_USEC=")
    assert state == "RELOADING=1"
    assert before <= int(since) <= time.monotonic_ns() // 1000
    service.reloaded("reloaded, 2 settings changed")
    assert systemd.recv(100) == b"READY=1\nSTATUS=reloaded, 2 settings changed"


async def test_the_watchdog_is_fed(systemd: socket.socket) -> None:
    service = Service(environment(systemd, WATCHDOG_USEC="2000", WATCHDOG_PID=str(os.getpid())))
    task = asyncio.create_task(service.keep_alive())
    fed = [await asyncio.to_thread(systemd.recv, 100) for _ in range(3)]
    task.cancel()
    assert fed == [b"WATCHDOG=1"] * 3


@pytest.mark.parametrize("variables", [{}, {"WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"}])
async def test_a_watchdog_that_is_not_ours_is_not_fed(
    systemd: socket.socket, variables: dict[str, str]
) -> None:
    await asyncio.wait_for(Service(environment(systemd, **variables)).keep_alive(), 10)


def test_without_systemd_nobody_is_told() -> None:
    Service({}).ready()


def test_a_systemd_that_has_gone_does_not_end_the_daemon(tmp_path: Path) -> None:
    Service({"NOTIFY_SOCKET": str(tmp_path / "none")}).ready()

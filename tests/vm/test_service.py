"""The service while pods run: restarts, reloads and a hang disturb none of them."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tests.integration.daemon import wait_for
from tests.integration.pods import Pods
from tests.vm import service
from tests.vm.service import Service, installed_service, systemctl

COUNT = 10
MEMORY = 48 << 20
# Waits by a built-in of busybox's shell: ten that fork five times a second keep the emulator busy.
PRINT = (
    "mkfifo /dev/shm/wait; exec 3<>/dev/shm/wait; i=0;"
    "while true; do i=$((i+1)); echo $i; read -t 0.5 x <&3; done"
)


@pytest.fixture(scope="module", params=["systemd", "cgroupfs"])
def installed(request: pytest.FixtureRequest) -> Iterator[Service]:
    with installed_service(request.param) as made:
        yield made


def state_of(pods: Pods, container: str) -> tuple[object, ...]:
    """What must not change: the process, when it was started, and its limit in the kernel."""
    status = pods.verbose_status(container)
    pid = int(json.loads(status.info["info"])["pid"])
    path = Path(f"/proc/{pid}/cgroup").read_text().strip().removeprefix("0::")
    limit = Path(f"/sys/fs/cgroup{path}/memory.max").read_text().strip()
    return pid, status.status.state, status.status.started_at, path, limit


def lines(pods: Pods, container: str) -> list[int]:
    text = Path(pods.status(container).log_path).read_text()
    return [int(line.split(" ", 3)[3]) for line in text.splitlines()]


def await_more_lines(pods: Pods, containers: Iterable[str]) -> None:
    seen = {container: len(lines(pods, container)) for container in containers}
    for container, count in seen.items():
        wait_for(lambda: len(lines(pods, container)) > count + 2, "more lines")  # noqa: B023


def test_restarts_and_reloads_disturb_no_pod(installed: Service, pods: Pods) -> None:
    made = service.run_pods(pods, COUNT, PRINT, MEMORY)
    before = {container: state_of(pods, container) for container in made}
    assert {state[-1] for state in before.values()} == {str(MEMORY)}
    daemon = installed.main_pid()
    installed.restart()
    systemctl("daemon-reload")
    installed.restart()
    assert installed.main_pid() != daemon
    assert {container: state_of(pods, container) for container in made} == before
    await_more_lines(pods, made)
    for container in made:
        found = lines(pods, container)
        assert found == list(range(1, len(found) + 1))


def test_a_daemon_that_hangs_is_restarted_and_its_pods_go_on(
    installed: Service, pods: Pods
) -> None:
    dropin = service.UNIT.with_name("criserver.service.d") / "fast.conf"
    dropin.parent.mkdir()
    dropin.write_text("[Service]\nWatchdogSec=10\n")
    try:
        systemctl("daemon-reload")
        installed.restart()
        made = service.run_pods(pods, 1, PRINT, MEMORY)
        before = {container: state_of(pods, container) for container in made}
        hung = installed.main_pid()
        os.kill(hung, signal.SIGSTOP)
        wait_for(lambda: installed.main_pid() not in (0, hung), "another daemon", seconds=120)
        installed.wait_ready()
        assert {container: state_of(pods, container) for container in made} == before
    finally:
        dropin.unlink()
        dropin.parent.rmdir()
        systemctl("daemon-reload")


def test_the_socket_is_for_root_alone(installed: Service) -> None:
    socket = Path("/run/criserver/criserver.sock").stat()
    assert (socket.st_mode & 0o077, socket.st_uid) == (0, 0)

"""ExecSync: output, exit codes, limits, timeouts."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from api.cri import api_pb2 as cri
from criserver.container_exec_sync import MAX_OUTPUT
from tests.integration import leaks
from tests.integration.adoption import shim_of
from tests.integration.daemon import RPC_SECONDS, wait_for
from tests.integration.pods import Pods, refused

MIB = 1 << 20


@pytest.fixture(scope="module")
def container(pods: Pods) -> Iterator[str]:
    pod = pods.run_pod()
    yield pods.run(pod, "sleep", "3600")
    pods.remove_pod(pod)


def processes(command: str) -> list[str]:
    return [name for name in leaks.session_processes().values() if name.endswith(command)]


def test_output_streams_and_exit_code(pods: Pods, container: str) -> None:
    answer = pods.exec(container, "sh", "-c", "echo out; echo err >&2; exit 5")
    assert (answer.stdout, answer.stderr, answer.exit_code) == (b"out\n", b"err\n", 5)


def test_a_signal_is_128_and_its_number(pods: Pods, container: str) -> None:
    assert pods.exec(container, "sh", "-c", "kill -9 $$").exit_code == 137


def test_stdin_is_empty(pods: Pods, container: str) -> None:
    assert pods.exec(container, "cat").stdout == b""


def test_bytes_come_through_unchanged(pods: Pods, container: str) -> None:
    script = "head -c 3000000 /dev/urandom > /tmp/r; cat /tmp/r; sha256sum /tmp/r >&2"
    answer = pods.exec(container, "sh", "-c", script)
    assert len(answer.stdout) == 3_000_000
    assert hashlib.sha256(answer.stdout).hexdigest().encode() == answer.stderr.split()[0]


def test_a_flood_is_cut_to_what_a_message_holds(pods: Pods, container: str) -> None:
    request = cri.ExecSyncRequest(
        container_id=container,
        cmd=["sh", "-c", "head -c 20000000 /dev/zero & head -c 20000000 /dev/zero >&2; wait"],
    )
    with grpc.insecure_channel(
        pods.daemon.endpoint, options=[("grpc.max_receive_message_length", 16 * MIB)]
    ) as channel:
        call = channel.unary_unary(
            "/runtime.v1.RuntimeService/ExecSync",
            request_serializer=cri.ExecSyncRequest.SerializeToString,
            response_deserializer=cri.ExecSyncResponse.FromString,
        )
        answer = call(request, timeout=RPC_SECONDS)
    assert len(answer.stdout) + len(answer.stderr) == MAX_OUTPUT
    assert min(len(answer.stdout), len(answer.stderr)) >= MAX_OUTPUT // 2
    assert answer.ByteSize() <= 16 * MIB


def test_output_without_an_end_costs_neither_memory_nor_disk(pods: Pods, container: str) -> None:
    """`yes` writes gigabytes meanwhile; the daemon keeps 16 MiB of it, and nobody writes any."""
    daemon = pods.daemon
    disk = size(daemon.root) + size(daemon.run_dir)
    reset_peak(daemon.pid)
    before = memory(daemon.pid, "VmRSS")
    refused("DEADLINE_EXCEEDED", pods.exec, container, "yes", timeout=3)
    assert memory(daemon.pid, "VmHWM") - before < 3 * MAX_OUTPUT  # read, joined, and its message
    assert memory(daemon.spawner_pid(), "VmHWM") < 64 * MIB
    assert size(daemon.root) + size(daemon.run_dir) - disk < MIB
    assert processes("yes") == []


def memory(pid: int, field: str) -> int:
    """Return a field of /proc/PID/status in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (found,) = [line for line in lines if line.startswith(f"{field}:")]
    return int(found.split()[1]) * 1024


def reset_peak(pid: int) -> None:
    """Have VmHWM begin anew (man 5 proc, clear_refs)."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def size(directory: Path) -> int:
    """Return the bytes of all files below a directory."""
    return sum(path.lstat().st_blocks * 512 for path in directory.rglob("*") if path.is_file())


def test_a_timeout_kills_the_command_and_is_deadline_exceeded(pods: Pods, container: str) -> None:
    said = refused(
        "DEADLINE_EXCEEDED", pods.exec, container, "sh", "-c", "sleep 4711 & sleep 4711", timeout=1
    )
    assert "timeout of 1 s" in said
    wait_for(lambda: processes("sleep 4711") == [], "the killed command to be gone")


def test_a_child_that_holds_the_output_is_not_waited_for(pods: Pods, container: str) -> None:
    answer = pods.exec(container, "sh", "-c", "sleep 4712 & echo started; exit 3")
    assert (answer.stdout, answer.exit_code) == (b"started\n", 3)
    pods.exec(container, "sh", "-c", "kill $(pidof sleep | tr ' ' '\\n' | grep -vx 1)")


def test_a_caller_that_goes_away_takes_its_command_along(pods: Pods, container: str) -> None:
    request = cri.ExecSyncRequest(container_id=container, cmd=["sleep", "4713"])
    call = pods.daemon.runtime.ExecSync.future(request, timeout=RPC_SECONDS)
    wait_for(lambda: processes("sleep 4713") != [], "the command to start")
    call.cancel()
    wait_for(lambda: processes("sleep 4713") == [], "the command to be gone")


def test_many_at_once(pods: Pods, container: str) -> None:
    calls = [
        pods.daemon.runtime.ExecSync.future(
            cri.ExecSyncRequest(container_id=container, cmd=["echo", str(number)]),
            timeout=RPC_SECONDS,
        )
        for number in range(40)
    ]
    assert [call.result().stdout for call in calls] == [b"%d\n" % n for n in range(40)]


def test_what_cannot_be_executed_is_said(pods: Pods, container: str) -> None:
    said = refused("INVALID_ARGUMENT", pods.exec, container, "/no/such")
    assert "/no/such" in said
    assert "empty" in refused("INVALID_ARGUMENT", pods.exec, container)
    refused("INVALID_ARGUMENT", pods.exec, container, "true", timeout=-1)
    refused("INVALID_ARGUMENT", pods.exec, container, "echo", "x" * 1_000_000)


def test_only_running_containers(pods: Pods) -> None:
    refused("NOT_FOUND", pods.exec, "f" * 64, "true")
    pod = pods.run_pod()
    created = pods.create(pod, "true")
    assert "CREATED" in refused("FAILED_PRECONDITION", pods.exec, created, "true")
    pods.start(created)
    pods.exited(created)
    assert "EXITED" in refused("FAILED_PRECONDITION", pods.exec, created, "true")
    pods.remove_pod(pod)


def test_an_exec_while_the_shim_is_replaced_is_unavailable(pods: Pods, container: str) -> None:
    pid = json.loads(pods.verbose_status(container).info["info"])["pid"]
    spawner = pods.daemon.spawner_pid()
    os.kill(spawner, signal.SIGSTOP)  # it would fork the next one in a moment
    try:
        os.kill(shim_of(pid), signal.SIGKILL)
        refused("UNAVAILABLE", pods.exec, container, "true")
    finally:
        os.kill(spawner, signal.SIGCONT)
    wait_for(lambda: answers(pods, container), "another shim")
    assert pods.exec(container, "echo", "again").stdout == b"again\n"


def answers(pods: Pods, container: str) -> bool:
    try:
        return pods.exec(container, "true").exit_code == 0
    except grpc.RpcError as err:
        assert err.code().name == "UNAVAILABLE", err
        return False

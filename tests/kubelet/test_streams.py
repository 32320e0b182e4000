"""/exec, /attach, /run and /portForward of the kubelet, over both transports."""

from __future__ import annotations

import hashlib
from typing import Any
from urllib.parse import urlencode

import pytest

from tests.integration.stream_clients import (
    Command,
    Spdy,
    spdy_command,
    websocket_command,
)
from tests.kubelet.kubelet import Kubelet, containers, has_ended, is_running
from tests.kubelet.manifests import FOREVER, pod, shell

V4, V5 = "v4.channel.k8s.io", "v5.channel.k8s.io"


def url(kubelet: Kubelet, verb: str, name: str, command: tuple[str, ...] = (), **flags: Any) -> str:
    query = [("command", word) for word in command] + list(flags.items())
    return f"{kubelet.url}/{verb}/tests/{name}/main?{urlencode(query)}"


def open_exec(
    kubelet: Kubelet,
    transport: str,
    name: str,
    *command: str,
    stdin: bool = False,
    tty: bool = False,
) -> Command:
    names = [*(["stdin"] if stdin else []), "stdout", *([] if tty else ["stderr"])]
    flags = {"input": int(stdin), "output": 1, "error": int(not tty), "tty": int(tty)}
    target = url(kubelet, "exec", name, command, **flags)
    if transport == "spdy":
        return spdy_command(target, *names, *(["resize"] if tty else []))
    return websocket_command(target, *names, protocol=transport)


@pytest.fixture(scope="module")
def name(kubelet: Kubelet) -> str:
    made = kubelet.put(pod(shell(FOREVER), shell(f"httpd -p 80 -h /etc; {FOREVER}", "server")))
    kubelet.until(made, is_running, "its start")
    return made


@pytest.fixture(autouse=True, scope="module")
def no_pods_left(kubelet: Kubelet, name: str) -> Any:
    """Instead of the one for each test: these share a pod."""
    yield
    kubelet.remove(name)


@pytest.mark.parametrize("transport", ["spdy", V4, V5])
def test_exec_has_both_outputs_and_the_exit_code(
    kubelet: Kubelet, name: str, transport: str
) -> None:
    command = open_exec(kubelet, transport, name, "sh", "-c", "echo out; echo err >&2; exit 3")
    assert command.exit_code() == 3
    assert (command.output(), command.output("stderr")) == (b"out\n", b"err\n")


@pytest.mark.parametrize("transport", ["spdy", V5])
def test_exec_reads_its_input_to_the_end(kubelet: Kubelet, name: str, transport: str) -> None:
    command = open_exec(kubelet, transport, name, "md5sum", stdin=True)
    data = b"hello\n" * 100_000
    command.write(data)
    command.end_stdin()
    assert command.exit_code() == 0
    assert command.output().split()[0].decode() == hashlib.md5(data).hexdigest()


@pytest.mark.parametrize("transport", ["spdy", V4, V5])
def test_exec_with_a_terminal(kubelet: Kubelet, name: str, transport: str) -> None:
    command = open_exec(kubelet, transport, name, "sh", stdin=True, tty=True)
    command.resize(91, 33)
    command.write(b"until [ \"$(stty size)\" = '33 91' ]; do sleep 0.1; done; echo si''ze\n")
    command.until_output(b"size")
    command.write(b"exit 4\n")
    assert command.exit_code() == 4


def test_exec_of_what_is_not_there(kubelet: Kubelet, name: str) -> None:
    command = open_exec(kubelet, "spdy", name, "/bin/nothing")
    status = command.status()
    assert status["status"] == "Failure"
    assert "/bin/nothing" in status["message"]


def test_exec_in_a_pod_that_is_not_there(kubelet: Kubelet) -> None:
    status, body = kubelet.request("/exec/tests/nobody/main?command=true&output=1", "POST")
    assert (status, body) == (404, b"pod does not exist")


def test_run_answers_with_the_output(kubelet: Kubelet, name: str) -> None:
    assert kubelet.run(name, "echo hello") == "hello\n"


@pytest.mark.parametrize("transport", ["spdy", V5])
def test_attach_joins_the_containers_own_streams(kubelet: Kubelet, transport: str) -> None:
    talker = shell("while read line; do echo said $line; done; exit 6", stdin=True, stdinOnce=True)
    name = kubelet.put(pod(talker, restartPolicy="Never"))
    try:
        kubelet.until(name, is_running, "its start")
        target = url(kubelet, "attach", name, input=1, output=1, error=1)
        names = ("stdin", "stdout", "stderr")
        if transport == "spdy":
            client = spdy_command(target, *names)
        else:
            client = websocket_command(target, *names, protocol=transport)
        client.write(b"hello\n")
        client.until_output(b"said hello\n")
        client.end_stdin()
        ended = containers(kubelet.until(name, has_ended, "its end"))["main"]
        assert ended["state"]["terminated"]["exitCode"] == 6
        assert kubelet.get(f"/containerLogs/tests/{name}/main") == b"said hello\n"
    finally:
        kubelet.remove(name)


def test_attach_to_a_terminal(kubelet: Kubelet) -> None:
    name = kubelet.put(pod(shell("exec sh", stdin=True, tty=True), restartPolicy="Never"))
    try:
        kubelet.until(name, is_running, "its start")
        target = url(kubelet, "attach", name, input=1, output=1, tty=1)
        client = websocket_command(target, "stdin", "stdout", "resize")
        client.resize(77, 22)
        client.write(b"until [ \"$(stty size)\" = '22 77' ]; do sleep 0.1; done; echo si''ze\n")
        client.until_output(b"size\r\n")
        client.write(b"exit 5\n")
        ended = containers(kubelet.until(name, has_ended, "its end"))["main"]
        assert ended["state"]["terminated"]["exitCode"] == 5
    finally:
        kubelet.remove(name)


def test_port_forward_reaches_the_pods_localhost(kubelet: Kubelet, name: str) -> None:
    client = Spdy(f"{kubelet.url}/portForward/tests/{name}", "portforward.k8s.io")
    for number in range(3):
        headers = {"port": "80", "requestid": str(number)}
        error = client.open(streamtype="error", **headers)
        client.end(error)
        data = client.open(streamtype="data", **headers)
        client.write(data, b"GET /passwd HTTP/1.0\r\n\r\n")
        client.until(lambda data=data: data in client.ended, "the answer")
        assert b"root:x:0:0" in client.data(data)
        assert client.data(error) == b""
    client.hang_up()


def test_port_forward_to_a_closed_port_is_told(kubelet: Kubelet, name: str) -> None:
    client = Spdy(f"{kubelet.url}/portForward/tests/{name}", "portforward.k8s.io")
    headers = {"port": "81", "requestid": "0"}
    error = client.open(streamtype="error", **headers)
    client.open(streamtype="data", **headers)
    client.until(lambda: b"refused" in client.data(error), "the refusal")
    client.hang_up()

"""The extension service over a real gRPC socket; only the shim is a fake."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from api.errors import NotFoundError
from api.extension import extension_pb2 as pb
from api.extension import extension_pb2_grpc
from criserver.extension import extension_servicer
from criserver.interceptors import Interceptor, Readiness
from imageservice.progress import LayerProgress, LayerState, PullProgress
from runtimeshim.client import ExitRecord
from tests.fakes.shim import FakeShim

CONTAINER = "c0ffee"
POD = "decade"


@dataclass
class Service:
    """The stub, and what lies behind the server."""

    stub: extension_pb2_grpc.ExtensionAsyncStub
    shim: FakeShim
    imported: list[Path]
    pods_end: dict[int, socket.socket]  # of the connections to a pod, by port

    async def run(self, start: pb.ExecStart, *inputs: pb.ExecInput) -> tuple[bytes, bytes, int]:
        """Exec to the end; the output and the exit code, which must be the last message."""

        async def messages() -> AsyncIterator[pb.ExecInput]:
            yield pb.ExecInput(start=start)
            for message in inputs:
                yield message

        answers = [answer async for answer in self.stub.Exec(messages())]
        kinds = [answer.WhichOneof("output") for answer in answers]
        assert (kinds[0], kinds[-1]) == ("started", "exit_code")
        stdout = b"".join(answer.stdout for answer in answers)
        stderr = b"".join(answer.stderr for answer in answers)
        return stdout, stderr, answers[-1].exit_code


class Images:
    def __init__(self, imported: list[Path]) -> None:
        self._imported = imported

    async def import_archive(self, path: Path) -> list[str]:
        self._imported.append(path)
        return ["a:1", "b:2"]

    async def watch_pulls(self, name: str) -> AsyncGenerator[list[PullProgress], None]:
        yield []
        layers = (
            LayerProgress("sha256:1", 10, 10, LayerState.EXISTS),
            LayerProgress("sha256:2", 20, 5, LayerState.FETCHING),
        )
        yield [PullProgress(name, 7, layers), PullProgress("other", 8, None)]
        await asyncio.Event().wait()


class Diagnoses:
    """The daemon's view of itself, as far as it is asked."""

    async def explain(self, reference: str) -> dict[str, Any]:
        return {"object": {"text": reference}}

    async def audit(self, *, fix: bool) -> dict[str, Any]:
        return {"fixed": fix}


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    (tmp_path / "config.json").write_text(json.dumps({"process": {"terminal": True}}))
    shim, imported = FakeShim(), []
    pods_end: dict[int, socket.socket] = {}

    def lookup(container_id: str) -> tuple[FakeShim, Path]:
        if container_id != CONTAINER:
            raise NotFoundError("container", container_id)
        return shim, tmp_path

    async def connect(pod_id: str, port: int) -> socket.socket:
        if pod_id != POD:
            raise NotFoundError("pod sandbox", pod_id)
        connection, pods_end[port] = socket.socketpair()
        return connection

    readiness = Readiness()
    readiness.ready()
    server = grpc.aio.server(interceptors=(Interceptor(readiness),))
    servicer = extension_servicer(lookup, Images(imported), connect, Diagnoses())
    extension_pb2_grpc.add_ExtensionServicer_to_server(servicer, server)
    server.add_insecure_port(f"unix:{tmp_path}/s")
    await server.start()
    async with grpc.aio.insecure_channel(f"unix:{tmp_path}/s") as channel:
        yield Service(extension_pb2_grpc.ExtensionStub(channel), shim, imported, pods_end)
    await server.stop(None)
    shim.close()
    for end in pods_end.values():
        end.close()


def sh(script: str, **more: object) -> pb.ExecStart:
    return pb.ExecStart(container_id=CONTAINER, command=["/bin/sh", "-c", script], **more)


async def test_output_and_exit_code(service: Service) -> None:
    result = await service.run(sh("echo out; echo err >&2; exit 7"))
    assert result == (b"out\n", b"err\n", 7)


async def test_much_in_and_out(service: Service) -> None:
    data = [os.urandom(60_000) for _ in range(100)]
    inputs = [pb.ExecInput(stdin=chunk) for chunk in data]
    assert await service.run(sh("cat", stdin=True), *inputs) == (b"".join(data), b"", 0)


async def test_without_stdin_the_process_reads_nothing(service: Service) -> None:
    assert await service.run(sh("cat; echo end")) == (b"end\n", b"", 0)


async def test_a_terminal_with_its_size(service: Service) -> None:
    start = sh(
        "stty -echo; read line; stty size", terminal=True, stdin=True,
        size=pb.TerminalSize(width=99, height=33),
    )  # fmt: skip
    stdout, _, code = await service.run(start, pb.ExecInput(stdin=b"go\n"))
    assert (stdout.splitlines()[-1], code) == (b"33 99", 0)


async def test_a_signal(service: Service) -> None:
    call = service.stub.Exec()
    await call.write(
        pb.ExecInput(start=sh("trap 'exit 9' TERM; echo up; while :; do sleep .01; done"))
    )
    assert (await call.read()).WhichOneof("output") == "started"
    assert (await call.read()).stdout == b"up\n"
    await call.write(pb.ExecInput(signal=signal.SIGTERM))
    assert (await call.read()).exit_code == 9
    await call.done_writing()


@pytest.mark.parametrize("flooding", [True, False])
async def test_a_client_that_vanishes_ends_the_process(service: Service, flooding: bool) -> None:
    call = service.stub.Exec()
    await call.write(
        pb.ExecInput(start=sh("echo up; exec yes" if flooding else "echo up; sleep 999"))
    )
    await call.read()
    assert (await call.read()).stdout.startswith(b"up\n")
    call.cancel()
    # What writes meanwhile finds its pipe closed before SIGKILL finds it.
    ends = (128 + signal.SIGKILL, 128 + signal.SIGPIPE)
    assert await service.shim.execs[0].wait() in ends


async def test_a_client_that_does_not_read_stops_the_process(service: Service) -> None:
    call = service.stub.Exec()
    await call.write(pb.ExecInput(start=sh("head -c 1000000000 /dev/zero")))
    pid = (await _started(service, call)).pid
    before = -1
    while (now := _characters_written(pid)) != before:  # it stands still: nobody reads
        before = now
        await asyncio.sleep(0.3)
    assert now < 100_000_000
    call.cancel()
    await service.shim.execs[0].wait()


async def _started(service: Service, call: grpc.aio.StreamStreamCall) -> object:
    await call.read()
    return service.shim.execs[0]


def _characters_written(pid: int) -> int:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    io = Path(f"/proc/{(children or [pid])[0]}/io").read_text()
    return int(io.split("wchar: ")[1].split()[0])


async def test_nothing_stays_open(service: Service) -> None:
    await service.run(sh("exit 0", stdin=True))
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        await service.run(sh("exit 0", stdin=True))
        await service.run(sh("exit 0", stdin=True, terminal=True))
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("messages", "code"),
    [
        ([], grpc.StatusCode.INVALID_ARGUMENT),
        ([pb.ExecInput(stdin=b"x")], grpc.StatusCode.INVALID_ARGUMENT),
        ([pb.ExecInput(start=sh("sleep 999"))] * 2, grpc.StatusCode.INVALID_ARGUMENT),
        (
            [pb.ExecInput(start=sh("sleep 999")), pb.ExecInput(signal=99)],
            grpc.StatusCode.INVALID_ARGUMENT,
        ),
        (
            [pb.ExecInput(start=pb.ExecStart(container_id=CONTAINER))],
            grpc.StatusCode.INVALID_ARGUMENT,
        ),
        (
            [pb.ExecInput(start=pb.ExecStart(container_id=CONTAINER, command=["/nonexistent"]))],
            grpc.StatusCode.INVALID_ARGUMENT,
        ),
        ([pb.ExecInput(start=pb.ExecStart(container_id="x"))], grpc.StatusCode.NOT_FOUND),
    ],
)
async def test_mistakes_have_a_code_and_leave_no_process(
    service: Service, messages: list[pb.ExecInput], code: grpc.StatusCode
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in service.stub.Exec(iter(messages)):
            pass
    assert caught.value.code() is code
    for started in service.shim.execs:
        assert await started.wait() == 128 + signal.SIGKILL


async def test_attach(service: Service) -> None:
    call = service.stub.Attach()
    size = pb.TerminalSize(width=80, height=25)
    start = pb.AttachStart(container_id=CONTAINER, stdin=True, size=size)
    await call.write(pb.AttachInput(start=start))
    started = (await call.read()).started
    assert started.terminal
    assert service.shim.size == (80, 25)
    os.write(service.shim.attached["stdout"], b"out")
    assert (await call.read()).stdout == b"out"
    await call.write(pb.AttachInput(signal=signal.SIGINT))
    await call.write(pb.AttachInput(stdin=b"in"))
    assert await asyncio.to_thread(os.read, service.shim.attached["stdin"], 10) == b"in"
    assert service.shim.signals == [signal.SIGINT]
    service.shim.detach()
    service.shim.exit.set_result(ExitRecord(137, 0, True))
    assert (await call.read()).exit_code == 137
    await call.done_writing()


async def test_import(service: Service) -> None:
    answer = await service.stub.ImportImage(pb.ImportImageRequest(path="/a.tar"))
    assert (list(answer.names), service.imported) == (["a:1", "b:2"], [Path("/a.tar")])
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await service.stub.ImportImage(pb.ImportImageRequest(path="a.tar"))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_watching_pulls_goes_on_until_the_caller_has_gone(service: Service) -> None:
    call = service.stub.WatchPulls(pb.WatchPullsRequest(image="busybox"))
    assert list((await call.read()).pulls) == []
    first, second = (await call.read()).pulls
    assert (first.image, first.started_at, first.resolved) == ("busybox", 7, True)
    assert list(first.layers) == [
        pb.PullLayer(digest="sha256:1", size=10, fetched=10, state=pb.PULL_LAYER_EXISTS),
        pb.PullLayer(digest="sha256:2", size=20, fetched=5, state=pb.PULL_LAYER_FETCHING),
    ]
    assert (second.image, second.resolved) == ("other", False)
    call.cancel()


async def test_port_forward(service: Service) -> None:
    call = service.stub.PortForward()
    start = pb.PortForwardStart(pod_sandbox_id=POD, port=80)
    await call.write(pb.PortForwardInput(start=start))
    assert (await call.read()).WhichOneof("output") == "started"
    pod = service.pods_end[80]
    await call.write(pb.PortForwardInput(data=b"question"))
    assert await asyncio.to_thread(pod.recv, 100) == b"question"
    await call.done_writing()
    assert await asyncio.to_thread(pod.recv, 100) == b""  # and what the pod sends still comes
    pod.sendall(b"answer")
    assert (await call.read()).data == b"answer"
    pod.close()
    assert await call.read() is grpc.aio.EOF
    assert await call.code() is grpc.StatusCode.OK


@pytest.mark.parametrize(
    ("messages", "code"),
    [
        ([pb.PortForwardInput(data=b"x")], grpc.StatusCode.INVALID_ARGUMENT),
        (
            [pb.PortForwardInput(start=pb.PortForwardStart(pod_sandbox_id=POD, port=80))] * 2,
            grpc.StatusCode.INVALID_ARGUMENT,
        ),
        (
            [pb.PortForwardInput(start=pb.PortForwardStart(pod_sandbox_id="nope", port=80))],
            grpc.StatusCode.NOT_FOUND,
        ),
    ],
)
async def test_a_mistake_of_port_forward_has_a_code(
    service: Service, messages: list[pb.PortForwardInput], code: grpc.StatusCode
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        _ = [answer async for answer in service.stub.PortForward(iter(messages))]
    assert caught.value.code() is code


async def test_explain_and_audit_answer_in_json(service: Service) -> None:
    explained = await service.stub.Explain(pb.ExplainRequest(reference="web"))
    assert json.loads(explained.json) == {"object": {"text": "web"}}
    audited = await service.stub.Audit(pb.AuditRequest(fix=True))
    assert json.loads(audited.json) == {"fixed": True}

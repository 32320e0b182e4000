"""Streams that a client announces and does not open: it is told, and nothing waits for ever."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from criserver.streaming import endpoints
from criserver.streaming.endpoints import CommandRequest
from criserver.streaming.port_forward import SPDY_PROTOCOL, Forward
from criserver.streaming.remote_command import Command
from criserver.streaming.server import StreamingServer
from tests.integration.stream_clients import V4, Spdy


@pytest_asyncio.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[StreamingServer]:
    monkeypatch.setattr(endpoints, "STREAM_CREATION_SECONDS", 0.2)
    made = StreamingServer("127.0.0.1", 0, 60.0)
    await made.start()
    yield made
    await made.stop("the test is over")


async def never(*_: object) -> object:
    raise AssertionError("nothing is to be started")


def exec_with_one_stream(url: str) -> bytes:
    client = Spdy(url, V4)
    error = client.open(streamtype="error")
    client.until_over()
    return client.data(error)


async def test_an_exec_names_the_streams_that_did_not_come(server: StreamingServer) -> None:
    command = Command("exec in container c", never, has_exit_code=True)  # type: ignore[arg-type]
    wanted = CommandRequest(command, stdin=True, stdout=True, stderr=False, tty=False)
    said = await asyncio.to_thread(exec_with_one_stream, server.url("exec", wanted))
    status = json.loads(said)
    assert status["status"] == "Failure"
    assert (
        "exec in container c: the client did not open the streams stdin, stdout"
        in (status["message"])
    )


def forward_with_half_a_pair(url: str) -> None:
    client = Spdy(url, SPDY_PROTOCOL)
    error = client.open(streamtype="error", port="80", requestid="0")
    client.until(lambda: error in client.resets, "the reset")
    again = client.open(streamtype="error", port="80", requestid="0")  # the name is free
    assert again in client.replied
    client.hang_up()


async def test_half_a_forwarded_connection_is_reset(server: StreamingServer) -> None:
    forward = Forward("port-forward to pod p", (), never)  # type: ignore[arg-type]
    await asyncio.to_thread(forward_with_half_a_pair, server.url("portforward", forward))

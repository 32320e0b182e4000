"""The HTTP server of the metrics, with real sockets: what it answers, to whom, and how it ends."""

from __future__ import annotations

import asyncio
import logging
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from criserver.config_observability import Address
from criserver.config_schema import ConfigError
from criserver.metrics.endpoint import MAX_CLIENTS, MAX_HEAD, Endpoint
from tests.unit.metrics import Observed

URL = "http://localhost/metrics"


@pytest_asyncio.fixture
async def path(tmp_path: Path) -> AsyncIterator[Path]:
    """The socket of an endpoint that serves a daemon's metrics."""
    observed = Observed()
    observed.everything()
    path = tmp_path / "run" / "metrics.sock"
    endpoint = Endpoint(Address(path=str(path)), observed.metrics.exposition)
    await endpoint.start()
    yield path
    await endpoint.close()
    observed.close()
    assert not path.exists()


@pytest_asyncio.fixture
async def client(path: Path) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as session:
        yield session


@asynccontextmanager
async def connected(
    path: Path,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_unix_connection(str(path))
    try:
        yield reader, writer
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def raw(path: Path, request: bytes) -> bytes:
    """All that the endpoint answers to these bytes."""
    async with connected(path) as (reader, writer):
        writer.write(request)
        return await reader.read()


async def test_the_socket_is_private(path):
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_prometheus_text_and_openmetrics_are_served_by_what_is_accepted(client):
    async with client.get(URL) as answer:
        text = await answer.text()
        assert answer.headers["Content-Type"].startswith("text/plain")
    assert "\ncriserver_rpcs_total{" in text
    assert "_created" not in text
    accept = {"Accept": "application/openmetrics-text; version=1.0.0, text/plain;q=0.5"}
    async with client.get(URL, headers=accept) as answer:
        assert answer.headers["Content-Type"].startswith("application/openmetrics-text")
        assert (await answer.text()).endswith("# EOF\n")


async def test_a_connection_serves_many_requests(path):
    async with connected(path) as (reader, writer):
        for _ in range(3):
            writer.write(b"HEAD /metrics?x=1 HTTP/1.1\r\nHost: x\r\n\r\n")
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        (b"GET / HTTP/1.1", b"404 Not Found"),
        (b"GET /metricsx HTTP/1.1", b"404 Not Found"),
        (b"POST /metrics HTTP/1.1", b"405 Method Not Allowed"),
        (b"nonsense", b"400 Bad Request"),
        (b"GET /" + b"x" * 2 * MAX_HEAD + b" HTTP/1.1", b"431 Request Header Fields Too Large"),
    ],
)
async def test_whatever_else_is_asked_is_refused(path, request_line, status):
    answer = await raw(path, request_line + b"\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 " + status + b"\r\n")


async def test_more_clients_than_there_is_room_for_are_turned_away(path):
    async with AsyncExitStack() as stack:
        for _ in range(MAX_CLIENTS):
            await stack.enter_async_context(connected(path))
        async with connected(path) as (reader, _):
            assert await reader.read() == b""


async def test_what_cannot_be_exposed_is_an_error_that_is_logged(tmp_path, caplog):
    async def broken(_accept: str) -> tuple[bytes, str]:
        raise ZeroDivisionError("by zero")

    path = tmp_path / "m.sock"
    endpoint = Endpoint(Address(path=str(path)), broken)
    await endpoint.start()
    answer = await raw(path, b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    await endpoint.close()
    assert answer.startswith(b"HTTP/1.1 500 ")
    assert "ZeroDivisionError" in caplog.text


async def test_a_dead_daemons_socket_is_replaced(tmp_path):
    path = tmp_path / "m.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    observed = Observed()
    endpoint = Endpoint(Address(path=str(path)), observed.metrics.exposition)
    await endpoint.start()
    answer = await raw(path, b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 ")
    await endpoint.close()
    observed.close()


async def test_a_port_that_is_taken_is_named_at_the_start(caplog):
    caplog.set_level(logging.INFO)
    observed = Observed()
    first = Endpoint(Address(host="127.0.0.1", port=0), observed.metrics.exposition)
    await first.start()
    port = int(caplog.messages[-1].partition("127.0.0.1:")[2].partition("/")[0])
    second = Endpoint(Address(host="127.0.0.1", port=port), observed.metrics.exposition)
    with pytest.raises(ConfigError, match=f"metrics.listen: cannot be listened on.*{port}"):
        await second.start()
    async with (
        aiohttp.ClientSession() as client,
        client.get(f"http://127.0.0.1:{port}/metrics") as answer,
    ):
        assert answer.status == 200
    await first.close()
    observed.close()

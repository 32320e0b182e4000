"""The HTTP request of a streaming client, its URL, and what the error and resize streams carry."""

from __future__ import annotations

import ast
import json
from http import HTTPStatus
from pathlib import Path

import pytest

from api.errors import InvalidArgumentError, ResourceExhaustedError
from criserver import streaming
from criserver.streaming import channels, endpoints, port_forward, remote_status, tokens
from criserver.streaming.resize import ResizeDecoder
from criserver.streaming.tokens import Tokens
from criserver.streaming.upgrade import (
    MAX_HEAD,
    HTTPError,
    Request,
    RequestReader,
    Transport,
    choose,
)

SPDY = {"Connection": "Upgrade", "Upgrade": "SPDY/3.1", "X-Stream-Protocol-Version": "b, a"}
KEY = "dGhlIHNhbXBsZSBub25jZQ=="  # RFC 6455, section 1.3
WEBSOCKET = {
    "Connection": "keep-alive, Upgrade",
    "Upgrade": "WebSocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": KEY,
}


def http(
    headers: dict[str, str], method: str = "GET", target: str = "/exec/token?port=1", body: str = ""
) -> bytes:
    lines = [f"{method} {target} HTTP/1.1", "Host: localhost"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n" + body).encode()


def read(data: bytes) -> Request:
    request = RequestReader().receive_data(data)
    assert request is not None
    return request


def refused(data: bytes) -> HTTPError:
    with pytest.raises(HTTPError) as caught:
        RequestReader().receive_data(data)
    return caught.value


def test_a_request_for_spdy() -> None:
    for extra in ({}, {"Content-Length": "0"}):
        request = read(http({**SPDY, **extra}, "POST"))
        assert request == Request("/exec/token", "port=1", Transport.SPDY, ("b", "a"), b"")


def test_a_request_for_websocket() -> None:
    request = read(http(WEBSOCKET))
    assert (request.transport, request.protocols) == (Transport.WEBSOCKET, ())
    assert read(http({**WEBSOCKET, "Sec-WebSocket-Protocol": "x,y"})).protocols == ("x", "y")


def test_a_request_may_come_in_pieces_and_what_follows_is_kept() -> None:
    reader = RequestReader()
    data = http(SPDY)
    assert [reader.receive_data(data[n : n + 1]) for n in range(len(data) - 1)] == [None] * (
        len(data) - 1
    )
    request = reader.receive_data(data[-1:] + b"frames")
    assert request is not None
    answer, rest = reader.switch(request, "a")
    assert rest == b"frames"
    assert answer.startswith(b"HTTP/1.1 101 Switching Protocols\r\n")
    assert b"X-Stream-Protocol-Version: a\r\n" in answer


def test_the_answer_to_websocket_is_that_of_the_rfc() -> None:
    reader = RequestReader()
    request = reader.receive_data(http(WEBSOCKET))
    assert request is not None
    answer, _ = reader.switch(request, "v5.channel.k8s.io")
    assert b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n" in answer
    assert b"Sec-WebSocket-Protocol: v5.channel.k8s.io\r\n" in answer


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (http({}), 400),
        (http({**SPDY, "Connection": "close"}), 400),
        (http({**SPDY, "Upgrade": "h2c"}), 400),
        (http({"Connection": "Upgrade", "Upgrade": "SPDY/3.1"}), 400),
        (http(SPDY, "DELETE"), 405),
        (http(SPDY, target="//[bad"), 400),
        (http({**SPDY, "Content-Length": "3"}, "POST", body="abc"), 413),
        (http(WEBSOCKET, "POST"), 405),
        (http({**WEBSOCKET, "Sec-WebSocket-Version": "8"}), 426),
        (http({**WEBSOCKET, "Sec-WebSocket-Key": "short"}), 400),
        (http({**WEBSOCKET, "Sec-WebSocket-Key": "AAAA"}), 400),
        (http({"X": "x" * MAX_HEAD})[:-1], 431),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\n\n", 400),
        (b"GET / HTTP/9.9\r\n\r\n", 400),
    ],
)
def test_what_cannot_be_upgraded(data: bytes, status: int) -> None:
    error = refused(data)
    assert error.status == status
    answer = RequestReader().refuse(error)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert b"Content-Length: %d\r\n" % len(body) in head


def test_the_clients_preference_decides() -> None:
    assert choose(read(http(SPDY)), ["a", "b"]) == "b"
    assert choose(read(http(WEBSOCKET)), channels.REMOTE_COMMAND) == ""


def test_no_subprotocol_in_common() -> None:
    with pytest.raises(
        HTTPError, match=r"'b, a' is supported; supported over SPDY/3\.1: c"
    ) as caught:
        choose(read(http(SPDY)), ["c"])
    assert caught.value.status == HTTPStatus.FORBIDDEN
    assert caught.value.headers == [("X-Accepted-Stream-Protocol-Versions", "c")]
    with pytest.raises(HTTPError):  # portforward over WebSocket knows the name ""; SPDY does not
        choose(read(http({**WEBSOCKET, "Sec-WebSocket-Protocol": "z"})), [""])


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_path_is_good_once_and_for_its_kind() -> None:
    waiting: Tokens[str] = Tokens()
    path = waiting.insert("exec", "request")
    assert path.startswith("exec/")
    assert len(path) > 20
    with pytest.raises(HTTPError, match="expired"):
        waiting.get(path.replace("exec", "attach"))
    assert waiting.get(path) == "request"
    waiting.use(path)
    with pytest.raises(HTTPError) as caught:
        waiting.get(path)
    assert caught.value.status == HTTPStatus.NOT_FOUND


def test_a_path_expires_and_their_number_is_limited() -> None:
    clock = Clock()
    waiting: Tokens[int] = Tokens(clock)
    paths = [waiting.insert("exec", number) for number in range(tokens.MAX_WAITING)]
    with pytest.raises(ResourceExhaustedError, match="1000"):
        waiting.insert("exec", 0)
    clock.now += tokens.TTL_SECONDS - 1
    assert waiting.get(paths[0]) == 0
    clock.now += 1
    with pytest.raises(HTTPError):
        waiting.get(paths[0])
    waiting.insert("exec", 1)


def test_the_exit_status_is_what_kubectl_reads() -> None:
    assert json.loads(remote_status.exited(0).to_json()) == {"metadata": {}, "status": "Success"}
    status = json.loads(remote_status.exited(3).to_json())
    assert (status["status"], status["reason"]) == ("Failure", "NonZeroExitCode")
    assert status["details"]["causes"] == [{"reason": "ExitCode", "message": "3"}]
    assert json.loads(remote_status.failed("why").to_json())["code"] == 500


def test_before_v4_success_says_nothing() -> None:
    assert remote_status.SUCCESS.to_text() == b""
    assert b"exit code 3" in remote_status.exited(3).to_text()


def test_sizes_come_in_any_pieces() -> None:
    decoder = ResizeDecoder()
    stream = b'{"Width":80,"Height":24}\n {"Width": 99, "Height": 33}{"width":1,"height":2}'
    sizes = [size for n in range(len(stream)) for size in decoder.receive(stream[n : n + 1])]
    assert sizes == [(80, 24), (99, 33), (1, 2)]
    assert ResizeDecoder().receive(stream) == sizes


@pytest.mark.parametrize(
    "text",
    [
        "[]", "1", "null", '"x"', "nonsense", '{"Width":-1,"Height":2}', '{"Width":70000}',
        '{"Width":"8","Height":2}', '{"Width":1.5,"Height":2}', "{" + " " * 2000, "\xff",
        '{"a":' + "[" * 900, '{"a":' + "[" * 100_000,
    ],
)  # fmt: skip
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match=r"size|codec|Expecting"):
        ResizeDecoder().receive(text.encode("latin-1") + b"]" * 2000)


@pytest.mark.parametrize("text", ["", "0", "65536", "-1", "x", "80/x", "9" * 100, "\u0663"])
def test_what_is_no_port(text: str) -> None:
    with pytest.raises(InvalidArgumentError):
        port_forward.parse_port(text)


def test_udp_is_refused_by_its_name() -> None:
    assert port_forward.parse_port("53") == port_forward.parse_port("53/tcp") == 53
    with pytest.raises(InvalidArgumentError, match="TCP only"):
        port_forward.parse_port("53/udp")


def test_ports_of_websocket_channels_may_be_in_the_query() -> None:
    forward = port_forward.Forward("port-forward", (), lambda _: None)  # type: ignore[arg-type, return-value]
    for query, ports in (("port=1,2&port=3", (1, 2, 3)), ("port=9", (9,))):
        request = read(http(WEBSOCKET, target=f"/portforward/x?{query}"))
        endpoint = endpoints.endpoint_for(request, forward)
        assert isinstance(endpoint, endpoints.ChannelForward)
        assert endpoint._wanted.ports == ports
    for query in ("", "?port=x", "?port=0"):
        with pytest.raises(HTTPError, match="port"):
            endpoints.endpoint_for(read(http(WEBSOCKET, target=f"/p/x{query}")), forward)


@pytest.mark.parametrize(
    "module",
    [
        "spdy",
        "spdy_headers",
        "websocket",
        "channels",
        "upgrade",
        "resize",
        "remote_status",
        "buffer",
    ],
)
def test_the_protocol_cores_do_no_io(module: str) -> None:
    source = Path(next(iter(streaming.__path__)), f"{module}.py").read_text()
    names = {
        name.partition(".")[0]
        for node in ast.walk(ast.parse(source))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert not names & {"asyncio", "socket", "ssl", "os", "select", "selectors"}

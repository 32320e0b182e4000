"""The gRPC server on the unix socket: every method of the CRI's two services.

A method that has no handler answers UNIMPLEMENTED, which clients take as "use another way".
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor

from api.cri import api_pb2
from api.errors import UnimplementedError
from criserver.interceptors import Interceptor, Readiness, Stream, Unary
from criserver.rpcs import RPCObserver
from criserver.server_limits import MAX_MESSAGE

OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    ("grpc.max_send_message_length", MAX_MESSAGE),
)

Handler = Callable[[Any], Awaitable[Any]]
StreamHandler = Callable[[Any], AsyncIterator[Any]]


def make_server(
    handlers: Mapping[str, Handler | StreamHandler],
    readiness: Readiness,
    observers: Sequence[RPCObserver] = (),
) -> grpc.aio.Server:
    """Return a server of RuntimeService and ImageService; `handlers` are by method name."""
    server = grpc.aio.server(interceptors=(Interceptor(readiness, observers),), options=OPTIONS)
    for service in api_pb2.DESCRIPTOR.services_by_name.values():
        methods = {
            method.name: _method_handler(method, handlers.get(method.name))
            for method in service.methods
        }
        generic = grpc.method_handlers_generic_handler(service.full_name, methods)
        server.add_generic_rpc_handlers((generic,))
    return server


def bind(server: grpc.aio.Server, socket: Path) -> None:
    """Bind the server to a unix socket of mode 0600 in a directory of mode 0700 (if it is new)."""
    socket.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    old = os.umask(0o177)
    try:
        server.add_insecure_port(f"unix://{socket}")
    finally:
        os.umask(old)


def _method_handler(method: MethodDescriptor, handler: Any) -> grpc.RpcMethodHandler[Any, Any]:
    request = message_factory.GetMessageClass(method.input_type)
    response = message_factory.GetMessageClass(method.output_type)
    codecs: dict[str, Any] = {
        "request_deserializer": request.FromString,
        "response_serializer": response.SerializeToString,
    }
    if method.server_streaming:
        items = _stream(handler) if handler else _unimplemented_stream(method.name)
        return grpc.unary_stream_rpc_method_handler(items, **codecs)
    answer = _unary(handler) if handler else _unimplemented(method.name)
    return grpc.unary_unary_rpc_method_handler(answer, **codecs)


def _unary(handler: Handler) -> Unary:
    async def answer(request: Any, _context: Any) -> Any:
        return await handler(request)

    return answer


def _stream(handler: StreamHandler) -> Stream:
    async def answer(request: Any, _context: Any) -> AsyncGenerator[Any, None]:
        async for item in handler(request):
            yield item

    return answer


def _unimplemented(name: str) -> Unary:
    async def refuse(_request: Any, _context: Any) -> Any:
        raise UnimplementedError(f"criserver does not implement {name}")

    return refuse


def _unimplemented_stream(name: str) -> Stream:
    refuse = _unimplemented(name)

    async def answer(request: Any, context: Any) -> AsyncGenerator[Any, None]:
        yield await refuse(request, context)

    return answer

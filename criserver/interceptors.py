"""What every RPC goes through, once: errors to status codes, observers, readiness, deadlines.

A behaviour is `async (request, context) -> response` (or an asynchronous generator for a stream);
each function here wraps one and returns another.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any, cast
from urllib.parse import quote

import grpc

from api.errors import CRIError, UnavailableError
from criserver.operations import DEADLINE
from criserver.rpcs import CANCELLED, OK, Call, RPCObserver, tell_began, tell_ended

Unary = Callable[[Any, "grpc.aio.ServicerContext[Any, Any]"], Awaitable[Any]]
Stream = Callable[[Any, "grpc.aio.ServicerContext[Any, Any]"], AsyncGenerator[Any, None]]

# Status messages travel in trailers, percent-encoded; clients accept 8 KiB of metadata (the soft
# limit of gRPC core). A message over that would end the connection with all its calls.
MAX_DETAILS = 6 * 1024

# An error about a deadline has to be on its way before the deadline, or the client never sees it.
ANSWER_SECONDS = 0.1
ANSWER_SHARE = 0.1  # of what is left, when that is little


class Readiness:
    """Whether the daemon serves yet; `reason` tells the callers why not."""

    def __init__(self) -> None:
        self.reason = "criserver is starting"

    def ready(self) -> None:
        """Open the gate."""
        self.reason = ""

    def close(self, reason: str) -> None:
        """Close the gate, for the reason that callers are told."""
        self.reason = reason


class Interceptor(grpc.aio.ServerInterceptor):
    """Wraps each method's behaviour once, and hands out the wrapped one from then on."""

    def __init__(self, readiness: Readiness, observers: Sequence[RPCObserver] = ()) -> None:
        self._readiness = readiness
        self._observers = observers
        self._wrapped: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}

    async def intercept_service(
        self,
        continuation: Callable[
            [grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]
        ],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Return the handler of a method; None, which becomes UNIMPLEMENTED, if it has none."""
        path = handler_call_details.method
        if path not in self._wrapped:
            handler = await continuation(handler_call_details)
            if handler is None:
                return None
            self._wrapped[path] = self._wrap(path, handler)
        return self._wrapped[path]

    def _wrap(
        self, path: str, handler: grpc.RpcMethodHandler[Any, Any]
    ) -> grpc.RpcMethodHandler[Any, Any]:
        codecs = {
            "request_deserializer": handler.request_deserializer,
            "response_serializer": handler.response_serializer,
        }
        single: Any = handler.stream_unary if handler.request_streaming else handler.unary_unary
        several: Any = handler.stream_stream if handler.request_streaming else handler.unary_stream
        make: Any
        if handler.response_streaming:
            make = (grpc.unary_stream_rpc_method_handler, grpc.stream_stream_rpc_method_handler)
            wrapped: Any = stream(path, several, self._readiness, self._observers)
        else:
            make = (grpc.unary_unary_rpc_method_handler, grpc.stream_unary_rpc_method_handler)
            wrapped = unary(path, single, self._readiness, self._observers)
        result: grpc.RpcMethodHandler[Any, Any] = make[handler.request_streaming](wrapped, **codecs)
        return result


def unary(
    path: str, behaviour: Unary, readiness: Readiness, observers: Sequence[RPCObserver]
) -> Unary:
    """Wrap a behaviour with one response."""

    async def intercepted(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        call = _begin(path, request, context, observers)
        try:
            _check_ready(readiness)
            _take_deadline(context)
            call.response = await behaviour(request, context)
        except BaseException as err:
            _note(call, err, observers)
            await _abort(context, call)
            raise
        call.end(OK)
        tell_ended(observers, call)
        return call.response

    return intercepted


def stream(
    path: str, behaviour: Stream, readiness: Readiness, observers: Sequence[RPCObserver]
) -> Stream:
    """Wrap a behaviour with a stream of responses."""

    async def intercepted(
        request: Any, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncGenerator[Any, None]:
        call = _begin(path, request, context, observers)
        try:
            _check_ready(readiness)
            async with aclosing(behaviour(request, context)) as responses:
                async for response in responses:
                    yield response
        except BaseException as err:  # GeneratorExit: the caller has gone between two messages
            _note(call, err, observers)
            await _abort(context, call)
            raise
        call.end(OK)
        tell_ended(observers, call)

    return intercepted


def _begin(
    path: str,
    request: Any,
    context: grpc.aio.ServicerContext[Any, Any],
    observers: Sequence[RPCObserver],
) -> Call:
    call = Call(path, request, cast("Any", context.invocation_metadata()))
    tell_began(observers, call)
    return call


def _check_ready(readiness: Readiness) -> None:
    if readiness.reason:
        raise UnavailableError(f"{readiness.reason}; try again")


def _take_deadline(context: grpc.aio.ServicerContext[Any, Any]) -> None:
    remaining = cast("float | None", context.time_remaining())  # None without a deadline
    if remaining is None:
        DEADLINE.set(None)
        return
    margin = min(ANSWER_SECONDS, remaining * ANSWER_SHARE)
    DEADLINE.set(asyncio.get_running_loop().time() + remaining - margin)


def _note(call: Call, error: BaseException, observers: Sequence[RPCObserver]) -> None:
    """Note the failure of an RPC, and tell of it."""
    if isinstance(error, sqlite3.OperationalError):
        error = UnavailableError(
            f"the database cannot be used: {error}: its file system may be full or read-only"
        )
    if isinstance(error, CRIError):
        call.end(error.code, _short(str(error)))
    elif isinstance(error, Exception):
        call.end("INTERNAL", _short(f"{type(error).__name__}: {error}"), error)
    else:
        call.end(CANCELLED)
    tell_ended(observers, call)


async def _abort(context: grpc.aio.ServicerContext[Any, Any], call: Call) -> None:
    """End a failed RPC with its code; cancellation goes on as it is."""
    if call.code != CANCELLED:
        await context.abort(grpc.StatusCode[call.code], call.message)


def _short(details: str) -> str:
    """Cut the middle out of a message that is too long to arrive."""
    half = len(details) // 2
    short = details
    while len(quote(short)) > MAX_DETAILS:
        half = half * 3 // 4
        short = f"{details[:half]} [...] {details[-half:]}"
    return short

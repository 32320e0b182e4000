"""What every RPC goes through, once: errors to status codes, the access log, readiness, deadlines.

A behaviour is `async (request, context) -> response` (or an asynchronous generator for a stream);
each function here wraps one and returns another.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, cast
from urllib.parse import quote

import grpc

from api.errors import CRIError, UnavailableError
from criserver.operations import DEADLINE

log = logging.getLogger("criserver.rpc")

Unary = Callable[[Any, "grpc.aio.ServicerContext[Any, Any]"], Awaitable[Any]]
Stream = Callable[[Any, "grpc.aio.ServicerContext[Any, Any]"], AsyncGenerator[Any, None]]

# Status messages travel in trailers, percent-encoded; clients accept 8 KiB of metadata (the soft
# limit of gRPC core). A message over that would end the connection with all its calls.
MAX_DETAILS = 6 * 1024

# An error about a deadline has to be on its way before the deadline, or the client never sees it.
ANSWER_SECONDS = 0.1
ANSWER_SHARE = 0.1  # of what is left, when that is little

# What clients poll; logged only when it fails, or at level debug.
READ_ONLY = ("Version", "Status", "RuntimeConfig", "ImageFsInfo", "List", "Stream")

# The request fields that name what an RPC is about. Nothing else of a request is ever logged.
ID_FIELDS = ("container_id", "pod_sandbox_id")


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

    def __init__(self, readiness: Readiness) -> None:
        self._readiness = readiness
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
            self._wrapped[path] = self._wrap(path.rsplit("/", 1)[-1], handler)
        return self._wrapped[path]

    def _wrap(
        self, method: str, handler: grpc.RpcMethodHandler[Any, Any]
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
            wrapped: Any = stream(method, several, self._readiness)
        else:
            make = (grpc.unary_unary_rpc_method_handler, grpc.stream_unary_rpc_method_handler)
            wrapped = unary(method, single, self._readiness)
        result: grpc.RpcMethodHandler[Any, Any] = make[handler.request_streaming](wrapped, **codecs)
        return result


def unary(method: str, behaviour: Unary, readiness: Readiness) -> Unary:
    """Wrap a behaviour with one response."""

    async def intercepted(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        start = time.monotonic()
        try:
            _check_ready(readiness)
            _take_deadline(context)
            response = await behaviour(request, context)
        except BaseException as err:
            await _fail(method, request, context, err, start)
            raise
        _log_success(method, request, response, start)
        return response

    return intercepted


def stream(method: str, behaviour: Stream, readiness: Readiness) -> Stream:
    """Wrap a behaviour with a stream of responses."""

    async def intercepted(
        request: Any, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncGenerator[Any, None]:
        start = time.monotonic()
        try:
            _check_ready(readiness)
            async with aclosing(behaviour(request, context)) as responses:
                async for response in responses:
                    yield response
        except GeneratorExit:  # the caller has gone between two messages
            raise
        except BaseException as err:
            await _fail(method, request, context, err, start)
            raise
        _log_success(method, request, None, start)

    return intercepted


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


async def _fail(
    method: str,
    request: Any,
    context: grpc.aio.ServicerContext[Any, Any],
    error: BaseException,
    start: float,
) -> None:
    """Log a failure and end the RPC with its code; cancellation goes on as it is."""
    if isinstance(error, asyncio.CancelledError):
        log.info("%s: the caller has gone", _line(method, request, None, start))
        return
    if not isinstance(error, Exception):
        return
    if isinstance(error, sqlite3.OperationalError):
        error = UnavailableError(
            f"the database cannot be used: {error}: its file system may be full or read-only"
        )
    if isinstance(error, CRIError):
        code, details = grpc.StatusCode[error.code], str(error)
        log.warning("%s: %s: %s", _line(method, request, None, start), error.code, _short(details))
    else:
        code, details = grpc.StatusCode.INTERNAL, f"{type(error).__name__}: {error}"
        log.error("%s: a fault", _line(method, request, None, start), exc_info=error)
    await context.abort(code, _short(details))


def _log_success(method: str, request: Any, response: Any, start: float) -> None:
    level = logging.DEBUG if _is_read_only(method) else logging.INFO
    if log.isEnabledFor(level):
        log.log(level, "%s: ok", _line(method, request, response, start))


def _is_read_only(method: str) -> bool:
    return method.startswith(READ_ONLY) or method.endswith("Status")


def _line(method: str, request: Any, response: Any, start: float) -> str:
    """Return what the log says of an RPC: method, pod, ids, image, duration. Never its content."""
    words = [method]
    metadata = _metadata(request)
    if metadata is not None:
        words.append(f"pod={metadata.namespace}/{metadata.name}")
    for message in (request, response):
        words += [
            f"{field}={value[:80]!r}" for field in ID_FIELDS if (value := _text(message, field))
        ]
    image = getattr(request, "image", None)
    if image is not None and (reference := _text(image, "image")):
        words.append(f"image={reference[:256]!r}")
    words.append(f"{(time.monotonic() - start) * 1000:.1f} ms")
    return " ".join(words)


def _metadata(request: Any) -> Any:
    """Return the pod's metadata where the request carries the pod's config."""
    for field in ("sandbox_config", "config"):
        config = getattr(request, field, None)
        if config is not None and hasattr(config, "log_directory") and config.HasField("metadata"):
            return config.metadata
    return None


def _text(message: Any, field: str) -> str:
    value = getattr(message, field, "")
    return value if isinstance(value, str) else ""


def _short(details: str) -> str:
    """Cut the middle out of a message that is too long to arrive."""
    half = len(details) // 2
    short = details
    while len(quote(short)) > MAX_DETAILS:
        half = half * 3 // 4
        short = f"{details[:half]} [...] {details[-half:]}"
    return short

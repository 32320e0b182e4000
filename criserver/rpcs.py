"""RPCs as those see them who observe them: the access log, metrics, traces.

Observers are called on the event loop, in the task of the RPC.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any, Protocol

from criserver.rpc_subject import Subject

log = logging.getLogger(__name__)

# Names of gRPC codes (grpc.StatusCode).
OK = "OK"
CANCELLED = "CANCELLED"  # the caller has gone before the answer


class Call:
    """One RPC from its arrival to its end.

    path: "/runtime.v1.RuntimeService/Status"; method: its last part. metadata: the caller's, as
    (key, value). started: ns since the epoch. code: a gRPC code's name, "" while it is under way;
    message: the error's; fault: an error that is a bug of ours. subject: what it is about, once an
    observer has wanted to know. trace_id: of the trace that it belongs to, "" if it is not sampled.
    """

    __slots__ = (
        "_began",
        "code",
        "fault",
        "message",
        "metadata",
        "method",
        "path",
        "request",
        "response",
        "seconds",
        "started",
        "subject",
        "trace_id",
    )

    def __init__(self, path: str, request: Any, metadata: Sequence[tuple[str, Any]] | None) -> None:
        self.path = path
        self.method = path.rsplit("/", 1)[-1]
        self.request = request
        self.metadata = metadata or ()
        self.started = time.time_ns()
        self._began = time.monotonic()
        self.seconds = 0.0
        self.response: Any = None
        self.code = ""
        self.message = ""
        self.fault: Exception | None = None
        self.subject: Subject | None = None
        self.trace_id = ""

    def end(self, code: str, message: str = "", fault: Exception | None = None) -> None:
        """Note how it ended."""
        self.seconds = time.monotonic() - self._began
        self.code, self.message, self.fault = code, message, fault


class RPCObserver(Protocol):
    """Who is told of every RPC."""

    def began(self, call: Call) -> None:
        """Note that an RPC begins: what is set in this context holds for what the RPC does."""

    def ended(self, call: Call) -> None:
        """Note that it has ended: `code`, `message` and `seconds` are set."""


def tell_began(observers: Sequence[RPCObserver], call: Call) -> None:
    """Tell all observers of a new RPC; one that fails is no reason for the RPC to."""
    for observer in observers:
        try:
            observer.began(call)
        except Exception:
            log.exception("an observer of RPCs failed at the begin of %s", call.method)


def tell_ended(observers: Sequence[RPCObserver], call: Call) -> None:
    """Tell all observers of an RPC's end."""
    for observer in observers:
        try:
            observer.ended(call)
        except Exception:
            log.exception("an observer of RPCs failed at the end of %s", call.method)

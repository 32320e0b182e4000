"""One line per RPC, and so per operation: pod, ids, image, duration and outcome. Never its content.

What clients poll is logged when it fails, or at level debug. An operation that outlives its caller
has two lines: the caller's, which says where it is, and one at its end, of criserver.operations.
"""

from __future__ import annotations

import logging

from criserver import logs
from criserver.rpc_subject import Subject, Subjects
from criserver.rpcs import CANCELLED, OK, Call

log = logging.getLogger("criserver.rpc")

READ_ONLY = ("Version", "Status", "RuntimeConfig", "ImageFsInfo", "List", "Stream", "Explain")


class AccessLog:
    """See criserver.rpcs.RPCObserver."""

    def __init__(self, subjects: Subjects | None = None) -> None:
        self._subjects = subjects or Subjects()

    def began(self, call: Call) -> None:
        """Look up what it is about while that is there: a removal takes it away."""
        if not _is_read_only(call.method):
            call.subject = self._subjects.of(call.request)

    def ended(self, call: Call) -> None:
        """Write the line."""
        level = _level(call)
        if not log.isEnabledFor(level):
            return
        subject = call.subject or self._subjects.of(call.request)
        subject.take_ids(call.response)
        told: dict[str, str | float] = {"method": call.method, **dict(subject.present())}
        told |= {"code": call.code, "duration_ms": round(call.seconds * 1000, 1)}
        told |= {"error": call.message} if call.message else {}
        told |= {"trace_id": call.trace_id} if call.trace_id else {}
        log.log(
            level,
            "%s: %s",
            _line(call, subject),
            _outcome(call),
            exc_info=call.fault,
            extra=logs.fields(told),
        )


def _is_read_only(method: str) -> bool:
    return method.startswith(READ_ONLY) or method.endswith("Status")


def _level(call: Call) -> int:
    if call.fault is not None:
        return logging.ERROR
    if call.code == OK:
        return logging.DEBUG if _is_read_only(call.method) else logging.INFO
    return logging.INFO if call.code == CANCELLED else logging.WARNING


def _outcome(call: Call) -> str:
    if call.fault is not None:
        return "a fault"
    if call.code == OK:
        return "ok"
    if call.code == CANCELLED:
        return "the caller has gone"
    return f"{call.code}: {call.message}"


def _line(call: Call, subject: Subject) -> str:
    words = [call.method]
    if subject.pod:
        words.append(f"pod={subject.namespace}/{subject.pod}")
    for name in ("container", "container_id", "pod_sandbox_id", "image"):
        if value := getattr(subject, name):
            words.append(f"{name}={value!r}")
    words.append(f"{call.seconds * 1000:.1f} ms")
    return " ".join(words)

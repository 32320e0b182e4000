"""What the error stream of remotecommand says in the end: how the command ended, or what is wrong.

From v4 on it is a metav1.Status as JSON, for success too; before, text, and none for success.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any


@dataclass(frozen=True)
class RemoteStatus:
    """The end of an exec or an attach."""

    message: str = ""  # "" is success
    reason: str = ""
    code: int = 0
    causes: list[dict[str, str]] = field(default_factory=list)

    def to_json(self) -> bytes:
        """Return the metav1.Status."""
        status: dict[str, Any] = {
            "metadata": {},
            "status": "Failure" if self.message else "Success",
        }
        optional = {
            "message": self.message,
            "reason": self.reason,
            "details": {"causes": self.causes} if self.causes else None,
            "code": self.code,
        }
        status.update({key: value for key, value in optional.items() if value})
        return json.dumps(status, separators=(",", ":")).encode()

    def to_text(self) -> bytes:
        """Return what the versions before v4 send."""
        return self.message.encode()


SUCCESS = RemoteStatus()


def exited(code: int) -> RemoteStatus:
    """Return the status of a command that has ended; kubectl takes the code from the cause."""
    if code == 0:
        return SUCCESS
    return RemoteStatus(
        f"command terminated with non-zero exit code: exit code {code}",
        "NonZeroExitCode",
        causes=[{"reason": "ExitCode", "message": str(code)}],
    )


def failed(message: str) -> RemoteStatus:
    """Return the status of what never ran, or whose end we do not know."""
    return RemoteStatus(
        f"Internal error occurred: {message}", "InternalError", HTTPStatus.INTERNAL_SERVER_ERROR
    )


def ended(message: str) -> RemoteStatus:
    """Return the status of a stream that we end while its process may go on."""
    return RemoteStatus(message, "ServiceUnavailable", HTTPStatus.SERVICE_UNAVAILABLE)

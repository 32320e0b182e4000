"""The errors that cross package borders, each with the one gRPC code it becomes.

Handlers raise these and never touch a gRPC context: criserver.interceptors maps them once.
A message says what failed, where, why, and what to do about it.
"""

from __future__ import annotations


class CRIError(Exception):
    """Base of all errors with a gRPC status; `code` is the name of a grpc.StatusCode."""

    code = "UNKNOWN"


class NotFoundError(CRIError):
    """The named object does not exist. The kubelet tells it from every other failure."""

    code = "NOT_FOUND"

    def __init__(self, kind: str, name: str) -> None:
        super().__init__(f"{kind} {name!r} not found")
        self.kind = kind
        self.name = name


class AlreadyExistsError(CRIError):
    """The name is taken by another object."""

    code = "ALREADY_EXISTS"


class InvalidArgumentError(CRIError):
    """Nobody could carry the request out: a field is missing, malformed or contradictory."""

    code = "INVALID_ARGUMENT"


class FailedPreconditionError(CRIError):
    """The request is well-formed, but the object's state does not allow it."""

    code = "FAILED_PRECONDITION"


class UnavailableError(CRIError):
    """The daemon is starting or stopping, or a part it needs is away: the caller may try again."""

    code = "UNAVAILABLE"


class DeadlineExceededError(CRIError):
    """The wait ended; the message names the stage and how long it has been in it."""

    code = "DEADLINE_EXCEEDED"


class ResourceExhaustedError(CRIError):
    """A named limit is reached."""

    code = "RESOURCE_EXHAUSTED"


class UnimplementedError(CRIError):
    """The RPC or the feature is not there. Clients rely on this code to switch to another way."""

    code = "UNIMPLEMENTED"


class InternalError(CRIError):
    """A fault of the runtime or of the system below it."""

    code = "INTERNAL"


class ImagePullError(CRIError):
    """A pull failed. The kubelet matches the message's prefix, so the code stays UNKNOWN."""

    code = "UNKNOWN"

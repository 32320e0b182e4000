"""api.errors: each error a client may see has the gRPC code that clients act on."""

from __future__ import annotations

import inspect
from typing import Any

import grpc
import pytest

from api import errors

CODES = {
    "CRIError": "UNKNOWN",
    "NotFoundError": "NOT_FOUND",
    "AlreadyExistsError": "ALREADY_EXISTS",
    "InvalidArgumentError": "INVALID_ARGUMENT",
    "FailedPreconditionError": "FAILED_PRECONDITION",
    "UnavailableError": "UNAVAILABLE",
    "DeadlineExceededError": "DEADLINE_EXCEEDED",
    "ResourceExhaustedError": "RESOURCE_EXHAUSTED",
    "UnimplementedError": "UNIMPLEMENTED",
    "InternalError": "INTERNAL",
    "ImagePullError": "UNKNOWN",  # with any other, the kubelet does not look at the prefix
}
CLASSES: dict[str, Any] = {
    name: value
    for name, value in vars(errors).items()
    if inspect.isclass(value) and value.__module__ == errors.__name__
}


def test_every_error_has_the_code_of_its_meaning() -> None:
    assert {name: error.code for name, error in CLASSES.items()} == CODES


@pytest.mark.parametrize("error", CLASSES.values())
def test_a_code_is_one_of_grpcs_and_never_ok(error: type[errors.CRIError]) -> None:
    assert error.code in grpc.StatusCode.__members__
    assert error.code not in ("OK", "CANCELLED")


@pytest.mark.parametrize("error", CLASSES.values())
def test_one_except_clause_catches_them_all_and_nothing_else(error: type[errors.CRIError]) -> None:
    assert issubclass(error, errors.CRIError)
    assert not issubclass(error, OSError | LookupError | ValueError)


def test_not_found_names_what_is_missing() -> None:
    error = errors.NotFoundError("container", "a\nb")
    assert (error.kind, error.name) == ("container", "a\nb")
    assert str(error) == r"container 'a\nb' not found"


@pytest.mark.parametrize("error", [c for n, c in CLASSES.items() if n != "NotFoundError"])
def test_a_message_is_given_to_the_client_as_it_is(error: type[errors.CRIError]) -> None:
    assert str(error("what failed, where, why")) == "what failed, where, why"


def test_the_cause_stays_with_the_error() -> None:
    cause = KeyError("x")
    with pytest.raises(errors.NotFoundError) as raised:
        raise errors.NotFoundError("image", "x") from cause
    assert raised.value.__cause__ is cause

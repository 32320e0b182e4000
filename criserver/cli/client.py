"""The connection to the runtime, and what its errors mean to a person."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TypeVar

# gRPC core prints its own view of a failed connection; ours is in the error.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import grpc

from api.cri import api_pb2_grpc
from api.extension import extension_pb2_grpc
from criserver.cli.errors import FAILURE, CommandError

Answer = TypeVar("Answer")

# What the runtime may answer with (cri-api: the kubelet's limit).
MAX_MESSAGE = 16 * 1024 * 1024


class Client:
    """Stubs of every service on the runtime's socket; a context manager."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint if "://" in endpoint else f"unix://{endpoint}"
        if not self.endpoint.startswith("unix:///"):
            raise CommandError(
                f"the endpoint must be unix:///PATH, not {endpoint!r}: correct --endpoint"
            )
        options = [("grpc.max_receive_message_length", MAX_MESSAGE)]
        self._channel = grpc.insecure_channel(self.endpoint, options=options)
        self.runtime = api_pb2_grpc.RuntimeServiceStub(self._channel)
        self.images = api_pb2_grpc.ImageServiceStub(self._channel)
        self.extension = extension_pb2_grpc.ExtensionStub(self._channel)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._channel.close()

    @contextlib.contextmanager
    def doing(self, what: str, exit_code: int = FAILURE) -> Iterator[None]:
        """Turn a failed call into a CommandError that begins with "cannot <what>"."""
        try:
            yield
        except grpc.RpcError as err:
            message = f"cannot {what}: {self.explain(err)}"
            raise CommandError(message, exit_code) from err

    def unless_gone(self, what: str, call: Callable[[], Answer]) -> Answer | None:
        """Return the call's answer; None for what has been removed since it was listed."""
        with self.doing(what):
            try:
                return call()
            except grpc.RpcError as err:
                if err.code() is grpc.StatusCode.NOT_FOUND:
                    return None
                raise

    def explain(self, error: grpc.RpcError) -> str:
        """Return why a call failed and, where the user can do something, what."""
        details = error.details() or error.code().name
        if error.code() is grpc.StatusCode.UNAVAILABLE:
            return _connect_trouble(self.endpoint) or details
        if error.code() is grpc.StatusCode.UNIMPLEMENTED:
            return f"the runtime at {self.endpoint} does not offer this ({details})"
        return details


def _connect_trouble(endpoint: str) -> str | None:
    """Return why the socket cannot be reached, or None when it can: then the daemon said it."""
    path = endpoint.removeprefix("unix://")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except FileNotFoundError:
            return f"no runtime at {endpoint}: start it with `criserver serve`, or set --endpoint"
        except ConnectionRefusedError:
            return f"nobody listens at {endpoint}: the daemon is down; start `criserver serve`"
        except PermissionError:
            return f"no permission to open {endpoint}: run this as root"
        except OSError as err:
            return f"{endpoint} cannot be reached: {err.strerror or err}"
    return None

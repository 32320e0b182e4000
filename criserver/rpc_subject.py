"""What an RPC is about: pod, container and image, for the log and for traces.

Ids and names are cut: what a caller sends in their place may have a million characters.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from api.cri import api_pb2 as cri
from api.errors import CRIError
from criserver.store.containers import Container
from criserver.store.mirror import Mirror
from criserver.store.sandboxes import Sandbox

MAX_ID = 80  # an id has 64 characters
MAX_NAME = 256  # a Kubernetes name has at most 253


@dataclass(slots=True)
class Subject:
    """What is known of it; what is not is ""."""

    namespace: str = ""
    pod: str = ""
    pod_uid: str = ""
    container: str = ""
    pod_sandbox_id: str = ""
    container_id: str = ""
    image: str = ""

    def present(self) -> Iterator[tuple[str, str]]:
        """Give the names and values of what is known."""
        for name in self.__slots__:
            if value := getattr(self, name):
                yield name, value

    def take_pod(self, metadata: cri.PodSandboxMetadata) -> None:
        """Take the pod's name from a sandbox's configuration."""
        self.namespace = metadata.namespace[:MAX_NAME]
        self.pod = metadata.name[:MAX_NAME]
        self.pod_uid = metadata.uid[:MAX_NAME]

    def take_ids(self, message: Any) -> None:
        """Take the ids that a request, or its response, holds."""
        self.container_id = _text(message, "container_id")[:MAX_ID] or self.container_id
        self.pod_sandbox_id = _text(message, "pod_sandbox_id")[:MAX_ID] or self.pod_sandbox_id


class Subjects:
    """Finds out what requests are about, the names of known ids from the stores."""

    def __init__(
        self,
        sandboxes: Mirror[Sandbox] | None = None,
        containers: Mirror[Container] | None = None,
    ) -> None:
        self._sandboxes = sandboxes
        self._containers = containers

    def of(self, request: Any) -> Subject:
        """Return what a request is about; cheap, and never an error."""
        subject = Subject()
        subject.take_ids(request)
        image = getattr(request, "image", None)
        if image is not None:
            subject.image = _text(image, "image")[:MAX_NAME]
        self._take_container(subject)
        self._take_sandbox(subject)
        for field in ("sandbox_config", "config"):
            _take_config(subject, getattr(request, field, None))
        return subject

    def _take_container(self, subject: Subject) -> None:
        if self._containers is None or not subject.container_id:
            return
        try:
            container = self._containers.get(subject.container_id)
        except CRIError:  # unknown, or not an id at all: the RPC itself says so
            return
        subject.container_id, subject.pod_sandbox_id = container.id, container.sandbox_id
        subject.container = container.message_config.metadata.name[:MAX_NAME]

    def _take_sandbox(self, subject: Subject) -> None:
        if self._sandboxes is None or not subject.pod_sandbox_id:
            return
        try:
            sandbox = self._sandboxes.get(subject.pod_sandbox_id)
        except CRIError:
            return
        subject.pod_sandbox_id = sandbox.id
        subject.take_pod(sandbox.message.metadata)


def _take_config(subject: Subject, config: Any) -> None:
    match config:
        case cri.PodSandboxConfig() if config.HasField("metadata"):
            subject.take_pod(config.metadata)
        case cri.ContainerConfig():
            subject.container = config.metadata.name[:MAX_NAME]
            subject.image = config.image.image[:MAX_NAME]
        case _:
            pass


def _text(message: Any, field: str) -> str:
    value = getattr(message, field, "")
    return value if isinstance(value, str) else ""

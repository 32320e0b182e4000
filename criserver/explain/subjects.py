"""What operations are about: pods, containers and images, by the names that people use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from criserver.store.containers import Container, ContainerStore
from criserver.store.sandboxes import Sandbox, SandboxStore

POD, CONTAINER, IMAGE = "pod", "container", "image"


@dataclass(frozen=True)
class Subject:
    """`key`: an id, or an image's name. `namespace` and `pod` are the pod's, `sandbox` its id.

    Both are "" of an image; `pod` and `sandbox` of a pod are its own.
    """

    key: str
    kind: str
    name: str
    namespace: str = ""
    pod: str = ""
    sandbox: str = ""

    def __str__(self) -> str:
        """Name it for a person."""
        if self.kind == IMAGE:
            return f"image {self.key}"
        if self.kind == POD:
            return f"pod {self.namespace}/{self.name}"
        return f"container {self.name} of pod {self.namespace}/{self.pod}"

    def is_called(self, reference: str) -> bool:
        """Tell whether a person means it by a name, more or less qualified, or by an id's begin."""
        names = {self.key, self.name}
        if self.kind == POD:
            names.add(f"{self.namespace}/{self.name}")
        elif self.kind == CONTAINER:
            names |= {f"{self.pod}/{self.name}", f"{self.namespace}/{self.pod}/{self.name}"}
        return reference in names or (self.kind != IMAGE and self.key.startswith(reference))


class Found(NamedTuple):
    """A pod's record, or a container's with its pod's."""

    sandbox: Sandbox
    container: Container | None


class Subjects:
    """The pods and containers that are there, made or being made."""

    def __init__(self, sandboxes: SandboxStore, containers: ContainerStore) -> None:
        self._sandboxes = sandboxes.mirror
        self._containers = containers.mirror

    def find(self, key: str) -> Found | None:
        """Return the records of an id; costs next to nothing."""
        if key in self._containers:
            container = self._containers.exact(key)
            return Found(self._sandboxes.exact(container.sandbox_id), container)
        if key in self._sandboxes:
            return Found(self._sandboxes.exact(key), None)
        return None

    def all(self) -> list[Subject]:
        """Return all, those that were made last first."""
        pods = [Found(one, None) for one in (*self._sandboxes.made(), *self._sandboxes.unmade())]
        containers = [
            Found(self._sandboxes.exact(one.sandbox_id), one)
            for one in (*self._containers.made(), *self._containers.unmade())
        ]
        return [describe(found) for found in (*reversed(pods), *reversed(containers))]


def describe(found: Found) -> Subject:
    """Return a record's names; reads its configuration."""
    sandbox, container = found
    pod = sandbox.message.metadata
    if container is None:
        return Subject(sandbox.id, POD, pod.name, pod.namespace, pod.name, sandbox.id)
    name = container.message_config.metadata.name
    return Subject(container.id, CONTAINER, name, pod.namespace, pod.name, sandbox.id)

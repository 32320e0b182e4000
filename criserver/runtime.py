"""What the RPCs share: the settings, the stores and the parts below."""

from __future__ import annotations

import secrets
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from api.errors import FailedPreconditionError
from criserver import waits
from criserver.config import Config
from criserver.container_spec import HostFacts
from criserver.events import Events
from criserver.explain.explainer import Explainer
from criserver.explain.history import History
from criserver.leaks import Leaks
from criserver.operations import Operations
from criserver.readiness import RuntimeReadiness
from criserver.sandbox_watch import SandboxWatch
from criserver.shims import Shims
from criserver.stats.collector import Collector
from criserver.stops import Stops
from criserver.store.containers import ContainerStore
from criserver.store.sandboxes import SandboxStore
from criserver.streaming.server import StreamingServer
from imageservice.service import ImageService
from podsandbox.lifecycle import Sandboxes
from podsandbox.network import SelectedNetwork
from runtimeshim.client import Shim, Spawner
from runtimeshim.linux.cgroups import CgroupManager

# 32 random bytes as 64 hex digits, as the peers': no "-", since the kubelet takes what follows the
# last one in a cgroup's name for the id.
ID_BYTES = 32


@dataclass
class Runtime:
    """One daemon's parts; made once by criserver.daemon."""

    config: Config
    sandboxes: SandboxStore
    containers: ContainerStore
    shims: Shims
    sandbox_watch: SandboxWatch
    spawner: Spawner
    images: ImageService
    pods: Sandboxes
    network: SelectedNetwork
    host: HostFacts
    events: Events
    cgroups: CgroupManager
    collector: Collector
    streams: StreamingServer
    readiness: RuntimeReadiness
    history: History
    recursive_read_only: Collection[str] = ()  # external runtime handlers that can mount so
    operations: Operations = field(default_factory=Operations)
    stops: Stops = field(default_factory=Stops)
    leaks: Leaks = field(default_factory=Leaks)

    @cached_property
    def explainer(self) -> Explainer:
        """What tells a person what was done to an object."""
        return Explainer(self.history, self.operations, lambda key: waits.stuck(self, key))

    def bundle(self, container_id: str) -> Path:
        """Return the directory of a container's bundle."""
        return self.config.run_dir / "containers" / container_id

    def find_shim(self, reference: str) -> tuple[Shim, Path]:
        """Return the shim and the bundle of a container that lives, by id or unique prefix."""
        container = self.containers.mirror.get(reference)
        shim = self.shims.get(container.id)
        if shim is None:
            raise FailedPreconditionError(f"container {container.id} is {container.state.name}")
        return shim, self.bundle(container.id)


def new_id() -> str:
    """Return the id of a new sandbox or container."""
    return secrets.token_hex(ID_BYTES)

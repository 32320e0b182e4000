"""What is measured: the operations with their units, and the factors that are aimed at.

A factor is ours as a share of the better peer's (tests.bench.results.share). That of a time or a
size is to be at most the aim, that of a rate at least.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

BUILTIN, CNI = "built-in", "CNI"
COMMAND, SPAWNER = "command line", "spawner"


@dataclass(frozen=True)
class Operation:
    """A row. `aims` maps the kind of ours to its factor."""

    group: str
    title: str
    unit: str = "ms"
    aims: Mapping[str, float] = field(default_factory=dict, hash=False)
    is_rate: bool = False  # more is better

    def reaches(self, ratio: float, aim: float) -> bool:
        return ratio >= aim if self.is_rate else ratio <= aim


def both(builtin: float, cni: float | None = None) -> dict[str, float]:
    return {BUILTIN: builtin, CNI: builtin if cni is None else cni}


GROUPS = {
    "lifecycle": "A pod and a container from beginning to end, one at a time",
    "parallel": "The same, 8 at a time: the time of all of them, divided by their number",
    "burst": "60 pods of one container, started as `crictl run` does, removed as `crictl rmp -af`",
    "images": "Images",
    "streaming": "A streaming exec, and a port-forward",
    "density": "Beside many pods",
    "oci": "`run` of /bin/true, as an OCI runtime",
    "faults": "Faults",
}

_STEPS = {
    "RunPodSandbox": both(0.15, 0.5),
    "CreateContainer + StartContainer": both(0.25),
    "ExecSync true": both(0.3),
    "ContainerStatus": both(1.0),
    "PodSandboxStatus": both(1.0),
    "StopContainer": both(0.3),
    "RemoveContainer": both(0.7),
    "StopPodSandbox": both(0.15, 0.6),
    "RemovePodSandbox": both(0.3),
}


def _catalogue() -> list[Operation]:
    found = [Operation("lifecycle", title, aims=aims) for title, aims in _STEPS.items()]
    found += [Operation("parallel", title) for title in _STEPS]
    found += [
        Operation("burst", "start, one after another", "s", both(0.35)),
        Operation("burst", "start, 8 at a time", "s", both(0.35)),
        Operation("burst", "remove, all at once", "s", both(0.5)),
        Operation("burst", "daemon, PSS", "MB", both(1.0)),
        Operation("burst", "shims and pauses, PSS a pod", "MB", both(0.4)),
        Operation("images", "PullImage, 1 MB", aims=both(0.5)),
        Operation("images", "ImageStatus", aims=both(1.0)),
        Operation("images", "ListImages", aims=both(1.0)),
        Operation("images", "RemoveImage", aims=both(1.0)),
        Operation("images", "pull, 20,000 files of 4 KB", "s", both(0.5)),
        Operation("images", "pull, 4 layers of 60 x 1 MB", "s", both(0.5)),
        Operation("images", "pull, one file of 200 MB", "s", both(0.5)),
        Operation("images", "most memory while pulling one file of 200 MB", "MB"),
    ]
    transports = ("SPDY", "WebSocket")
    for transport in (*transports, *(f"port-forward over {each}" for each in transports)):
        found += [
            Operation("streaming", f"{transport}, {way}", "MB/s", both(1.0), is_rate=True)
            for way in ("out", "in")
        ]
    found += [
        Operation("oci", "run to its end", aims={COMMAND: 1.5, SPAWNER: 0.2}),
        Operation("faults", "lines written while the daemon is dead", ""),
        Operation("faults", "lines in the log at the end", ""),
        Operation("faults", "exit while the daemon is dead", ""),
        Operation("faults", "shim killed", ""),
    ]
    return found


CATALOGUE = {(operation.group, operation.title): operation for operation in _catalogue()}


def operation(group: str, title: str, unit: str = "ms") -> Operation:
    """The operation of this name; one that no factor is known for when it is not listed."""
    return CATALOGUE.get((group, title)) or Operation(group, title, unit)

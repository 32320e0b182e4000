"""Manifests of static pods, in as few words as a test needs."""

from __future__ import annotations

import itertools
import os
from typing import Any

IMAGE = "registry.test/cri/busybox:latest"
FOREVER = "trap 'exit 0' TERM; while true; do sleep 0.2; done"

_number = itertools.count()


def shell(script: str, name: str = "main", **fields: Any) -> dict[str, Any]:
    """A container that runs `script`."""
    command = ["/bin/sh", "-c", script]
    given = {"name": name, "image": IMAGE, "imagePullPolicy": "IfNotPresent", "command": command}
    return {**given, **fields}


def pod(*containers: dict[str, Any], **spec: Any) -> dict[str, Any]:
    """A pod of these containers (one that runs for ever without); `spec` are its further fields.

    `annotations` and `labels` go to its metadata. Names are never used twice: a kubelet delays a
    static pod of a name that it has ended before.
    """
    metadata: dict[str, Any] = {"name": f"pod{os.getpid()}x{next(_number)}", "namespace": "tests"}
    for key in ("annotations", "labels"):
        if key in spec:
            metadata[key] = spec.pop(key)
    given = {
        "containers": list(containers) or [shell(FOREVER)],
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 5,
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {**given, **spec}}

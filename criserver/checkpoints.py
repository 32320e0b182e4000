"""CheckpointContainer, CheckpointPod and RestorePod: refused, and it is said why."""

from __future__ import annotations

from typing import NoReturn

from api.cri import api_pb2 as cri
from api.errors import UnimplementedError
from criserver.runtime import Runtime


async def checkpoint_container(
    _runtime: Runtime, _request: cri.CheckpointContainerRequest
) -> cri.CheckpointContainerResponse:
    """Refuse."""
    _refuse("a container cannot be checkpointed")


async def checkpoint_pod(
    _runtime: Runtime, _request: cri.CheckpointPodRequest
) -> cri.CheckpointPodResponse:
    """Refuse."""
    _refuse("a pod cannot be checkpointed")


async def restore_pod(_runtime: Runtime, _request: cri.RestorePodRequest) -> cri.RestorePodResponse:
    """Refuse."""
    _refuse("a pod cannot be restored")


def _refuse(what: str) -> NoReturn:
    raise UnimplementedError(
        f"{what}: criserver does not drive CRIU; start the workload anew instead"
    )

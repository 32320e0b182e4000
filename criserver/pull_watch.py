"""The progress of pulls as the extension's messages."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

from api.extension import extension_pb2 as pb
from imageservice.progress import LayerProgress, PullProgress


class PullWatcher(Protocol):
    """What WatchPulls needs of the ImageService."""

    def watch_pulls(self, name: str) -> AsyncGenerator[list[PullProgress], None]:
        """Give the pulls under way, now and after each change."""


def to_message(pulls: list[PullProgress]) -> pb.WatchPullsResponse:
    """Return the answer that tells of these pulls."""
    return pb.WatchPullsResponse(pulls=[_pull(pull) for pull in pulls])


def _pull(pull: PullProgress) -> pb.Pull:
    return pb.Pull(
        image=pull.image,
        started_at=pull.started_at,
        resolved=pull.layers is not None,
        layers=[_layer(layer) for layer in pull.layers or ()],
    )


def _layer(layer: LayerProgress) -> pb.PullLayer:
    return pb.PullLayer(
        digest=layer.digest,
        size=layer.size,
        fetched=layer.fetched,
        state=f"PULL_LAYER_{layer.state.name}",
    )

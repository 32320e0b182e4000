"""Images by the names that people give them."""

from __future__ import annotations

from api.cri import api_pb2 as cri
from criserver.cli.client import Client
from criserver.cli.errors import FAILURE


def find_image(client: Client, name: str, exit_code: int = FAILURE) -> cri.Image | None:
    """Return the image of this name, digest, id or beginning of an id, or None."""
    with client.doing(f"look up image {name}", exit_code):
        request = cri.ImageStatusRequest(image=cri.ImageSpec(image=name))
        answer = client.images.ImageStatus(request)
    return answer.image if answer.HasField("image") else None

"""A pull as the command line does it: with the user's credentials, and showing how it goes."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable

import grpc

from api.cri import api_pb2 as cri
from api.extension import extension_pb2 as pb
from criserver.cli.client import Client
from criserver.cli.credentials import credentials_for
from criserver.cli.errors import FAILURE
from criserver.cli.pull_progress import Display, display_for


def pull_image(client: Client, name: str, exit_code: int = FAILURE, *, quiet: bool = False) -> str:
    """Pull an image and return its id; how it goes is shown on stderr unless `quiet`.

    Raises CommandError. An interrupt ends the pull, unless somebody else waits for it too.
    """
    request = cri.PullImageRequest(image=cri.ImageSpec(image=name), auth=credentials_for(name))
    with client.doing(f"pull {name}", exit_code):
        if quiet:
            return client.images.PullImage(request).image_ref
        return _shown(client, request, display_for(sys.stderr))


def _shown(client: Client, request: cri.PullImageRequest, display: Display) -> str:
    watch = client.extension.WatchPulls(pb.WatchPullsRequest(image=request.image.image))
    pull = client.images.PullImage.future(request)
    try:
        pull.add_done_callback(lambda _: _end(watch))
        _follow(watch, display)
        answer = pull.result()
    except BaseException:
        display.end(succeeded=False)
        raise
    finally:
        pull.cancel()
        watch.cancel()
    display.end(succeeded=True)
    return answer.image_ref


def _end(call: grpc.RpcContext) -> None:
    call.cancel()


def _follow(watch: Iterable[pb.WatchPullsResponse], display: Display) -> None:
    """Show the pull until it has ended.

    Whatever else ends the watch (another runtime does not offer it), the pull's own end counts.
    """
    with contextlib.suppress(grpc.RpcError):
        for answer in watch:
            if answer.pulls and answer.pulls[0].resolved:
                display.update(answer.pulls[0].layers)

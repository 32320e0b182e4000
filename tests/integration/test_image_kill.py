"""The daemon is killed anywhere in a pull: the next one goes on, and the store is whole."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from api.cri import api_pb2 as cri
from api.extension import extension_pb2 as pb
from api.extension import extension_pb2_grpc
from tests.integration import images
from tests.integration.daemon import RPC_SECONDS, Daemon
from tests.integration.registry import Registry

pytestmark = pytest.mark.integration

KILLS = 50
NAME = "registry.test/killed:latest"


def image_of_layers() -> images.Image:
    """Layers that differ: some take longer to fetch, some longer to unpack."""
    layers = []
    for number in range(6):
        files: dict[str, bytes | str] = {f"l{number}/f{n}": f"{n}" for n in range(20 * number)}
        files[f"big{number}"] = os.urandom(400_000 * (6 - number))
        layers.append(images.files_layer(files, "zstd" if number % 2 else "gzip"))
    return images.Image(tuple(layers), {"Env": ["K=1"]})


def pull(daemon: Daemon) -> str:
    request = cri.PullImageRequest(image=cri.ImageSpec(image=NAME))
    return daemon.images.PullImage(request, timeout=RPC_SECONDS).image_ref


def remove(daemon: Daemon) -> None:
    request = cri.RemoveImageRequest(image=cri.ImageSpec(image=NAME))
    daemon.images.RemoveImage(request, timeout=RPC_SECONDS)


def timed_pull(daemon: Daemon) -> float:
    """Seconds that a pull takes; the image is removed again."""
    began = time.monotonic()
    pull(daemon)
    took = time.monotonic() - began
    remove(daemon)
    return took


def kill_in_pull(daemon: Daemon, delay: float) -> None:
    """Kill the daemon `delay` seconds after a pull has begun."""
    request = cri.PullImageRequest(image=cri.ImageSpec(image=NAME))
    future = daemon.images.PullImage.future(request, timeout=RPC_SECONDS)
    time.sleep(delay)
    daemon.kill9()
    with contextlib.suppress(grpc.RpcError, grpc.FutureCancelledError):
        future.result()


def rows(root: Path, query: str) -> list[tuple[str, ...]]:
    with contextlib.closing(sqlite3.connect(root / "criserver.db")) as database:
        return database.execute(query).fetchall()


def finished_blobs(root: Path, image: images.Image) -> set[str]:
    """The layers' blobs that need not come again: all of each is on disk."""
    wanted = {images.digest(layer.blob): len(layer.blob) for layer in image.layers}
    found = set()
    for directory in ("content/blobs/sha256", "content/ingest"):
        for path in (root / directory).iterdir():
            digest = f"sha256:{path.name}"
            if path.stat().st_size == wanted.get(digest):
                found.add(digest)
    return found


def damages(daemon: Daemon) -> list[str]:
    """What `criserver image verify` finds."""
    with grpc.insecure_channel(f"unix:{daemon.socket}") as channel:
        stub = extension_pb2_grpc.ExtensionStub(channel)
        findings = list(stub.VerifyImages(pb.VerifyImagesRequest(), timeout=RPC_SECONDS))
    assert findings
    return [str(found) for found in findings if found.damages or found.note]


def assert_whole(root: Path, image: images.Image) -> None:
    """The database and the disk say the same, and that is the image."""
    blobs = dict(rows(root, "SELECT digest, size FROM blobs"))
    on_disk = {f"sha256:{path.name}": path for path in (root / "content/blobs/sha256").iterdir()}
    assert on_disk.keys() == blobs.keys()
    assert blobs.keys() == {images.digest(blob) for blob in (image.manifest, *image.blobs)}
    for digest, path in on_disk.items():
        assert f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}" == digest
    assert list((root / "content/ingest").iterdir()) == []
    layers = dict(rows(root, "SELECT diff_id, number FROM layers"))
    numbers = {path.name for path in (root / "layers").iterdir()} - {"empty"}
    assert numbers == {str(number) for number in layers.values()}
    for number, layer in enumerate(image.layers):
        tree = root / "layers" / str(layers[layer.diff_id]) / "fs"
        assert (tree / f"big{number}").read_bytes() in layer.tar
        names = {path.name for path in (tree / f"l{number}").glob("*")}
        assert names == {f"f{n}" for n in range(20 * number)}


def test_a_pull_survives_kills_at_random_points(
    registry: Registry, make_daemon: Callable[[], Daemon]
) -> None:
    image = image_of_layers()
    images.push(registry.address, "killed", image)
    daemon = make_daemon()
    daemon.start()
    takes = min(timed_pull(daemon) for _ in range(3))
    seed = int.from_bytes(os.urandom(4))
    print(f"seed {seed}, a pull takes {takes:.3f} s")
    generator = random.Random(seed)
    partial = resumed = 0
    for number in range(KILLS):
        kill_in_pull(daemon, generator.uniform(0, takes))
        finished = finished_blobs(daemon.root, image)
        partial += 0 < len(finished) < len(image.layers)
        resumed += bool(finished)
        daemon.start()
        before = len(registry.requests())
        assert pull(daemon) == image.id
        asked = registry.requests()[before:]
        again = {digest for digest in finished if any(digest in line for line in asked)}
        assert again == set(), f"kill {number} of seed {seed}"
        assert damages(daemon) == []
        assert_whole(daemon.root, image)
        remove(daemon)
    print(f"{resumed} of {KILLS} kills left finished layers, {partial} some but not all")
    assert partial, "no kill hit a pull with a part of its layers"

"""`criserver pull` as a person sees it, and what the daemon tells of pulls under way."""

from __future__ import annotations

import base64
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from api.cri import api_pb2 as cri
from api.extension import extension_pb2 as pb
from api.extension import extension_pb2_grpc
from tests.integration import images
from tests.integration.cli import SECONDS, Cli
from tests.integration.daemon import RPC_SECONDS, Daemon, wait_for
from tests.integration.held_registry import HeldRegistry

pytestmark = pytest.mark.integration


@pytest.fixture
def cli(module_daemon: Daemon) -> Cli:
    return Cli(module_daemon)


@pytest.fixture
def held() -> Iterator[HeldRegistry]:
    registry = HeldRegistry()
    yield registry
    registry.close()


def two_layers() -> images.Image:
    small = images.files_layer({"small": os.urandom(1000)})
    return images.Image((small, images.files_layer({"big": os.urandom(1_000_000)})))


def short(layer: images.Layer) -> str:
    return images.digest(layer.blob).removeprefix("sha256:")[:13]


def test_a_pipe_gets_plain_lines_and_the_id(cli: Cli, held: HeldRegistry) -> None:
    image = two_layers()
    small, big = image.layers
    name = held.add("plain", image)
    gate = held.hold(big)
    with cli.started("pull", name) as process:
        assert process.stderr is not None
        lines = []
        while not any(short(big) in line and "fetching" in line for line in lines):
            line = process.stderr.readline().decode()
            assert line, lines
            lines.append(line)
        gate.set()
        stdout, rest = process.communicate(timeout=SECONDS)
    lines += rest.decode().splitlines(keepends=True)
    assert (process.returncode, stdout.decode()) == (0, f"{image.id}\n")
    assert lines.pop().startswith(f"{short(big)}: done ")
    assert any(line.startswith(f"{short(small)}: done ") for line in lines)
    assert not any("\x1b" in line for line in lines)
    again = cli("pull", name)
    assert (again.returncode, again.stdout.decode()) == (0, f"{image.id}\n")
    assert cli.output("pull", "-q", name) == f"{image.id}\n"


def test_a_terminal_gets_bars_that_move(cli: Cli, held: HeldRegistry) -> None:
    image = two_layers()
    big = image.layers[1]
    name = held.add("bars", image)
    gate = held.hold(big)
    cli.environment["TERM"] = "xterm"
    with cli.at_terminal("pull", name, width=100, height=30) as terminal:
        terminal.expect(f"{short(big)} [==========")
        terminal.expect("] fetching 500kB of 1MB")
        terminal.expect("1 of 2 layers, 50")
        gate.set()
        terminal.expect("\x1b[3A")
        terminal.expect("2 of 2 layers, 1MB of 1MB")
        terminal.expect(image.id)
        assert terminal.wait() == 0


def test_a_pull_that_fails_says_why_below_what_it_has_shown(cli: Cli, held: HeldRegistry) -> None:
    image = two_layers()
    bad = images.Image((image.layers[0], images.Layer(b"no tar" * 9999, "none")))
    result = cli("pull", held.add("bad", bad))
    assert (result.returncode, result.stdout) == (1, b"")
    last = result.stderr.decode().splitlines()[-1]
    assert last.startswith("criserver pull: cannot pull ")
    assert images.digest(bad.layers[1].blob) in last


def test_an_interrupted_pull_is_gone_on_with(
    cli: Cli, held: HeldRegistry, module_daemon: Daemon
) -> None:
    image = two_layers()
    big = image.layers[1]
    name = held.add("interrupted", image)
    gate = held.hold(big)
    partial = module_daemon.root / "content/ingest" / images.digest(big.blob)[len("sha256:") :]
    with cli.started("pull", name) as process:
        wait_for(lambda: fetched(module_daemon, name) > 400_000, "half of it")
        process.send_signal(signal.SIGINT)
        assert process.wait(SECONDS) == 130
    wait_for(lambda: not watch(module_daemon, name).pulls, "the pull to end")
    assert partial.stat().st_size > 400_000
    gate.set()
    assert cli("pull", name).returncode == 0
    assert not partial.exists()


def watch(daemon: Daemon, name: str) -> pb.WatchPullsResponse:
    """What the daemon tells at once."""
    with grpc.insecure_channel(f"unix:{daemon.socket}") as channel:
        stub = extension_pb2_grpc.ExtensionStub(channel)
        call = stub.WatchPulls(pb.WatchPullsRequest(image=name), timeout=RPC_SECONDS)
        answer = next(iter(call))
        call.cancel()
        return answer


def fetched(daemon: Daemon, name: str) -> int:
    """Bytes that are here of the second layer of the pull."""
    pulls = watch(daemon, name).pulls
    return pulls[0].layers[1].fetched if pulls and pulls[0].layers else 0


def test_whoever_asks_is_told_of_every_pull(
    cli: Cli, held: HeldRegistry, module_daemon: Daemon
) -> None:
    image = two_layers()
    small, big = image.layers
    name = held.add("watched", image)
    gate = held.hold(big)

    with cli.started("pull", "-q", name) as process:
        wait_for(lambda: fetched(module_daemon, "") > 400_000, "half of the layer")
        wait_for(
            lambda: watch(module_daemon, name).pulls[0].layers[0].state == pb.PULL_LAYER_DONE,
            "the other layer",
        )
        (pull,) = watch(module_daemon, name.removesuffix(":latest")).pulls
        assert (pull.image, pull.resolved) == (name, True)
        assert pull.started_at > 0
        first, second = pull.layers
        done = len(small.blob)
        assert first == pb.PullLayer(
            digest=images.digest(small.blob), size=done, fetched=done, state=pb.PULL_LAYER_DONE
        )
        assert (second.digest, second.size) == (images.digest(big.blob), len(big.blob))
        assert second.state == pb.PULL_LAYER_FETCHING
        assert second.fetched <= len(big.blob) // 2
        assert not watch(module_daemon, "another/image").pulls
        gate.set()
        assert process.wait(SECONDS) == 0
    assert not watch(module_daemon, "").pulls
    with pytest.raises(grpc.RpcError) as raised:
        watch(module_daemon, "Not/Valid")
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_pull_goes_on_when_one_of_two_clients_goes(
    cli: Cli, held: HeldRegistry, module_daemon: Daemon
) -> None:
    image = two_layers()
    name = held.add("two", image)
    gate = held.hold(image.layers[1])
    request = cri.PullImageRequest(image=cri.ImageSpec(image=name))
    first = module_daemon.images.PullImage.future(request, timeout=RPC_SECONDS)
    second = module_daemon.images.PullImage.future(request, timeout=RPC_SECONDS)
    digest = images.digest(image.layers[1].blob)
    wait_for(lambda: any(digest in path for path in held.gets), "the layer to be asked for")
    first.cancel()
    gate.set()
    assert second.result().image_ref == image.id
    assert sum(digest in path for path in held.gets) == 1


# -- credentials ------------------------------------------------------------------------------


@pytest.fixture
def config(cli: Cli, tmp_path: Path) -> Callable[..., None]:
    """Writes docker's config.json for the command line."""
    cli.environment["DOCKER_CONFIG"] = str(tmp_path)

    def write(**document: object) -> None:
        (tmp_path / "config.json").write_text(json.dumps(document))

    return write


def basic(pair: str) -> str:
    return base64.b64encode(pair.encode()).decode()


def test_the_users_credentials_are_used(
    cli: Cli, held: HeldRegistry, config: Callable[..., None]
) -> None:
    image = two_layers()
    name = held.add("private", image)
    held.authorization = f"Basic {basic('me:secret')}"
    config(auths={"other:5000": {"auth": basic("me:secret")}})
    refused = cli("pull", name)
    assert refused.returncode == 1
    assert b"access denied" in refused.stderr
    config(auths={held.address: {"auth": basic("me:secret")}})
    assert cli.output("pull", "-q", name) == f"{image.id}\n"


def test_a_credential_helper_is_asked(
    cli: Cli, held: HeldRegistry, config: Callable[..., None], tmp_path: Path
) -> None:
    image = two_layers()
    name = held.add("helped", image)
    held.authorization = f"Basic {basic('helper:secret')}"
    helper = tmp_path / "docker-credential-tests"
    helper.write_text(
        f"""#!/bin/sh
read server
test "$1 $server" = "get {held.address}" && echo '{{"Username":"helper","Secret":"secret"}}'
"""
    )
    helper.chmod(0o755)
    cli.environment["PATH"] = f"{tmp_path}:{os.environ['PATH']}"
    config(credHelpers={held.address: "tests"})
    assert cli.output("pull", "-q", name) == f"{image.id}\n"


def test_run_pulls_with_them_too(cli: Cli, held: HeldRegistry, config: Callable[..., None]) -> None:
    name = held.add("run", images.busybox(env=["PATH=/bin", "PRIVATE=1"]))
    held.authorization = f"Basic {basic('me:secret')}"
    config(auths={held.address: {"username": "me", "password": "secret"}})
    result = cli("run", "--rm", name, "sh", "-c", "echo $PRIVATE")
    assert (result.returncode, result.stdout) == (0, b"1\n"), result.stderr


# -- lists ------------------------------------------------------------------------------------


def test_images_can_be_streamed(cli: Cli, held: HeldRegistry, module_daemon: Daemon) -> None:
    names = [held.add(f"stream{number}", two_layers()) for number in range(3)]
    for name in names:
        cli.output("pull", "-q", name)
    stub = module_daemon.images
    listed = stub.ListImages(cri.ListImagesRequest(), timeout=RPC_SECONDS).images
    messages = list(stub.StreamImages(cri.StreamImagesRequest(), timeout=RPC_SECONDS))
    assert all(message.images for message in messages)
    streamed = [image for message in messages for image in message.images]
    assert streamed == list(listed)
    assert len(streamed) >= 3
    one = cri.ImageFilter(image=cri.ImageSpec(image=names[1]))
    (message,) = stub.StreamImages(cri.StreamImagesRequest(filter=one), timeout=RPC_SECONDS)
    assert [list(image.repo_tags) for image in message.images] == [[names[1]]]
    none = cri.ImageFilter(image=cri.ImageSpec(image="no/such/image"))
    assert not list(stub.StreamImages(cri.StreamImagesRequest(filter=none), timeout=RPC_SECONDS))

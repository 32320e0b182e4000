"""SIGHUP to a daemon that serves: what it changes, and that a container never notices."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from api.cri import api_pb2 as cri
from tests.integration.daemon import Daemon, wait_for
from tests.integration.pods import Pods
from tests.integration.registry import Registry

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def daemon(module_daemon: Daemon) -> Daemon:
    return module_daemon


@pytest.fixture(scope="module")
def pods(daemon: Daemon, registry: Registry) -> Iterator[Pods]:
    made = Pods(daemon)
    made.pull(registry)
    yield made
    daemon.remove_pods()


@pytest.fixture
def drop_in(daemon: Daemon) -> Iterator[Path]:
    """A drop-in of the daemon's configuration; what it changed is reloaded away."""
    path = daemon.home / "config.d" / "50-test.toml"
    path.parent.mkdir(exist_ok=True)
    path.write_text("")
    yield path
    path.write_text("")
    reload(daemon)


def reload(daemon: Daemon) -> str:
    """Send SIGHUP; returns what the daemon logs of the reload, to its end."""
    begin = len(daemon.log.read_text())
    os.kill(daemon.pid, signal.SIGHUP)
    wait_for(lambda: "reloaded" in daemon.log.read_text()[begin:], "the reload")
    settle(daemon)
    return daemon.log.read_text()[begin:]


def settle(daemon: Daemon) -> None:
    """Wait until the event loop has gone on: the lines of a reload are written without a pause."""
    daemon.runtime.Version(cri.VersionRequest(), timeout=30)


def effective(daemon: Daemon) -> dict[str, object]:
    status = daemon.runtime.Status(cri.StatusRequest(verbose=True), timeout=30)
    found: dict[str, object] = json.loads(status.info["config"])
    return found


def test_new_pods_use_a_handler_that_a_reload_brought(
    daemon: Daemon, pods: Pods, drop_in: Path
) -> None:
    with pytest.raises(grpc.RpcError, match="handler 'other' is not configured"):
        pods.run_pod(handler="other")
    drop_in.write_text('[runtimes.other]\npath = "/usr/sbin/runc"\n')
    assert 'reloaded: runtimes.other.path: nothing -> "/usr/sbin/runc"' in reload(daemon)
    pods.run(pods.run_pod(handler="other"), "sleep", "1000")


def test_images_are_pinned_and_unpinned(daemon: Daemon, pods: Pods, drop_in: Path) -> None:
    def pinned() -> set[bool]:
        listed = daemon.images.ListImages(cri.ListImagesRequest(), timeout=30)
        return {image.pinned for image in listed.images}

    assert pinned() == {False}
    drop_in.write_text('[images]\npinned_images = ["*busybox*"]\n')
    reload(daemon)
    assert True in pinned()
    drop_in.write_text("")
    reload(daemon)
    assert pinned() == {False}


def test_the_network_is_looked_for_where_a_reload_says(
    daemon: Daemon, drop_in: Path, tmp_path: Path
) -> None:
    (tmp_path / "10-x.conflist").write_text("{")
    # The flags of the test's daemon are stronger than any file: that has to be said as well.
    drop_in.write_text(f'[network]\ncni_conf_dirs = ["{tmp_path}"]\ncni_timeout_seconds = 7.5\n')
    log = reload(daemon)
    assert "reloaded: network.cni_timeout_seconds: 60.0 -> 7.5" in log
    assert "cni_conf_dirs" not in log
    network = effective(daemon)["network"]
    assert isinstance(network, dict)
    assert network["cni_timeout_seconds"] == 7.5


def test_a_mistake_changes_nothing(daemon: Daemon, pods: Pods, drop_in: Path) -> None:
    container = pods.run(pods.run_pod(), "sleep", "1000")
    before = effective(daemon)
    drop_in.write_text("[containers]\nexec_drain_seconds = 9.0\npids_limit = 'many'\n")
    assert (
        f"the configuration is not reloaded, nothing changes: {drop_in}:3: "
        'containers.pids_limit must be an integer, not "many"' in reload(daemon)
    )
    assert effective(daemon) == before
    assert pods.status(container).state == cri.CONTAINER_RUNNING


def test_what_waits_for_a_restart_is_named(daemon: Daemon, drop_in: Path) -> None:
    before = effective(daemon)
    drop_in.write_text("[streaming]\nport = 1\n")
    assert "not reloaded, it needs a restart of criserver: streaming.port: 0 -> 1" in reload(daemon)
    assert effective(daemon) == before

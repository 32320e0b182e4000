"""`criserver audit`: strays of every kind are found and removed, and what only looks so is left."""

from __future__ import annotations

import json
import os
import secrets
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from api.cri import api_pb2 as cri
from runtimeshim.linux import cgroups
from tests.integration import harness
from tests.integration.cli import Cli
from tests.integration.daemon import Daemon, wait_for
from tests.integration.pods import Pods
from tests.integration.registry import Registry
from tests.integration.sandboxes import run

SLEEP = ("sleep", "3600")
OLD = time.time() - 2 * 86400
PORT = 29_871


@pytest.fixture
def daemon(make_daemon: Callable[[], Daemon], registry: Registry) -> Daemon:
    """A daemon that audits only when it is asked, with a pod that must not be disturbed."""
    made = make_daemon()
    with made.config.open("a") as config:
        config.write("[audit]\ninterval_seconds = 0\n")
    made.start()
    return made


@pytest.fixture
def pods(daemon: Daemon, registry: Registry) -> Pods:
    made = Pods(daemon)
    made.pull(registry)
    return made


class Bystander:
    """A pod with a container, a network and a host port: what an audit has to leave alone."""

    def __init__(self, pods: Pods) -> None:
        options = cri.NamespaceOption(pid=cri.POD)
        context = cri.LinuxSandboxSecurityContext(namespace_options=options)
        mapping = cri.PortMapping(container_port=80, host_port=PORT)
        config = pods.config(
            "bystander",
            linux=cri.LinuxPodSandboxConfig(security_context=context),
            port_mappings=[mapping],
        )
        self._pods = pods
        self.pod = pods.run_pod(config)
        self.container = pods.run(self.pod, *SLEEP)

    def assert_well(self) -> None:
        assert self._pods.status(self.container).state == cri.CONTAINER_RUNNING
        assert self._pods.exec(self.container, "true").exit_code == 0
        assert self._pods.pod_status(self.pod).network.ip


@pytest.fixture
def bystander(pods: Pods) -> Bystander:
    return Bystander(pods)


@pytest.fixture
def gone(pods: Pods) -> str:
    """The id of a container that was this daemon's and is no more."""
    pod = pods.run_pod()
    container = pods.run(pod, *SLEEP)
    pods.remove_pod(pod)
    return container


def audit(daemon: Daemon, *flags: str) -> dict[str, Any]:
    result = Cli(daemon)("audit", "--json", *flags)
    found: dict[str, Any] = json.loads(result.stdout)
    left = [stray for stray in found["strays"] if stray not in found["removed"]]
    assert result.returncode == (1 if left else 0)
    assert found["failures"] == []
    return found


def kinds(strays: list[dict[str, Any]]) -> list[str]:
    return sorted(stray["kind"] for stray in strays)


def new_id() -> str:
    return secrets.token_hex(32)


def execute(daemon: Daemon, statement: str, *values: object) -> list[Any]:
    with closing(sqlite3.connect(daemon.root / "criserver.db", timeout=30)) as database, database:
        return database.execute(statement, values).fetchall()


@contextmanager
def named_process(name: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that calls itself so."""
    script = f'printf "%s" "{name}" >/proc/$$/comm && echo ready && read _'
    with subprocess.Popen(
        ["/bin/sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process
        process.kill()


@contextmanager
def cgroup(path: str) -> Iterator[subprocess.Popen[bytes]]:
    """A cgroup in all hierarchies, or a scope of systemd, with a process."""
    manager = cgroups.manager()
    manager.create(path)
    manager.apply(path, {})
    with subprocess.Popen(["/bin/sleep", "3600"]) as process:
        try:
            manager.join(path, process.pid)
            yield process
        finally:
            with suppress(ProcessLookupError):
                process.kill()
            process.wait()
            manager.delete(path)


def cgroup_exists(path: str) -> bool:
    return any(Path(where).exists() for _, where in cgroups.manager().directories(path))


def old(path: Path, content: bytes = b"left behind") -> Path:
    path.write_bytes(content)
    os.utime(path, (OLD, OLD))
    return path


def test_a_daemon_with_pods_has_no_strays(daemon: Daemon, bystander: Bystander) -> None:
    assert audit(daemon)["strays"] == []
    assert Cli(daemon).output("audit") == "nothing is left that belongs to nobody\n"
    bystander.assert_well()


def test_directories_and_mounts_of_nobody(daemon: Daemon, bystander: Bystander) -> None:
    bundle = daemon.run_dir / "containers" / new_id()
    sandbox = daemon.run_dir / "sandboxes" / new_id()
    point = bundle / "rootfs"
    point.mkdir(parents=True)
    (sandbox / "shm").mkdir(parents=True)
    for target in (point, sandbox / "shm"):
        run("mount", "-t", "tmpfs", "none", str(target))
    other = daemon.run_dir / "containers" / "no-id-of-ours"
    other.mkdir()
    assert kinds(audit(daemon)["strays"]) == ["bundle", "mount", "mount", "sandbox"]
    assert point.exists(), "without --fix nothing is removed"
    found = audit(daemon, "--fix")
    assert kinds(found["removed"]) == ["bundle", "mount", "mount", "sandbox"]
    assert not bundle.exists()
    assert not sandbox.exists()
    assert other.exists(), "what has no id is nobody's to remove"
    other.rmdir()
    assert audit(daemon)["strays"] == []
    bystander.assert_well()


def test_cgroups_and_shims_of_nobody(daemon: Daemon, bystander: Bystander, gone: str) -> None:
    parent = harness.cgroup_parent(daemon.name)
    ours, theirs = harness.cgroup_below(parent, gone), harness.cgroup_below(parent, new_id())
    with (
        cgroup(ours) as stray,
        cgroup(theirs) as other,
        named_process(f"shim {gone[:10]}") as shim,
        named_process(f"shim {new_id()[:10]}") as other_shim,
    ):
        found = audit(daemon, "--fix")
        assert kinds(found["removed"]) == ["cgroup", "shim"]
        assert {each["owner"] for each in found["removed"]} == {gone}
        assert stray.wait(30) == -9
        assert shim.wait(30) == -9
        assert not cgroup_exists(ours)
        assert cgroup_exists(theirs), "it may be another daemon's"
        assert other.poll() is None
        assert other_shim.poll() is None
        assert audit(daemon)["strays"] == []
    harness.remove_cgroups(parent)
    bystander.assert_well()


def test_a_container_that_was_forgotten(daemon: Daemon, bystander: Bystander, pods: Pods) -> None:
    pod = pods.run_pod()
    container = pods.run(pod, *SLEEP)
    pid = json.loads(pods.verbose_status(container).info["info"])["pid"]
    daemon.stop()
    bundle = daemon.run_dir / "containers" / container
    hidden = bundle.rename(daemon.run_dir / "hidden")  # or the start would find it
    execute(daemon, "DELETE FROM containers WHERE id = ?", container)
    daemon.start()
    assert Path(f"/proc/{pid}").exists()
    assert kinds(audit(daemon)["strays"]) == ["cgroup", "shim"]
    hidden.rename(bundle)
    assert "bundle" in kinds(audit(daemon, "--fix")["removed"])
    wait_for(lambda: not Path(f"/proc/{pid}").exists(), "the end of what was forgotten")
    assert audit(daemon)["strays"] == []
    assert pods.containers(id=container) == []
    bystander.assert_well()


def test_links_leases_and_host_ports_of_nobody(daemon: Daemon, bystander: Bystander) -> None:
    ((owner, subnet),) = execute(daemon, "SELECT owner, subnets FROM networks")
    stray, other = f"x{os.getpid()}a", f"x{os.getpid()}b"
    lost = new_id()
    for name, alias in ((stray, f"criserver:{owner}:{lost}"), (other, f"criserver:other:{lost}")):
        run("ip", "link", "add", name, "type", "bridge")
        run("ip", "link", "set", name, "alias", alias)
    try:
        address = subnet.split("/")[0].rsplit(".", 1)[0] + ".77"
        packed = bytes(map(int, address.split(".")))
        execute(daemon, "INSERT INTO leases VALUES (?, ?, ?, NULL)", subnet, packed, lost)
        element = f"{{ tcp . {PORT + 1} : {address} . 80 }}"
        run("nft", f"add element inet {daemon.bridge} host_ports4 {element}")
        found = audit(daemon, "--fix")
        assert kinds(found["removed"]) == ["host port", "lease", "link"]
        assert not Path("/sys/class/net", stray).exists()
        assert Path("/sys/class/net", other).exists()
        listed = run("nft", "list", "map", "inet", daemon.bridge, "host_ports4")
        assert str(PORT) in listed
        assert str(PORT + 1) not in listed
        assert execute(daemon, "SELECT * FROM leases WHERE sandbox_id = ?", lost) == []
        assert audit(daemon)["strays"] == []
    finally:
        for name in (stray, other):
            subprocess.run(["ip", "link", "delete", name], check=False, capture_output=True)
    bystander.assert_well()


def test_a_cni_attachment_of_nobody(daemon: Daemon, pods: Pods) -> None:
    daemon.use_cni()
    bystander = Bystander(pods)
    lost = new_id()
    execute(
        daemon,
        "INSERT INTO cni_attachments SELECT ?, replace(attachment, sandbox_id, ?), '/none', 0 "
        "FROM cni_attachments",
        lost,
        lost,
    )
    found = audit(daemon, "--fix")
    assert [(each["kind"], each["owner"]) for each in found["removed"]] == [
        ("CNI attachment", lost)
    ]
    rows = execute(daemon, "SELECT sandbox_id FROM cni_attachments")
    assert rows == [(bystander.pod,)]
    bystander.assert_well()


def test_files_and_rows_of_the_image_store(daemon: Daemon, bystander: Bystander) -> None:
    content = daemon.root / "content"
    lost = new_id()
    writable = daemon.root / "containers" / new_id()
    (writable / "upper").mkdir(parents=True)
    layer = daemon.root / "layers" / "987654"
    (layer / "fs").mkdir(parents=True)
    blob = old(content / "blobs" / "sha256" / new_id())
    partial = old(content / "ingest" / "0123456789abcdef")
    columns = [row[1] for row in execute(daemon, "PRAGMA table_info(views)")]
    ((image,),) = execute(daemon, "SELECT id FROM images")
    assert columns == ["holder", "chain_id", "image_id"], columns
    execute(daemon, "INSERT INTO views VALUES (?, 'sha256:none', ?)", lost, image)
    kept = [
        content / "blobs" / "sha256" / new_id(),  # somebody may be writing them
        content / "ingest" / "fedcba9876543210",
        content / "ingest" / new_id(),  # the begin of a blob, which a pull goes on with
    ]
    for path in kept:
        path.write_bytes(b"new")
    found = audit(daemon, "--fix")
    assert kinds(found["removed"]) == ["blob", "layer", "partial blob", "view", "writable layer"]
    for path in (writable, layer, blob, partial):
        assert not path.exists(), path
    assert (content / "ingest" / blob.name).exists(), "it may still be of use"
    assert all(path.exists() for path in kept)
    assert execute(daemon, "SELECT * FROM views WHERE holder = ?", lost) == []
    assert audit(daemon)["strays"] == []
    bystander.assert_well()


def test_records_without_what_they_stand_for_are_reported(daemon: Daemon, pods: Pods) -> None:
    options = cri.NamespaceOption(pid=cri.CONTAINER)
    context = cri.LinuxSandboxSecurityContext(namespace_options=options)
    linux = cri.LinuxPodSandboxConfig(security_context=context)
    pod = pods.run_pod(pods.config("unpinned", linux=linux))
    run("umount", str(daemon.run_dir / "sandboxes" / pod / "ns" / "uts"))
    found = audit(daemon, "--fix")
    (stray,) = found["strays"]
    assert (stray["kind"], stray["owner"]) == ("pod without namespace", pod)
    assert "(uts)" in stray["name"]
    assert found["removed"] == []
    assert "to be removed by its owner" in Cli(daemon)("audit").stdout.decode()


def test_what_is_being_made_and_removed_is_never_taken_for_a_stray(
    make_daemon: Callable[[], Daemon], registry: Registry
) -> None:
    daemon = make_daemon()
    with daemon.config.open("a") as config:
        config.write("[audit]\ninterval_seconds = 0.02\n")
    daemon.start()
    pods = Pods(daemon)
    pods.pull(registry)
    failures: list[BaseException] = []

    def churn() -> None:
        try:
            for _ in range(8):
                options = cri.NamespaceOption(pid=cri.POD)
                context = cri.LinuxSandboxSecurityContext(namespace_options=options)
                linux = cri.LinuxPodSandboxConfig(security_context=context)
                pod = pods.run_pod(pods.config(linux=linux))
                container = pods.run(pod, *SLEEP)
                assert pods.exec(container, "true").exit_code == 0
                pods.remove_pod(pod)
        except BaseException as err:  # noqa: BLE001 - it is raised below
            failures.append(err)

    threads = [threading.Thread(target=churn) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    log = daemon.log.read_text()
    assert "audit: removed" not in log.replace("audit: removed link", ""), log[-3000:]
    bundle = daemon.run_dir / "containers" / new_id()
    bundle.mkdir()
    wait_for(lambda: not bundle.exists(), "the stray to be removed by itself")

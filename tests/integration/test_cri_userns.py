"""Pods with a user namespace (hostUsers: false), by the daemon, on the real kernel."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from api.cri import api_pb2 as cri
from tests.integration.daemon import RPC_SECONDS, Daemon, wait_for
from tests.integration.pods import Pods, refused
from tests.integration.registry import Registry

BASE, LENGTH = 1_000_000, 65536


@pytest.fixture
def pods(daemon: Daemon, registry: Registry) -> Pods:
    made = Pods(daemon)
    made.pull(registry)
    return made


def options(network: int = cri.POD, pid: int = cri.POD, **changes: object) -> cri.NamespaceOption:
    mapping = cri.IDMapping(host_id=BASE, container_id=0, length=LENGTH)
    fields = {"mode": cri.POD, "uids": [mapping], "gids": [mapping]} | changes
    user = cri.UserNamespace(**fields)
    return cri.NamespaceOption(network=network, pid=pid, userns_options=user)


def pod_of(pods: Pods, given: cri.NamespaceOption) -> str:
    context = cri.LinuxSandboxSecurityContext(namespace_options=given)
    linux = cri.LinuxPodSandboxConfig(security_context=context)
    return pods.run_pod(pods.config(linux=linux, hostname="mapped"))


def container_of(pods: Pods, pod: str, given: cri.NamespaceOption, *command: str, **fields) -> str:
    context = cri.LinuxContainerSecurityContext(namespace_options=given)
    return pods.run(
        pod, *command, linux=cri.LinuxContainerConfig(security_context=context), **fields
    )


def volume(path: Path, target: str, *, mapped: bool) -> cri.Mount:
    mapping = [cri.IDMapping(host_id=BASE, container_id=0, length=LENGTH)] if mapped else []
    return cri.Mount(
        host_path=str(path), container_path=target, uidMappings=mapping, gidMappings=mapping
    )


def pid_of(pods: Pods, container: str) -> int:
    return int(json.loads(pods.verbose_status(container).info["info"])["pid"])


@pytest.mark.parametrize("pid", [cri.POD, cri.CONTAINER])
@pytest.mark.parametrize("network", [cri.POD, cri.NODE])
def test_root_inside_owns_nothing_outside_and_volumes_as_the_pod_sees_them(
    pods: Pods, network: int, pid: int
) -> None:
    before = pods.remains()
    home = pods.daemon.home
    mine, hosts = home / "volume", home / "hosts"
    for directory in (mine, hosts):
        directory.mkdir()
        (directory / "secret").write_text("s")
        (directory / "secret").chmod(0o600)
    os.chown(mine / "secret", 7, 7)
    given = options(network, pid)
    pod = pod_of(pods, given)
    script = """
        id -u; cat /proc/self/uid_map | tr -s ' '
        stat -c '%u:%g' /vol/secret /hosts/secret /bin/busybox /etc/hosts /dev/shm
        touch /vol/new /inside && chown 5:6 /vol/new && stat -c '%u:%g' /vol/new /inside
        cat /hosts/secret || echo denied
        echo shared > /dev/shm/file && mount -t tmpfs x /mnt 2>/dev/null || echo confined
        exec sleep 3600
    """
    container = container_of(
        pods, pod, given, "sh", "-c", script,
        mounts=[volume(mine, "/vol", mapped=True), volume(hosts, "/hosts", mapped=False)],
    )  # fmt: skip
    wait_for(lambda: "confined" in pods.output(container), "the script to end")
    lines = [line for line in pods.output(container) if "denied:" not in line]
    lines = [line for line in lines if "ermission" not in line]
    assert lines == [
        *("0", f" 0 {BASE} {LENGTH}"),
        *("7:7", "65534:65534", "0:0", "0:0", "0:0"),
        *("5:6", "0:0"),
        *("denied", "confined"),
    ]
    # Outside: root is an ordinary user, and what it wrote into its volume is as it saw it.
    process = Path(f"/proc/{pid_of(pods, container)}")
    assert process.stat().st_uid == BASE
    assert (mine / "new").stat().st_uid == 5 and (mine / "new").stat().st_gid == 6
    upper = next((pods.daemon.root / "containers").glob("*/upper"))
    assert (upper / "inside").stat().st_uid == BASE
    for kind in ("user", "ipc", *(["net", "uts"] if network == cri.POD else [])):
        assert os.stat(process / "ns" / kind).st_ino != os.stat(f"/proc/self/ns/{kind}").st_ino
    answer = pods.exec(container, "sh", "-c", "id -u; cat /proc/self/uid_map | tr -s ' '")
    assert answer.stdout.decode().split("\n")[:2] == ["0", f" 0 {BASE} {LENGTH}"]
    echoed = pods.pod_status(pod).linux.namespaces.options
    assert echoed == given
    pods.stop_pod(pod)
    pods.remove_pod(pod)
    pods.assert_remains(before)


def test_two_containers_share_the_namespace_and_a_restart_keeps_it(pods: Pods) -> None:
    given = options()
    pod = pod_of(pods, given)
    first = container_of(pods, pod, given, "sleep", "3600")
    pods.daemon.kill9()
    pods.daemon.start()
    second = container_of(pods, pod, given, "sleep", "3600")
    namespaces = {os.stat(f"/proc/{pid_of(pods, one)}/ns/user").st_ino for one in (first, second)}
    assert len(namespaces) == 1
    # And the shared PID namespace's init is the pod's, harmless user.
    info = json.loads(
        pods.daemon.runtime.PodSandboxStatus(
            cri.PodSandboxStatusRequest(pod_sandbox_id=pod, verbose=True), timeout=RPC_SECONDS
        ).info["info"]
    )
    status = Path(f"/proc/{info['pid']}/status").read_text()
    assert f"Uid:\t{BASE + 65535}\t" in status
    assert "CapBnd:\t0000000000000000" in status
    ps = pods.exec(second, "ps", "-o", "pid,args").stdout.decode()
    assert ps.count("sleep 3600") == 2


def test_a_pods_sysctls_are_set_in_its_user_namespace(pods: Pods) -> None:
    given = options()
    context = cri.LinuxSandboxSecurityContext(namespace_options=given)
    wanted = {"net.ipv4.ip_local_port_range": "20000\t30000", "kernel.shmmax": "123456"}
    linux = cri.LinuxPodSandboxConfig(security_context=context, sysctls=wanted)
    pod = pods.run_pod(pods.config(linux=linux))
    container = container_of(pods, pod, given, "sleep", "3600")
    for name, value in wanted.items():
        path = "/proc/sys/" + name.replace(".", "/")
        assert pods.exec(container, "cat", path).stdout.decode().strip() == value


ONE = cri.IDMapping(host_id=BASE, container_id=0, length=LENGTH)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"uids": [ONE, ONE]},
            "user namespace configuration: UID mapping: only one mapping line supported,"
            " got 2 mapping lines",
        ),
        ({"gids": [cri.IDMapping(host_id=1)]}, "GID mapping: invalid mapping length: 0"),
        ({"uids": []}, 'can\'t use user namespace mode "POD" without UID and GID mappings'),
        (
            {"mode": cri.NODE},
            'can\'t use user namespace mode "NODE" with mappings. Got 1 UID mappings and'
            " 1 GID mappings",
        ),
        ({"mode": cri.CONTAINER}, 'unsupported user namespace mode: "CONTAINER"'),
        ({"uids": [cri.IDMapping(host_id=1, container_id=5, length=9)]}, "root has no id"),
    ],
)
def test_mappings_that_cannot_be_are_refused(pods: Pods, changes: dict, message: str) -> None:
    before = pods.remains()
    assert message in refused("INVALID_ARGUMENT", pod_of, pods, options(**changes))
    pods.assert_remains(before)


def test_the_host_is_told_that_user_namespaces_are_supported(pods: Pods) -> None:
    status = pods.daemon.runtime.Status(cri.StatusRequest(), timeout=RPC_SECONDS)
    assert all(handler.features.user_namespaces for handler in status.runtime_handlers)
    assert status.features.user_namespaces_host_network

"""Sandboxes on the real kernel: what a pod has of its own, and that nothing of it stays."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from api.cri import api_pb2 as cri
from api.errors import InternalError, InvalidArgumentError
from podsandbox.lifecycle import SandboxRuntime
from tests.integration import harness
from tests.integration.leaks import snapshot
from tests.integration.sandboxes import World, inside, new_world, pod_config, run, start

SHM_BYTES = 64 << 20


@pytest_asyncio.fixture
async def world() -> AsyncIterator[World]:
    async with new_world() as made:
        yield made


def entering(runtime: SandboxRuntime, *command: str) -> str:
    """Run a program in the pod's namespaces."""
    names = {"network": "net"}
    options = [
        f"--{names.get(kind, kind)}={path}"
        for kind, path in runtime.namespaces.items()
        if kind != "pid"
    ]
    return run("nsenter", *options, *command).strip()


def mounted(path: str) -> str:
    """The type and options of the mount at a path; "" when there is none."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        if left.split()[4] == path:
            return f"{right.split()[0]} {left.split()[5]} {right.split()[2]}"
    return ""


def on_the_host(config: cri.PodSandboxConfig, *kinds: str) -> cri.PodSandboxConfig:
    options = config.linux.security_context.namespace_options
    for kind in kinds:
        setattr(options, kind, cri.NODE)
    return config


async def test_a_pod_has_namespaces_a_name_and_shared_memory_of_its_own(world: World) -> None:
    runtime = world.runtime(await world.create(pod_config(hostname="web-0")))
    assert set(runtime.namespaces) == {"network", "ipc", "uts"}
    for kind, path in runtime.namespaces.items():
        host = os.stat(f"/proc/self/ns/{ {'network': 'net'}.get(kind, kind) }")
        assert os.stat(path).st_ino != host.st_ino
    assert entering(runtime, "hostname") == "web-0"
    assert socket.gethostname() != "web-0"
    assert "UP" in entering(runtime, "ip", "link", "show", "lo").split("state")[0]
    assert Path(runtime.files["hostname"]).read_text() == "web-0\n"
    assert Path(runtime.files["hosts"]).read_text() == Path("/etc/hosts").read_text()
    assert Path(runtime.files["resolv.conf"]).read_text() == Path("/etc/resolv.conf").read_text()

    shm = Path(runtime.files["shm"])
    assert {"nosuid", "nodev", "noexec"} <= set(mounted(str(shm)).split()[1].split(","))
    assert shm.stat().st_mode & 0o7777 == 0o1777
    usage = os.statvfs(shm)
    assert usage.f_blocks * usage.f_frsize == SHM_BYTES
    assert runtime.init_pid is None


async def test_without_a_hostname_a_pod_has_the_hosts(world: World) -> None:
    runtime = world.runtime(await world.create())
    assert entering(runtime, "hostname") == socket.gethostname()
    assert Path(runtime.files["hostname"]).read_text().strip() == socket.gethostname()


async def test_the_resolver_is_configured_as_asked(world: World) -> None:
    dns = cri.DNSConfig(servers=["10.0.0.10"], searches=["a.b", "c"], options=["ndots:5"])
    runtime = world.runtime(await world.create(pod_config(dns_config=dns)))
    assert Path(runtime.files["resolv.conf"]).read_text() == (
        "search a.b c\nnameserver 10.0.0.10\noptions ndots:5\n"
    )


async def test_a_pod_may_share_each_namespace_with_the_host(world: World) -> None:
    config = on_the_host(pod_config(hostname="ignored"), "network", "ipc", "pid")
    runtime = world.runtime(await world.create(config))
    assert runtime.namespaces == {}
    assert runtime.ips == []
    assert runtime.files["shm"] == "/dev/shm"
    assert socket.gethostname() != "ignored"


async def test_sysctls_are_the_pods_alone(world: World) -> None:
    config = pod_config()
    config.linux.sysctls.update(
        {
            "net.ipv4.ip_local_port_range": "20000\t30000",
            "kernel.shmmax": "123456",
            "kernel/msgmax": "4321",
            "fs.mqueue.msg_max": "12",
            "kernel.domainname": "example.org",
        }
    )
    host = {
        name: run("busybox", "sysctl", "-n", name)
        for name in ("kernel.shmmax", "fs.mqueue.msg_max", "kernel.domainname")
    }
    runtime = world.runtime(await world.create(config))
    assert (
        entering(runtime, "busybox", "sysctl", "-n", "net.ipv4.ip_local_port_range")
        == "20000\t30000"
    )
    assert entering(runtime, "busybox", "sysctl", "-n", "kernel.shmmax") == "123456"
    assert entering(runtime, "busybox", "sysctl", "-n", "kernel.msgmax") == "4321"
    assert entering(runtime, "busybox", "sysctl", "-n", "fs.mqueue.msg_max") == "12"
    assert entering(runtime, "busybox", "sysctl", "-n", "kernel.domainname") == "example.org"
    assert (
        entering(runtime, "busybox", "sysctl", "-n", "net.ipv4.ip_unprivileged_port_start") == "0"
    )
    assert (
        entering(runtime, "busybox", "sysctl", "-n", "net.ipv4.ping_group_range") == "0\t2147483647"
    )
    assert host == {name: run("busybox", "sysctl", "-n", name) for name in host}


@pytest.mark.parametrize(
    ("sysctls", "error", "message"),
    [
        ({"vm.swappiness": "1"}, InvalidArgumentError, "does not belong"),
        ({"kernel.hostname": "x"}, InvalidArgumentError, "does not belong"),
        ({"net.ipv4.ip_forward": "nonsense"}, InvalidArgumentError, "net/ipv4/ip_forward"),
        ({"net.no.such": "1"}, InvalidArgumentError, "net/no/such"),
        ({"net./../../kernel/core_pattern": "x"}, InvalidArgumentError, "malformed"),
    ],
)
async def test_a_bad_sysctl_is_refused_and_nothing_is_left(
    world: World, sysctls: dict[str, str], error: type[Exception], message: str
) -> None:
    config = pod_config(hostname="never")
    config.linux.sysctls.update(sysctls)
    before = snapshot([world.home / "sandboxes"])
    with pytest.raises(error, match=message):
        await world.create(config)
    world.assert_nothing_left(before, [world.home / "sandboxes"])


async def test_what_is_not_supported_is_said(world: World) -> None:
    config = pod_config()
    systemd = harness.CGROUP_DRIVER == "systemd"
    config.linux.cgroup_parent = "/kubepods/pod1" if systemd else "kubepods-pod1.slice"
    with pytest.raises(InvalidArgumentError, match="is no slice" if systemd else "systemd slice"):
        await world.create(config)


async def test_any_failing_step_undoes_the_ones_before(world: World, monkeypatch) -> None:
    config = pod_config()
    config.linux.security_context.namespace_options.pid = cri.POD

    async def fail(*_: object) -> None:
        raise InternalError("no network today")

    await world.stop(await world.create())  # bridge and table are there
    before = snapshot([world.home / "sandboxes"])
    monkeypatch.setattr(world.network, "attach", fail)
    with pytest.raises(InternalError, match="no network today"):
        await world.create(config)
    monkeypatch.undo()
    world.sandboxes._init_program = None
    monkeypatch.setattr("podsandbox.pod_init.elf", lambda _: b"no program")
    with pytest.raises(InternalError, match="start the pod's init: OSError"):
        await world.create(config)
    world.assert_nothing_left(before, [world.home / "sandboxes"])
    assert not world.builtin._leases.holders()


@pytest.mark.parametrize("network", [cri.POD, cri.NODE])
async def test_a_worker_that_fails_late_leaves_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch, network: cri.NamespaceMode
) -> None:
    """The namespaces are pinned, and the network is being attached, when the shm is mounted."""
    await world.stop(await world.create())  # bridge and table are there
    before = snapshot([world.home / "sandboxes"])
    monkeypatch.setattr("podsandbox.namespaces._SHM_SIZE", "much")
    config = pod_config()
    config.linux.security_context.namespace_options.pid = cri.POD
    config.linux.security_context.namespace_options.network = network
    with pytest.raises(InternalError, match=r"Invalid argument: .*shm"):
        await world.create(config)
    world.assert_nothing_left(before, [world.home / "sandboxes"])
    assert not world.builtin._leases.holders()


async def test_without_its_cgroup_nothing_is_made(world: World) -> None:
    await world.stop(await world.create())  # bridge and table are there
    before = snapshot([world.home / "sandboxes"])
    config = pod_config()
    config.linux.security_context.namespace_options.pid = cri.POD
    config.linux.resources.cpu_period = 1  # microsecond
    with pytest.raises(InvalidArgumentError, match="create the pod's cgroup: "):
        async with asyncio.timeout(30):  # half of what the worker has
            await world.create(config)
    world.assert_nothing_left(before, [world.home / "sandboxes"])


async def test_the_cgroup_parent_is_the_given_one_and_is_kept(world: World) -> None:
    config = pod_config()
    parent = harness.cgroup_parent(f"crtest-{os.getpid()}-pod")
    config.linux.cgroup_parent = parent
    config.linux.resources.cpu_shares = 2  # the kubelet's business in a cgroup of its own
    pod = await world.create(config)
    assert world.runtime(pod).cgroup_parent == parent
    directories = [Path(d) for _, d in world.sandboxes._cgroups.directories(parent)]
    assert directories and all(directory.is_dir() for directory in directories)
    await world.stop(pod)
    await world.remove(pod)
    assert all(directory.is_dir() for directory in directories)
    world.sandboxes._cgroups.delete(parent)


async def test_resources_limit_the_cgroup_that_the_pod_has_of_its_own(world: World) -> None:
    config = pod_config()
    config.linux.resources.memory_limit_in_bytes = 64 << 20
    runtime = world.runtime(await world.create(config))
    directories = dict(world.sandboxes._cgroups.directories(runtime.cgroup_parent))
    limit = next(
        (Path(directory) / name).read_text().strip()
        for directory in directories.values()
        for name in ("memory.limit_in_bytes", "memory.max")
        if (Path(directory) / name).exists()
    )
    assert int(limit) == 64 << 20


async def test_a_copy_of_the_mounts_does_not_keep_a_pods_namespaces(world: World) -> None:
    """As a service with PrivateTmp, or a container with the host's / as a volume, has one."""
    pod = await world.create()
    netns = world.netns(pod)
    inode = os.stat(netns).st_ino
    holder = start("unshare", "--mount", "--propagation", "private", "sh", "-c", "echo; exec cat")
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        mounts = Path(f"/proc/{holder.pid}/mountinfo")
        assert f"net:[{inode}]" in mounts.read_text()
        await world.stop(pod)
        assert str(world.home / "sandboxes") not in mounts.read_text()
    finally:
        holder.communicate()


async def test_stop_while_a_process_is_inside_takes_the_pins_away(world: World) -> None:
    pod = await world.create()
    runtime = world.runtime(pod)
    with contextlib.closing(inside(world.netns(pod), socket.socket)):
        await world.stop(pod)
        assert not any(Path(path).exists() for path in runtime.namespaces.values())
        assert not Path(runtime.files["shm"]).exists()


async def test_many_at_once_have_different_addresses_and_leave_nothing(world: World) -> None:
    await world.stop(await world.create())
    before = snapshot([world.home / "sandboxes"])
    made = await asyncio.gather(*(world.create() for _ in range(12)))
    assert len({world.ip(pod) for pod in made}) == 12
    await asyncio.gather(*(world.stop(pod) for pod in made))
    await asyncio.gather(*(world.remove(pod) for pod in made))
    world.assert_nothing_left(before, [world.home / "sandboxes"])

"""Targets of the CRI's side: requests that become specs, CDI specs that change them, /proc/net/dev.

A request comes as the bytes of its protobuf message, since that is what a client sends.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from google.protobuf.message import DecodeError

from api.cri import api_pb2 as cri
from api.errors import FailedPreconditionError, InvalidArgumentError
from criserver import cdi, resources_merge, signals, users
from criserver.container_spec import (
    ContainerSpecInput,
    HostFacts,
    anonymous_volumes,
    container_spec,
    fields,
    limits,
    localhost_profile,
    mounts,
    namespaces,
    process,
    resources,
    security,
)
from criserver.resources_merge import merged
from podsandbox import plan
from podsandbox.lifecycle import SandboxRuntime
from podsandbox.plan import SandboxHost, plan_sandbox
from runtimeshim.linux.cgroups.stats import parse_pressure
from tests.fuzz.targets import Target

HOST = HostFacts(
    machine="x86_64",
    hostname="node",
    capabilities=("CAP_CHOWN", "CAP_SYS_ADMIN"),
    cgroup_version=2,
    swap=True,
    hugetlb=True,
    apparmor_profile="default",
    selinux=True,
)
# One of the other sort, so that what each has or lacks is asked for.
OLD_HOST = replace(
    HOST, cgroup_version=1, apparmor_profile="", selinux=False, recursive_read_only=False
)
PINS = {kind: f"/pins/{kind}" for kind in ("network", "ipc", "uts", "pid")}
FILES = {name: f"/pod/{name}" for name in ("hostname", "hosts", "resolv.conf", "shm")}
IMAGE = {"Cmd": ["cmd"], "Env": ["A=B", "HOME"], "Volumes": {"/volume": {}, "data/": {}}}
_PASSWD = b"root:x:0:0::/root:/bin/sh\nweb:x:33:34::/web:/bin/sh\n"


def request_to_spec(data: bytes) -> None:
    """A container's config becomes a spec that says nothing twice, or an error that names a field.

    No NUL byte and no ".." gets to the kernel in a path.
    """
    try:
        config = cri.ContainerConfig.FromString(data)
    except DecodeError:
        return
    for host in (HOST, OLD_HOST):
        given = _input(config, host)
        if given is not None:
            _make_spec(config, given)


def _make_spec(config: cri.ContainerConfig, given: ContainerSpecInput) -> None:
    try:
        localhost_profile(config.linux.security_context)
        spec = container_spec(given)
        signals.number_of(config.stop_signal)
        once = merged(config.linux.resources, config.linux.resources)
        assert merged(once, once) == once
        limits(once, given.host)
    except InvalidArgumentError as err:
        assert str(err)
        return
    assert container_spec(given) == spec
    _check(spec)


def _input(config: cri.ContainerConfig, host: HostFacts) -> ContainerSpecInput | None:
    pod = cri.PodSandboxConfig()
    pod.linux.security_context.privileged = True
    context = config.linux.security_context
    options = context.namespace_options
    pins = PINS
    if options.HasField("userns_options"):
        pod.linux.security_context.namespace_options.CopyFrom(options)
        pins = PINS | {"user": "/pins/user"}
    try:
        user = users.resolve_user(context, "web", _PASSWD, b"")
        volumes = anonymous_volumes(IMAGE, config)
    except InvalidArgumentError:
        return None
    return ContainerSpecInput(
        container_id="c",
        sandbox_id="s",
        config=config,
        sandbox_config=pod,
        sandbox=SandboxRuntime(namespaces=pins, cgroup_parent="/pod", files=FILES),
        image_name="image",
        image_config=IMAGE,
        user=user,
        host=host,
        volumes={path: f"/volumes/{number}" for number, path in enumerate(volumes)},
        image_mounts={
            index: ("/layer",)
            for index, mount in enumerate(config.mounts)
            if mount.HasField("image")
        },
        seccomp_profile={},
        target_pid_namespace="/proc/1/ns/pid",
    )


def _check(spec: dict[str, Any]) -> None:
    json.dumps(spec)
    assert spec["process"]["args"]
    assert spec["process"]["user"]["uid"] >= 0
    for text in _texts([spec["process"], spec["mounts"], spec["linux"]]):
        assert "\0" not in text
    destinations = [mount["destination"] for mount in spec["mounts"]]
    assert "/" not in destinations
    for path in [*destinations, spec["process"]["cwd"], *spec["linux"]["maskedPaths"]]:
        assert path.startswith("/")
        assert ".." not in path.split("/")


def _texts(value: Any) -> list[str]:
    match value:
        case str():
            return [value]
        case dict():
            return _texts([*value.keys(), *value.values()])
        case list():
            return [text for each in value for text in _texts(each)]
        case _:
            return []


def pod_to_plan(data: bytes) -> None:
    """A pod's config becomes a plan, or an error."""
    try:
        config = cri.PodSandboxConfig.FromString(data)
    except DecodeError:
        return
    try:
        made = plan_sandbox("s", config, SandboxHost(selinux=True))
    except InvalidArgumentError:
        return
    assert made.cgroup_parent.startswith("/")
    assert ".." not in made.cgroup_parent.split("/")
    for text in _texts([made.hostname, dict(made.sysctls), made.cgroup_parent]):
        assert "\0" not in text


def cdi_edits(data: bytes) -> None:
    """The edits of a vendor's file change a spec, or are refused; nothing else is raised."""
    try:
        edits = json.loads(data)
    except (ValueError, RecursionError):
        return
    if not isinstance(edits, dict):
        return
    spec: dict[str, Any] = {
        "process": {"env": ["A=1"], "user": {"uid": 0, "gid": 0}},
        "mounts": [],
        "linux": {"resources": {"devices": []}, "devices": []},
    }
    try:
        cdi.apply(spec, [edits])
    except InvalidArgumentError:
        return
    json.dumps(spec)
    for mount in spec["mounts"]:
        assert mount["destination"].startswith("/")
    for device in spec["linux"]["devices"]:
        assert device["path"].startswith("/")
        assert 0 not in spec["process"]["user"].get("additionalGids", ())


def cdi_names(data: bytes) -> None:
    """What is taken for a device's name has its three parts."""
    try:
        names = cdi.wanted([], {"cdi.k8s.io/x": data.decode(errors="replace")})
        cdi.resolve(names, [])
    except (InvalidArgumentError, FailedPreconditionError):
        return
    assert not names


def pressure(data: bytes) -> None:
    """The kernel's own file; others are a ValueError or a KeyError, as a changed kernel's is."""
    try:
        found = parse_pressure(data)
    except (ValueError, KeyError):
        return
    assert found is None or found.some is not None


def _configs() -> tuple[bytes, ...]:
    full = cri.ContainerConfig(
        metadata=cri.ContainerMetadata(name="c", attempt=1),
        image=cri.ImageSpec(image="a", user_specified_image="b"),
        command=["sh"],
        args=["-c", "true"],
        working_dir="/tmp",
        envs=[cri.KeyValue(key="A", value=b"\xff")],
        mounts=[
            cri.Mount(container_path="/v", host_path="/h", readonly=True, mount_options=["noexec"])
        ],
        log_path="c.log",
        stop_signal=cri.SIGNAL_SIGUSR1,
    )
    resources = full.linux.resources
    resources.cpu_shares, resources.memory_limit_in_bytes = 5, 1 << 20
    resources.cpuset_cpus = "0-1"
    resources.unified["memory.high"] = "max"
    resources.hugepage_limits.add(page_size="2MB", limit=5)
    context = full.linux.security_context
    context.run_as_user.value = 5
    context.capabilities.add_capabilities.append("SYS_ADMIN")
    context.masked_paths.append("/proc/kcore")
    context.seccomp.profile_type = cri.SecurityProfile.Localhost
    context.seccomp.localhost_ref = "/profile"
    context.namespace_options.pid = cri.CONTAINER
    return full.SerializeToString(), b""


def _pods() -> tuple[bytes, ...]:
    pod = cri.PodSandboxConfig(
        metadata=cri.PodSandboxMetadata(name="p", namespace="n", uid="u"), hostname="h"
    )
    pod.linux.cgroup_parent = "/kubepods/pod"
    pod.linux.sysctls["net.ipv4.ip_forward"] = "1"
    options = pod.linux.security_context.namespace_options
    options.userns_options.uids.add(host_id=100_000, container_id=0, length=65_536)
    options.userns_options.gids.add(host_id=100_000, container_id=0, length=65_536)
    return pod.SerializeToString(), b""


_EDITS = json.dumps(
    {
        "env": ["B=2"],
        "deviceNodes": [{"path": "/dev/x", "type": "c", "major": 1, "minor": 3, "uid": 5}],
        "mounts": [{"hostPath": "/h", "containerPath": "/c", "options": ["ro"]}],
        "hooks": [{"hookName": "prestart", "path": "/bin/x", "timeout": 5}],
        "additionalGids": [5],
        "intelRdt": {"closID": "a"},
        "netDevices": [{"hostInterfaceName": "eth1", "name": "eth0"}],
    }
).encode()

_SPEC_MODULES = (
    *(fields, mounts, namespaces, process, resources, security),
    *(resources_merge, signals, users),
)

TARGETS = {
    "request": Target(
        request_to_spec,
        _configs(),
        cri.ContainerConfig,
        [str(module.__file__) for module in _SPEC_MODULES],
    ),
    "pod": Target(pod_to_plan, _pods(), cri.PodSandboxConfig, [str(plan.__file__)]),
    "cdi": Target(cdi_edits, (_EDITS, b"{}")),
    "cdi-names": Target(cdi_names, (b"vendor.com/gpu=0, a.b/c=d",)),
    "pressure": Target(
        pressure, (b"some avg10=0.00 avg60=0.00 avg300=0.00 total=1\nfull avg10=0 total=2\n",)
    ),
}

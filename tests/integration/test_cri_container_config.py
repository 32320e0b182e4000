"""What a ContainerConfig asks for is what the container finds: the parts that need a kernel."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from api.cri import api_pb2 as cri
from runtimeshim.linux import selinux
from tests.integration.daemon import RPC_SECONDS, Daemon
from tests.integration.pods import IMAGE, Pods, refused
from tests.integration.registry import Registry

SLEEP = ("sleep", "3600")


@pytest.fixture(scope="module")
def pods(module_daemon: Daemon, registry: Registry) -> Pods:
    cdi = module_daemon.home / "cdi"
    cdi.mkdir()
    with module_daemon.config.open("a") as config:
        config.write(f'[containers]\ncdi_spec_dirs = ["{cdi}"]\n')
    module_daemon.restart()
    made = Pods(module_daemon)
    made.pull(registry)
    return made


@pytest.fixture(scope="module")
def pod(pods: Pods) -> Iterator[str]:
    made = pods.run_pod()
    yield made
    pods.remove_pod(made)


@pytest.fixture
def volume(pods: Pods, request: pytest.FixtureRequest) -> Path:
    made = pods.daemon.home / "volumes" / request.node.name.replace("/", "-")[:80]
    made.mkdir(parents=True)
    return made


def security(**fields: Any) -> cri.LinuxContainerConfig:
    options = cri.NamespaceOption(network=cri.NODE, pid=cri.CONTAINER)
    context = cri.LinuxContainerSecurityContext(namespace_options=options)
    context.MergeFrom(cri.LinuxContainerSecurityContext(**fields))
    return cri.LinuxContainerConfig(security_context=context)


def text(pods: Pods, container: str, *command: str) -> str:
    answer = pods.exec(container, *command)
    assert answer.exit_code == 0, answer.stderr
    return answer.stdout.decode().strip()


def status_field(pods: Pods, container: str, name: str, pid: str = "1") -> str:
    lines = text(pods, container, "cat", f"/proc/{pid}/status").splitlines()
    return next(line.split(":", 1)[1].strip() for line in lines if line.startswith(f"{name}:"))


def write_cdi(pods: Pods, name: str, **document: Any) -> None:
    path = pods.daemon.home / "cdi" / name
    path.write_text(json.dumps({"cdiVersion": "0.6.0", **document}))


def test_a_cdi_device_with_everything(pods: Pods, pod: str, volume: Path) -> None:
    (volume / "lib").write_text("library")
    hook = volume / "hook"
    hook.write_text(f"#!/bin/sh\ncat > {volume}/state\n")
    hook.chmod(0o755)
    write_cdi(
        pods,
        "a.json",
        kind="vendor.test/gpu",
        containerEdits={"env": ["SHARED=1"]},
        devices=[
            {
                "name": "0",
                "containerEdits": {
                    "env": ["GPU=0"],
                    "deviceNodes": [{"path": "/dev/gpu0", "hostPath": "/dev/null"}],
                    "mounts": [
                        {
                            "hostPath": str(volume),
                            "containerPath": "/vendor",
                            "options": ["ro", "bind"],
                        }
                    ],
                    "hooks": [{"hookName": "createRuntime", "path": str(hook)}],
                    "additionalGids": [4321],
                },
            }
        ],
    )
    container = pods.run(pod, *SLEEP, CDI_devices=[cri.CDIDevice(name="vendor.test/gpu=0")])
    assert text(pods, container, "sh", "-c", "echo $SHARED $GPU") == "1 0"
    assert text(pods, container, "stat", "-c", "%t:%T", "/dev/gpu0") == "1:3"
    assert text(pods, container, "sh", "-c", "echo x > /dev/gpu0; echo $?") == "0"
    assert text(pods, container, "cat", "/vendor/lib") == "library"
    assert pods.exec(container, "touch", "/vendor/x").exit_code != 0
    assert "4321" in status_field(pods, container, "Groups").split()
    assert json.loads((volume / "state").read_text())["id"] == container
    pods.remove(container)


def test_a_cdi_device_by_annotation(pods: Pods, pod: str) -> None:
    edits = {"env": ["NET=yes"]}
    write_cdi(
        pods, "b.json", kind="vendor.test/net", devices=[{"name": "n", "containerEdits": edits}]
    )
    container = pods.run(pod, *SLEEP, annotations={"cdi.k8s.io/x": "vendor.test/net=n"})
    assert text(pods, container, "sh", "-c", "echo $NET") == "yes"
    assert pods.status(container).annotations["cdi.k8s.io/x"] == "vendor.test/net=n"


def test_a_cdi_device_for_a_user_other_than_root(pods: Pods, pod: str) -> None:
    edits = {"deviceNodes": [{"path": "/dev/own", "hostPath": "/dev/zero", "fileMode": 0o600}]}
    write_cdi(
        pods, "c.json", kind="vendor.test/own", devices=[{"name": "o", "containerEdits": edits}]
    )
    container = pods.run(
        pod,
        *SLEEP,
        CDI_devices=[cri.CDIDevice(name="vendor.test/own=o")],
        linux=security(run_as_user=cri.Int64Value(value=1000)),
    )
    assert text(pods, container, "head", "-c", "4", "/dev/own") == "\0" * 4


PROPAGATIONS = {
    "private": (cri.PROPAGATION_PRIVATE, False, False),
    "host to container": (cri.PROPAGATION_HOST_TO_CONTAINER, True, False),
    "bidirectional": (cri.PROPAGATION_BIDIRECTIONAL, True, True),
}


@pytest.mark.parametrize("name", PROPAGATIONS)
def test_mount_propagation(pods: Pods, volume: Path, name: str) -> None:
    propagation, goes_in, comes_out = PROPAGATIONS[name]
    (volume / "in").mkdir()
    (volume / "out").mkdir()
    subprocess.run(["mount", "--bind", volume, volume], check=True)
    subprocess.run(["mount", "--make-rshared", volume], check=True)
    config = pods.config()
    config.linux.security_context.privileged = True
    pod = pods.run_pod(config)
    try:
        mount = cri.Mount(container_path="/v", host_path=str(volume), propagation=propagation)
        container = pods.run(pod, *SLEEP, mounts=[mount], linux=security(privileged=True))
        subprocess.run(["mount", "-t", "tmpfs", "none", volume / "in"], check=True)
        (volume / "in" / "file").touch()
        assert (pods.exec(container, "test", "-e", "/v/in/file").exit_code == 0) == goes_in
        text(pods, container, "mount", "-t", "tmpfs", "none", "/v/out")
        text(pods, container, "touch", "/v/out/file")
        assert (volume / "out" / "file").exists() == comes_out
    finally:
        pods.remove_pod(pod)
        subprocess.run(["umount", "--recursive", volume], check=True)


def test_recursive_read_only(pods: Pods, pod: str, volume: Path) -> None:
    (volume / "sub").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", volume / "sub"], check=True)
    try:
        mounts = [
            cri.Mount(container_path="/plain", host_path=str(volume), readonly=True),
            cri.Mount(
                container_path="/all",
                host_path=str(volume),
                readonly=True,
                recursive_read_only=True,
            ),
        ]
        container = pods.run(pod, *SLEEP, mounts=mounts)
        assert pods.exec(container, "touch", "/plain/x").exit_code != 0
        assert pods.exec(container, "touch", "/plain/sub/x").exit_code == 0
        assert pods.exec(container, "touch", "/all/x").exit_code != 0
        assert pods.exec(container, "touch", "/all/sub/y").exit_code != 0
        pods.remove(container)
    finally:
        subprocess.run(["umount", volume / "sub"], check=True)


def test_mount_options(pods: Pods, pod: str, volume: Path) -> None:
    (volume / "program").write_text("#!/bin/sh\necho ran\n")
    (volume / "program").chmod(0o755)
    mounts = [
        cri.Mount(container_path="/yes", host_path=str(volume)),
        cri.Mount(
            container_path="/no", host_path=str(volume), mount_options=["noexec", "nosuid", "nodev"]
        ),
    ]
    container = pods.run(pod, *SLEEP, mounts=mounts)
    assert text(pods, container, "/yes/program") == "ran"
    refused("INVALID_ARGUMENT", pods.exec, container, "/no/program")
    lines = text(pods, container, "cat", "/proc/mounts").splitlines()
    (options,) = (line.split()[3].split(",") for line in lines if line.split()[1] == "/no")
    assert {"noexec", "nosuid", "nodev"} <= set(options)


def test_relabelling_without_selinux_changes_nothing(pods: Pods, pod: str, volume: Path) -> None:
    mount = cri.Mount(container_path="/v", host_path=str(volume), selinux_relabel=True)
    container = pods.run(pod, *SLEEP, mounts=[mount])
    assert "security.selinux" not in os.listxattr(volume)
    assert pods.status(container).mounts[0].selinux_relabel


LABEL = "system_u:object_r:container_file_t:s0:c1,c2"


def test_a_volume_is_relabelled_once(volume: Path) -> None:
    (volume / "d").mkdir()
    (volume / "d" / "file").touch()
    (volume / "link").symlink_to("/etc/hostname")
    assert selinux.relabel(str(volume), LABEL)
    for path in (volume, volume / "d", volume / "d" / "file", volume / "link"):
        label = os.getxattr(path, selinux.ATTRIBUTE, follow_symlinks=False)
        assert label.rstrip(b"\0") == LABEL.encode()
    (volume / "later").touch()
    assert not selinux.relabel(str(volume), LABEL), "its root has the label: nothing is walked"
    assert selinux.ATTRIBUTE not in os.listxattr(volume / "later")


def test_a_link_does_not_lead_the_relabelling_out(volume: Path) -> None:
    outside = volume.with_name(f"{volume.name}-outside")
    outside.touch()
    (volume / "link").symlink_to(outside)
    selinux.relabel(str(volume), LABEL)
    assert selinux.ATTRIBUTE not in os.listxattr(outside)


@pytest.mark.parametrize("path", ["/", "/etc", "/usr/", "/var/lib/../../home"])
def test_the_hosts_own_directories_are_never_relabelled(path: str) -> None:
    with pytest.raises(PermissionError):
        selinux.relabel(path, LABEL)


def test_a_device(pods: Pods, pod: str) -> None:
    device = cri.Device(host_path="/dev/zero", container_path="/dev/nothing", permissions="r")
    container = pods.run(pod, *SLEEP, devices=[device])
    assert text(pods, container, "head", "-c", "2", "/dev/nothing") == "\0\0"
    assert text(pods, container, "stat", "-c", "%t:%T", "/dev/nothing") == "1:5"


CAPABILITIES: list[tuple[str, dict[str, Any], set[str], set[str]]] = [
    ("added", {"add_capabilities": ["SYS_TIME"]}, {"CAP_SYS_TIME", "CAP_CHOWN"}, set()),
    ("dropped", {"drop_capabilities": ["CHOWN"]}, {"CAP_KILL"}, {"CAP_CHOWN"}),
    (
        "all dropped, one added",
        {"drop_capabilities": ["ALL"], "add_capabilities": ["KILL"]},
        {"CAP_KILL"},
        {"CAP_CHOWN"},
    ),
]


def held(pods: Pods, container: str, which: str) -> set[str]:
    from runtimeshim.linux import capabilities

    return set(capabilities.to_names(int(status_field(pods, container, which), 16)))


@pytest.mark.parametrize(
    ("asked", "there", "gone"), [row[1:] for row in CAPABILITIES], ids=[r[0] for r in CAPABILITIES]
)
def test_capabilities(
    pods: Pods, pod: str, asked: dict[str, Any], there: set[str], gone: set[str]
) -> None:
    wanted = security(capabilities=cri.Capability(**asked))
    container = pods.run(pod, *SLEEP, linux=wanted)
    for which in ("CapEff", "CapPrm", "CapBnd"):
        found = held(pods, container, which)
        assert there <= found and not gone & found
    assert held(pods, container, "CapInh") == set()


def test_ambient_capabilities_reach_a_user_other_than_root(pods: Pods, pod: str) -> None:
    wanted = security(
        run_as_user=cri.Int64Value(value=1000),
        capabilities=cri.Capability(add_ambient_capabilities=["NET_BIND_SERVICE"]),
    )
    container = pods.run(pod, *SLEEP, linux=wanted)
    for which in ("CapEff", "CapAmb", "CapInh"):
        assert held(pods, container, which) == {"CAP_NET_BIND_SERVICE"}


Profile = cri.SecurityProfile
SECCOMP: dict[str, tuple[dict[str, Any], str]] = {
    "nothing said": ({}, "0"),
    "default": ({"seccomp": Profile(profile_type=Profile.RuntimeDefault)}, "2"),
    "unconfined": ({"seccomp": Profile(profile_type=Profile.Unconfined)}, "0"),
    "the old default": ({"seccomp_profile_path": "runtime/default"}, "2"),
    "docker's name": ({"seccomp_profile_path": "docker/default"}, "2"),
    "the old unconfined": ({"seccomp_profile_path": "unconfined"}, "0"),
    "both": (
        {
            "seccomp": Profile(profile_type=Profile.Unconfined),
            "seccomp_profile_path": "runtime/default",
        },
        "0",
    ),
}


@pytest.mark.parametrize("name", SECCOMP)
def test_seccomp(pods: Pods, pod: str, name: str) -> None:
    fields, mode = SECCOMP[name]
    container = pods.run(pod, *SLEEP, linux=security(**fields))
    assert status_field(pods, container, "Seccomp") == mode
    pods.remove(container)


@pytest.mark.parametrize("old", [False, True])
def test_a_seccomp_profile_of_the_node(pods: Pods, pod: str, volume: Path, old: bool) -> None:
    path = volume / "profile.json"
    rule = {"names": ["chmod", "fchmodat", "fchmodat2"], "action": "SCMP_ACT_ERRNO"}
    path.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}))
    if old:
        wanted = security(seccomp_profile_path=f"localhost/{path}")
    else:
        profile = Profile(profile_type=Profile.Localhost, localhost_ref=str(path))
        wanted = security(seccomp=profile)
    container = pods.run(pod, *SLEEP, linux=wanted)
    text(pods, container, "touch", "/tmp/x")
    assert pods.exec(container, "chmod", "600", "/tmp/x").exit_code != 0


def test_a_masked_and_a_readonly_path(pods: Pods, pod: str) -> None:
    wanted = security(masked_paths=["/etc/passwd"], readonly_paths=["/tmp"])
    container = pods.run(pod, *SLEEP, linux=wanted)
    assert text(pods, container, "cat", "/etc/passwd") == ""
    assert pods.exec(container, "touch", "/tmp/x").exit_code != 0
    # A request's lists are all there is: the kubelet sends the usual ones itself.
    assert pods.exec(container, "cat", "/proc/timer_list").exit_code == 0


def test_no_new_privileges(pods: Pods, pod: str) -> None:
    container = pods.run(pod, *SLEEP, linux=security(no_new_privs=True))
    assert status_field(pods, container, "NoNewPrivs") == "1"


def test_privileged(pods: Pods) -> None:
    config = pods.config()
    config.linux.security_context.privileged = True
    pod = pods.run_pod(config)
    container = pods.run(pod, *SLEEP, linux=security(privileged=True))
    text(pods, container, "touch", "/sys/kernel/mm/hugepages")
    assert pods.exec(container, "test", "-e", "/dev/loop-control").exit_code == int(
        not Path("/dev/loop-control").exists()
    )
    assert status_field(pods, container, "Seccomp") == "0"
    assert "CAP_SYS_ADMIN" in held(pods, container, "CapEff")
    pods.remove_pod(pod)


def test_users_and_groups(pods: Pods, registry: Registry) -> None:
    image = pods.pull(registry, "cri/users", User="1000:1001")
    pod = pods.run_pod()
    spec = cri.ImageSpec(image=image)

    def ids(**fields: Any) -> str:
        container = pods.run(pod, *SLEEP, image=spec, linux=security(**fields))
        status = pods.status(container).user.linux
        uid, gid = status_field(pods, container, "Uid"), status_field(pods, container, "Gid")
        groups = [int(each) for each in status_field(pods, container, "Groups").split()]
        assert (status.uid, status.gid) == (int(uid.split()[0]), int(gid.split()[0]))
        assert sorted(status.supplemental_groups) == sorted(groups)
        pods.remove(container)
        return f"{status.uid}:{status.gid}:{sorted(groups)}"

    value = cri.Int64Value
    assert ids() == "1000:1001:[1001]"
    assert ids(run_as_user=value(value=5)) == "5:0:[0]"
    assert ids(run_as_user=value(value=5), run_as_group=value(value=6)) == "5:6:[6]"
    assert ids(run_as_username="root") == "0:0:[0]"
    assert ids(run_as_user=value(value=5), supplemental_groups=[7, 8]) == "5:0:[0, 7, 8]"
    strict = {"supplemental_groups_policy": cri.Strict, "supplemental_groups": [9]}
    assert ids(**strict) == "1000:1001:[9, 1001]"
    pods.remove_pod(pod)


def test_command_args_directory_and_environment(pods: Pods, registry: Registry) -> None:
    image = pods.pull(
        registry,
        "cri/words",
        Entrypoint=["/bin/echo", "entry"],
        Cmd=["cmd"],
        Env=["FROM=image", "KEPT=image"],
        WorkingDir="/tmp",
    )
    pod = pods.run_pod()

    def output(*command: str, **fields: Any) -> list[str]:
        container = pods.run(pod, *command, image=cri.ImageSpec(image=image), **fields)
        pods.exited(container)
        return pods.output(container)

    assert output() == ["entry cmd"]
    assert output(args=["args"]) == ["entry args"]
    assert output("echo", "command") == ["command"]
    assert output("echo", "command", args=["args"]) == ["command args"]
    assert output("pwd") == ["/tmp"]
    assert output("pwd", working_dir="/made/now") == ["/made/now"]
    envs = [cri.KeyValue(key="FROM", value=b"request"), cri.KeyValue(key="B", value=b"\xff=")]
    assert output("sh", "-c", "echo $FROM $KEPT", envs=envs) == ["request image"]
    pods.remove_pod(pod)


def test_a_log_path_and_its_absence(pods: Pods, pod: str) -> None:
    container = pods.run(pod, "echo", "hello", log_path="deep/er/x.log")
    pods.exited(container)
    assert pods.status(container).log_path.endswith("/deep/er/x.log")
    assert pods.output(container) == ["hello"]


def test_the_log_directory_of_the_request(pods: Pods, pod: str) -> None:
    """The kubelet sends the pod's config with each container: its log directory counts."""
    directory = pods.daemon.home / "logs-of-the-request"
    config = cri.ContainerConfig(
        metadata=cri.ContainerMetadata(name="elsewhere"),
        image=cri.ImageSpec(image=IMAGE),
        command=["true"],
        log_path="x.log",
        linux=security(),
    )
    request = cri.CreateContainerRequest(
        pod_sandbox_id=pod,
        config=config,
        sandbox_config=cri.PodSandboxConfig(log_directory=str(directory)),
    )
    answer = pods.daemon.runtime.CreateContainer(request, timeout=RPC_SECONDS)
    assert pods.status(answer.container_id).log_path == f"{directory}/x.log"


def test_a_part_of_an_image_as_a_volume(pods: Pods, pod: str) -> None:
    mount = cri.Mount(
        container_path="/v",
        image=cri.ImageSpec(image=IMAGE),
        image_sub_path="etc",
        readonly=True,
    )
    container = pods.run(pod, *SLEEP, mounts=[mount])
    assert "root" in text(pods, container, "cat", "/v/passwd")
    assert pods.exec(container, "touch", "/v/x").exit_code != 0


def test_runtime_handlers_and_features_are_told(pods: Pods) -> None:
    status = pods.daemon.runtime.Status(cri.StatusRequest(verbose=True), timeout=RPC_SECONDS)
    assert {handler.name for handler in status.runtime_handlers} == {"", "runtimeshim"}
    assert all(each.features.recursive_read_only_mounts for each in status.runtime_handlers)
    assert status.features.supplemental_groups_policy
    assert status.features.mount_options
    topics = {name: json.loads(value) for name, value in status.info.items()}
    assert topics["version"]["kernel"] == os.uname().release
    assert topics["network"]["provider"] == "builtin"
    assert "memory" in topics["host"]["cgroupControllers"]
    assert topics["objects"]["podSandboxes"] >= 1

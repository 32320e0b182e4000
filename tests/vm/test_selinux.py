"""SELinux of containers, on a kernel that enforces it: labels of processes and of what they use.

The policy is container.cil: what container_t may not do there it may not do with a distribution's,
and its types have the names of container-selinux. Run by `hack/vm --lsm selinux test`.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from api.cri import api_pb2 as cri
from tests.integration.pods import Pods
from tests.vm.service import IMAGE, Service, installed_service

FILESYSTEM = Path("/sys/fs/selinux")
POLICY = Path(__file__).with_name("container.cil")
HOST = "system_u:system_r:host_t:s0-s0:c0.c3"
VOLUMES = Path("/var/lib/selinux-test")


@pytest.fixture(scope="module", autouse=True)
def enforcing(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Load the policy and enforce it until the machine is off: it cannot be unloaded."""
    if not (FILESYSTEM / "load").exists():
        subprocess.run(["mount", "-t", "selinuxfs", "selinuxfs", FILESYSTEM], check=True)
    policy = tmp_path_factory.mktemp("selinux") / "policy"
    compiler = ["secilc", "--mls", "true", "--filecontext", "/dev/null", "--output", policy, POLICY]
    subprocess.run(compiler, check=True)
    with (FILESYSTEM / "load").open("wb", buffering=0) as load:
        load.write(policy.read_bytes())
    (FILESYSTEM / "enforce").write_text("1")


@pytest.fixture(scope="module")
def installed(enforcing: None) -> Iterator[Service]:
    with installed_service("systemd") as made:
        yield made


@pytest.fixture
def volume(request: pytest.FixtureRequest) -> Path:
    """A directory of the host, with a file, neither with a label."""
    made = VOLUMES / str(request.node.name)
    made.mkdir(parents=True)
    (made / "file").write_text("content\n")
    return made


def option(level: str = "", type_: str = "") -> cri.SELinuxOption:
    return cri.SELinuxOption(level=level, type=type_)


def start(pods: Pods, pod: str, **fields: Any) -> str:
    """Run a container that sleeps; `security` and `tty` are fields of its configuration."""
    options = cri.NamespaceOption(network=cri.NODE, pid=cri.CONTAINER)
    context = cri.LinuxContainerSecurityContext(
        namespace_options=options, **fields.pop("security", {})
    )
    linux = cri.LinuxContainerConfig(security_context=context)
    image = cri.ImageSpec(image=IMAGE)
    return pods.run(pod, "sleep", "1000", image=image, linux=linux, **fields)


def run_pod(pods: Pods, selinux: cri.SELinuxOption | None = None) -> str:
    config = pods.config()
    if selinux is not None:
        config.linux.security_context.selinux_options.CopyFrom(selinux)
    return pods.run_pod(config)


def says(pods: Pods, container: str, script: str) -> str:
    """What a script in the container prints, errors included."""
    answer = pods.exec(container, "sh", "-c", script)
    return (answer.stdout + answer.stderr).decode()


def test_a_container_has_its_label_and_so_has_an_exec(pods: Pods) -> None:
    container = start(pods, run_pod(pods), security={"selinux_options": option("s0:c1,c2")})
    label = "system_u:system_r:container_t:s0:c1,c2"
    read = "cat /proc/1/attr/current | tr -d '\\0'; echo; cat /proc/self/attr/current | tr -d '\\0'"
    assert says(pods, container, read) == f"{label}\n{label}"


def test_without_a_request_it_is_container_t(pods: Pods) -> None:
    container = start(pods, run_pod(pods))
    read = "cat /proc/1/attr/current | tr -d '\\0'"
    assert says(pods, container, read) == "system_u:system_r:container_t:s0"


def test_the_type_is_the_requests(pods: Pods) -> None:
    wanted = option("s0:c3", "other_container_t")
    container = start(pods, run_pod(pods), security={"selinux_options": wanted})
    read = "cat /proc/1/attr/current | tr -d '\\0'"
    assert says(pods, container, read) == "system_u:system_r:other_container_t:s0:c3"


def test_a_privileged_container_is_as_the_daemon(pods: Pods) -> None:
    config = pods.config()
    config.linux.security_context.privileged = True
    container = start(pods, pods.run_pod(config), security={"privileged": True})
    assert says(pods, container, "cat /proc/1/attr/current | tr -d '\\0'") == HOST


@pytest.mark.parametrize("directory", ["", "/tmp", "/dev/shm", "/dev/mqueue", "/dev"])
def test_it_writes_where_containers_may(pods: Pods, directory: str) -> None:
    level = option("s0:c1,c2")
    container = start(pods, run_pod(pods, level), security={"selinux_options": level})
    write = f"touch {directory}/new && ls {directory}/new && rm {directory}/new"
    assert says(pods, container, write) == f"{directory}/new\n"


@pytest.mark.parametrize("file", ["hosts", "hostname", "resolv.conf"])
def test_it_reads_the_pods_files(pods: Pods, file: str) -> None:
    level = option("s0:c1,c2")
    container = start(pods, run_pod(pods, level), security={"selinux_options": level})
    assert says(pods, container, f"test -r /etc/{file} && cat /etc/{file} >/dev/null") == ""


def test_a_terminal_is_its_own(pods: Pods) -> None:
    level = option("s0:c1,c2")
    container = start(pods, run_pod(pods, level), security={"selinux_options": level}, tty=True)
    assert says(pods, container, "echo x >/proc/1/fd/1 && echo y > /dev/pts/0 && echo done") == (
        "done\n"
    )


def test_a_volume_without_a_label_is_refused(pods: Pods, volume: Path) -> None:
    mount = cri.Mount(container_path="/v", host_path=str(volume))
    container = start(pods, run_pod(pods), mounts=[mount])
    assert "Permission denied" in says(pods, container, "cat /v/file")


def test_a_relabelled_volume_is_for_its_categories_alone(pods: Pods, volume: Path) -> None:
    mount = cri.Mount(container_path="/v", host_path=str(volume), selinux_relabel=True)
    own, other = option("s0:c1,c2"), option("s0:c1,c3")
    container = start(pods, run_pod(pods, own), mounts=[mount], security={"selinux_options": own})
    assert says(pods, container, "cat /v/file && touch /v/new") == "content\n"
    for name in ("file", "new"):
        label = os.getxattr(volume / name, "security.selinux").rstrip(b"\0").decode()
        assert label == "system_u:object_r:container_file_t:s0:c1,c2"
    mount.selinux_relabel = False
    stranger = start(
        pods, run_pod(pods, other), mounts=[mount], security={"selinux_options": other}
    )
    assert "Permission denied" in says(pods, stranger, "cat /v/file")


def test_a_container_in_a_user_namespace_has_all_this_too(pods: Pods) -> None:
    level = option("s0:c1,c2")
    mapping = [cri.IDMapping(host_id=1 << 20, container_id=0, length=1 << 16)]
    user = cri.UserNamespace(mode=cri.POD, uids=mapping, gids=mapping)
    options = cri.NamespaceOption(network=cri.POD, pid=cri.CONTAINER, userns_options=user)
    config = pods.config()
    config.linux.security_context.namespace_options.CopyFrom(options)
    config.linux.security_context.selinux_options.CopyFrom(level)
    context = cri.LinuxContainerSecurityContext(namespace_options=options, selinux_options=level)
    linux = cri.LinuxContainerConfig(security_context=context)
    image = cri.ImageSpec(image=IMAGE)
    container = pods.run(pods.run_pod(config), "sleep", "1000", image=image, linux=linux)
    read = "cat /proc/1/attr/current | tr -d '\\0'; touch /new /dev/shm/new && echo ' written'"
    assert says(pods, container, read) == "system_u:system_r:container_t:s0:c1,c2 written\n"

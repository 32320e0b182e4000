"""The directories that an image wants on volumes (VOLUME), which a container gets of its own."""

from __future__ import annotations

import os
import stat
import tarfile
from pathlib import Path

import pytest

from api.cri import api_pb2 as cri
from tests.integration import images
from tests.integration.daemon import RPC_SECONDS, Daemon, wait_for
from tests.integration.pods import Pods, refused
from tests.integration.registry import Registry

IMAGE = "registry.test/volumes:latest"
OF_A_FILE = "registry.test/volume-of-a-file:latest"
MIB = 1 << 20
BASE, LENGTH = 1_000_000, 65536


@pytest.fixture(scope="module")
def pods(module_daemon: Daemon, registry: Registry) -> Pods:
    made = Pods(module_daemon)
    below = images.layer(
        images.entry("srv/data", kind=tarfile.DIRTYPE, mode=0o2750, uid=7, gid=8),
        images.entry("srv/data/hidden", b"by the layer above"),
        images.entry("srv/data/set-id", b"x", mode=0o4755, uid=9, xattrs={"user.a": "b"}),
        images.entry("srv/data/twin", kind=tarfile.LNKTYPE, target="srv/data/set-id"),
        images.directory("srv/data/deep/er"),
        images.entry("srv/data/pipe", kind=tarfile.FIFOTYPE, mode=0o600),
    )
    above = images.layer(
        images.entry("srv/data/.wh.hidden"),
        images.entry("srv/data/deep/er/file", b"content"),
        images.symlink("srv/data/link", "/etc/shadow"),
        images.symlink("alias", "srv/data"),
    )
    volumes = {"/alias": {}, "/empty": {}, "/etc/hosts": {}}
    image = images.busybox(below, above, Volumes=volumes)
    images.push(registry.address, "volumes", image)
    file = images.busybox(images.layer(images.entry("file")), Volumes={"/file": {}})
    images.push(registry.address, "volume-of-a-file", file)
    for name in (IMAGE, OF_A_FILE):
        request = cri.PullImageRequest(image=cri.ImageSpec(image=name))
        module_daemon.images.PullImage(request, timeout=RPC_SECONDS)
    made.pull(registry)
    return made


def run(pods: Pods, pod: str, script: str, **fields: object) -> str:
    return pods.run(pod, "sh", "-c", script, image=cri.ImageSpec(image=IMAGE), **fields)


def printed(pods: Pods, pod: str, script: str, **fields: object) -> list[str]:
    container = run(pods, pod, script, **fields)
    assert pods.exited(container).exit_code == 0, pods.output(container)
    return pods.output(container)


def directory(pods: Pods, container: str) -> Path:
    return pods.daemon.root / "containers" / container


def test_a_volume_begins_with_what_the_image_has(pods: Pods, pod: str) -> None:
    script = """
        cd /srv/data
        find . | sort; stat -c '%n %a %u:%g %h' . set-id twin pipe deep/er
        cat deep/er/file; echo; readlink link; stat -c %Y deep/er/file; ls -A /empty | wc -l
    """
    found = printed(pods, pod, script)
    assert found == [
        *(".", "./deep", "./deep/er", "./deep/er/file", "./link", "./pipe", "./set-id", "./twin"),
        *(". 2750 7:8 3", "set-id 4755 9:0 2", "twin 4755 9:0 2", "pipe 600 0:0 1"),
        *("deep/er 755 0:0 2", "content", "/etc/shadow", "0", "0"),
    ]


def test_a_volume_is_its_containers_own_and_goes_with_it(pods: Pods, pod: str) -> None:
    before = pods.remains()
    script = "echo mine > /srv/data/file && echo mine > /empty/file && sleep 3600"
    container = run(pods, pod, script)
    home = directory(pods, container)
    wait_for(lambda: (home / "volumes/1/file").exists(), "the container to have written")
    assert not (home / "upper/srv").exists()
    assert not (home / "upper/empty/file").exists()
    assert printed(pods, pod, "ls /srv/data/file 2>/dev/null; ls -A /empty") == []
    assert os.getxattr(home / "volumes/0/set-id", "user.a") == b"b"
    pods.stop(container)
    for each in pods.containers(pod_sandbox_id=pod):
        pods.remove(each.id)
    pods.assert_remains(before)


def test_it_can_be_written_where_the_root_cannot(pods: Pods, pod: str) -> None:
    context = cri.LinuxContainerSecurityContext(
        readonly_rootfs=True,
        namespace_options=cri.NamespaceOption(network=cri.NODE, pid=cri.CONTAINER),
    )
    linux = cri.LinuxContainerConfig(security_context=context)
    script = "touch /empty/file /alias/file && touch /file 2>/dev/null || echo only there"
    assert printed(pods, pod, script, linux=linux) == ["only there"]


def test_a_mount_of_the_request_goes_first(pods: Pods, pod: str, tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("the host's")
    mounts = [cri.Mount(container_path="/empty/", host_path=str(tmp_path))]
    container = run(pods, pod, "cat /empty/hosts; touch /empty/new", mounts=mounts)
    assert pods.exited(container).exit_code == 0
    assert pods.output(container) == ["the host's"]
    assert (tmp_path / "new").exists()
    assert os.listdir(directory(pods, container) / "volumes") == ["0"]


def test_the_pods_own_files_stay_where_they_are(pods: Pods, pod: str) -> None:
    assert any("localhost" in line for line in printed(pods, pod, "cat /etc/hosts"))


def test_a_volume_that_is_a_file_in_the_image_is_refused(pods: Pods, pod: str) -> None:
    before = pods.remains()
    image = cri.ImageSpec(image=OF_A_FILE)
    message = refused("INVALID_ARGUMENT", pods.create, pod, "true", image=image)
    assert "'/file', which is not a directory" in message
    pods.assert_remains(before)


def test_what_is_in_a_volume_counts_as_written(pods: Pods, pod: str) -> None:
    script = f"dd if=/dev/zero of=/empty/file bs={MIB} count=8 2>/dev/null; sleep 3600"
    container = run(pods, pod, script)
    request = cri.ContainerStatsRequest(container_id=container)

    def written() -> bool:
        stats = pods.daemon.runtime.ContainerStats(request, timeout=RPC_SECONDS).stats
        return 8 * MIB <= stats.writable_layer.used_bytes.value < 9 * MIB

    wait_for(written, "the volume to be measured")


def test_in_a_user_namespace_it_belongs_to_whom_the_image_says(pods: Pods) -> None:
    mapping = [cri.IDMapping(host_id=BASE, container_id=0, length=LENGTH)]
    user = cri.UserNamespace(mode=cri.POD, uids=mapping, gids=mapping)
    given = cri.NamespaceOption(network=cri.NODE, pid=cri.CONTAINER, userns_options=user)
    linux = cri.LinuxPodSandboxConfig(
        security_context=cri.LinuxSandboxSecurityContext(namespace_options=given)
    )
    pod = pods.run_pod(pods.config(linux=linux))
    context = cri.LinuxContainerSecurityContext(namespace_options=given)
    script = "touch /alias/new && stat -c %u:%g /srv/data /alias/new; sleep 3600"
    container = run(pods, pod, script, linux=cri.LinuxContainerConfig(security_context=context))
    wait_for(lambda: len(pods.output(container)) == 2, "the output")
    assert pods.output(container) == ["7:8", "0:8"]
    found = (directory(pods, container) / "volumes/0/new").stat()
    assert (found.st_uid, found.st_gid) == (0, 8)
    assert not stat.S_IMODE(directory(pods, container).stat().st_mode) & 0o077
    pods.remove_pod(pod)

"""Image volumes through the CRI, `criserver image` through the daemon, pins and volatile roots."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from api.cri import api_pb2 as cri
from tests.integration import images
from tests.integration.cli import Cli
from tests.integration.daemon import RPC_SECONDS, Daemon
from tests.integration.pods import IMAGE, Pods, refused
from tests.integration.registry import Registry

pytestmark = pytest.mark.integration

VOLUME = "registry.test/volume:latest"


@pytest.fixture(scope="module")
def pods(module_daemon: Daemon, registry: Registry) -> Pods:
    made = Pods(module_daemon)
    assert made.pull(registry) == IMAGE
    pull_volume(module_daemon, registry)
    return made


def pull_volume(daemon: Daemon, registry: Registry) -> None:
    layers = (
        images.layer(
            images.directory("models/a"), images.entry("models/a/weights", b"w", mode=0o444)
        ),
        images.layer(
            images.entry("models/a/vocabulary", b"v"), images.symlink("latest", "models/a")
        ),
    )
    images.push(registry.address, "volume", images.Image(layers))
    request = cri.PullImageRequest(image=cri.ImageSpec(image=VOLUME))
    daemon.images.PullImage(request, timeout=RPC_SECONDS)


def mount(path: str = "/volume", image: str = VOLUME, **fields: object) -> cri.Mount:
    return cri.Mount(
        container_path=path,
        **{"readonly": True, "image": cri.ImageSpec(image=image), **fields},  # type: ignore[arg-type]
    )


def printed(pods: Pods, pod: str, script: str, *mounts: cri.Mount) -> list[str]:
    container = pods.run(pod, "sh", "-c", script, mounts=mounts)
    assert pods.exited(container).exit_code == 0, pods.output(container)
    return pods.output(container)


def test_a_container_reads_an_image_volume(pods: Pods, pod: str) -> None:
    script = "cd /volume; find . -type f | sort; cat latest/weights; echo; touch x 2>&1 || true"
    assert printed(pods, pod, script, mount()) == [
        "./models/a/vocabulary",
        "./models/a/weights",
        "w",
        "touch: x: Read-only file system",
    ]


def test_a_sub_path_shows_one_directory(pods: Pods, pod: str) -> None:
    for sub_path in ("models/a", "latest"):
        found = printed(pods, pod, "ls /volume", mount(image_sub_path=sub_path))
        assert found == ["vocabulary", "weights"]


def test_several_volumes_and_the_image_itself(pods: Pods, pod: str) -> None:
    mounts = [mount("/a", image_sub_path="models"), mount("/b/c"), mount("/own", IMAGE)]
    assert printed(pods, pod, "ls /a /b/c /own/bin/busybox", *mounts)[-1] != ""


def test_mount_options_and_status(pods: Pods, pod: str) -> None:
    wanted = mount(mount_options=["noexec"])
    container = pods.run(pod, "sh", "-c", "grep ' /volume ' /proc/mounts", mounts=[wanted])
    assert pods.exited(container).exit_code == 0
    (line,) = pods.output(container)
    options = line.split()[3].split(",")
    assert {"ro", "nosuid", "nodev", "noexec"} <= set(options)
    (status,) = pods.status(container).mounts
    assert status.image.image == VOLUME
    request = cri.ImageStatusRequest(image=cri.ImageSpec(image=VOLUME))
    found = pods.daemon.images.ImageStatus(request, timeout=RPC_SECONDS).image
    assert status.image.image_ref == found.id  # what PullImage returns (KEP-5365)


REFUSED = {
    "not readonly": (mount(readonly=False), "INVALID_ARGUMENT", "readonly"),
    "host path": (mount(host_path="/etc"), "INVALID_ARGUMENT", "exclude"),
    "no name": (mount(image=""), "INVALID_ARGUMENT", "empty"),
    "sub path without image": (
        cri.Mount(container_path="/v", host_path="/etc", image_sub_path="a"),
        "INVALID_ARGUMENT",
        "needs image",
    ),
    "absent image": (mount(image="registry.test/no:1"), "FAILED_PRECONDITION", "not found"),
    "absent sub path": (mount(image_sub_path="x"), "FAILED_PRECONDITION", "not a directory"),
    "a file": (mount(image_sub_path="latest/weights"), "FAILED_PRECONDITION", "not a directory"),
}


@pytest.mark.parametrize(("wanted", "code", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_mounted_is_refused(
    pods: Pods, pod: str, wanted: cri.Mount, code: str, reason: str
) -> None:
    before = pods.remains()
    message = refused(code, pods.create, pod, "true", mounts=[wanted])
    assert message.startswith("ImageVolumeMountFailed: ")
    assert reason in message
    pods.assert_remains(before)


def test_a_volume_survives_the_removal_of_its_image(
    pods: Pods, pod: str, registry: Registry
) -> None:
    container = pods.run(pod, "sh", "-c", "sleep 3600", mounts=[mount()])
    request = cri.RemoveImageRequest(image=cri.ImageSpec(image=VOLUME))
    pods.daemon.images.RemoveImage(request, timeout=RPC_SECONDS)
    try:
        assert pods.exec(container, "cat", "/volume/latest/weights").stdout == b"w"
        layers = {path.name for path in (pods.daemon.root / "layers").iterdir()}
        pods.remove(container)
        after = {path.name for path in (pods.daemon.root / "layers").iterdir()}
        assert len(layers - after) == 2
    finally:
        pull_volume(pods.daemon, registry)


def test_a_volume_in_a_user_namespace_keeps_the_images_owners(pods: Pods) -> None:
    before = pods.remains()
    mapping = cri.IDMapping(host_id=1_000_000, container_id=0, length=65536)
    user = cri.UserNamespace(mode=cri.POD, uids=[mapping], gids=[mapping])
    options = cri.NamespaceOption(network=cri.NODE, pid=cri.CONTAINER, userns_options=user)
    sandbox = cri.LinuxSandboxSecurityContext(namespace_options=options)
    config = pods.config(linux=cri.LinuxPodSandboxConfig(security_context=sandbox))
    pod = pods.run_pod(config)
    context = cri.LinuxContainerSecurityContext(namespace_options=options)
    mapped = mount(image_sub_path="models/a", uidMappings=[mapping], gidMappings=[mapping])
    container = pods.run(
        pod,
        *("sh", "-c", "stat -c %u:%g /volume/weights; cat /volume/weights /proc/self/uid_map"),
        mounts=[mapped],
        linux=cri.LinuxContainerConfig(security_context=context),
    )
    assert pods.exited(container).exit_code == 0, pods.output(container)
    owner, content = pods.output(container)
    assert owner == "0:0"
    assert content.split() == ["w", "0", "1000000", "65536"]
    pods.remove_pod(pod)
    pods.assert_remains(before)


def test_an_image_of_128_layers_runs_and_is_a_volume(
    pods: Pods, pod: str, registry: Registry
) -> None:
    layers = [images.files_layer({f"many/{number:03}": str(number)}) for number in range(127)]
    images.push(registry.address, "many", images.busybox(*layers))
    name = "registry.test/many:latest"
    request = cri.PullImageRequest(image=cri.ImageSpec(image=name))
    pods.daemon.images.PullImage(request, timeout=RPC_SECONDS)
    container = pods.run(
        pod,
        *("sh", "-c", "ls /many | wc -l; ls /volume | wc -l; cat /many/000 /volume/126"),
        image=cri.ImageSpec(image=name),
        mounts=[mount(image=name, image_sub_path="many")],
    )
    assert pods.exited(container).exit_code == 0, pods.output(container)
    assert pods.output(container) == ["127", "127", "0126"]


def test_volumes_leave_nothing(pods: Pods) -> None:
    before = pods.remains()
    pod = pods.run_pod()
    printed(pods, pod, "ls /volume", mount())
    pods.remove_pod(pod)
    pods.assert_remains(before)


# -- the command line -------------------------------------------------------------------------


def test_the_image_commands(pods: Pods, tmp_path: Path) -> None:
    cli = Cli(pods.daemon)
    (inspected,) = json.loads(cli.output("image", "inspect", IMAGE))
    assert inspected["repoTags"] == [IMAGE]
    assert cli.output("image", "verify").endswith(" checked, 0 damaged\n")
    archive = tmp_path / "out.tar"
    assert cli.output("image", "export", "-o", str(archive), IMAGE, VOLUME) == ""
    assert os.listdir(tmp_path) == ["out.tar"]
    assert cli("image", "export", IMAGE).stdout[:10] == b"oci-layout"
    assert cli.output("image", "import", str(archive)).split() == [IMAGE, VOLUME]
    target = tmp_path / "mounted"
    target.mkdir()
    cli.output("image", "mount", VOLUME, str(target))
    assert (target / "latest/weights").read_bytes() == b"w"
    assert cli.output("image", "unmount", str(target)) == ""
    assert not list(target.iterdir())
    assert "0 layers and 0 blobs removed" in cli.output("image", "gc")
    absent = cli("image", "inspect", "registry.test/none:1")
    assert (absent.returncode, b"not found" in absent.stderr) == (1, True)


def test_verify_fails_where_something_is_damaged(pods: Pods, registry: Registry) -> None:
    cli = Cli(pods.daemon)
    (inspected,) = json.loads(cli.output("image", "inspect", VOLUME))
    file = Path(inspected["layers"][0]["directory"], "models/a/weights")
    file.write_bytes(b"x")
    found = cli("image", "verify")
    assert found.returncode == 1
    assert (
        f"layer {inspected['layers'][0]['chainID']} of {VOLUME}: damaged" in found.stdout.decode()
    )
    assert b"models/a/weights" in found.stdout
    pull_volume(pods.daemon, registry)
    cli.output("image", "verify")


def test_pinned_images_and_volatile_roots(
    make_daemon: Callable[[], Daemon], registry: Registry
) -> None:
    daemon = make_daemon()
    with daemon.config.open("a") as file:
        file.write(f'[images]\npinned_images = ["{IMAGE}"]\nvolatile_rootfs = true\n')
    daemon.start()
    pods = Pods(daemon)
    pods.pull(registry)
    pull_volume(daemon, registry)
    listed = daemon.images.ListImages(cri.ListImagesRequest(), timeout=RPC_SECONDS).images
    assert {image.repo_tags[0]: image.pinned for image in listed} == {IMAGE: True, VOLUME: False}
    pod = pods.run_pod()
    (line,) = printed(pods, pod, "grep ' / ' /proc/mounts")
    assert "volatile" in line.split()[3]  # as `volatile` or, on newer kernels, fsync=volatile
    pods.remove_pod(pod)
    assert f"removed {VOLUME}" in Cli(daemon).output("image", "gc", "--unused")
    listed = daemon.images.ListImages(cri.ListImagesRequest(), timeout=RPC_SECONDS).images
    assert [image.repo_tags[0] for image in listed] == [IMAGE]

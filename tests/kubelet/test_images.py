"""Images: what a pod shows of one that cannot be had, and images as volumes."""

from __future__ import annotations

import re

from tests.integration import images
from tests.integration.registry import Registry
from tests.kubelet.kubelet import Kubelet, containers, has_ended, is_running, waits_for
from tests.kubelet.manifests import FOREVER, pod, shell


def test_an_image_that_does_not_exist(kubelet: Kubelet) -> None:
    missing = "registry.test/cri/missing:latest"
    name = kubelet.put(pod({**shell(FOREVER), "image": missing}))
    failed = kubelet.until(name, waits_for("ErrImagePull"), "the failure")
    message = containers(failed)["main"]["state"]["waiting"]["message"]
    assert missing in message
    assert "not found" in message
    kubelet.until(name, waits_for("ImagePullBackOff"), "the back-off")


def test_a_registry_that_does_not_exist(kubelet: Kubelet) -> None:
    name = kubelet.put(pod({**shell(FOREVER), "image": "registry.invalid/cri/busybox:latest"}))
    failed = kubelet.until(
        name,
        lambda one: waits_for("ErrImagePull")(one) or waits_for("RegistryUnavailable")(one),
        "it",
    )
    assert "registry.invalid" in containers(failed)["main"]["state"]["waiting"]["message"]


def test_an_image_that_was_not_there_comes(kubelet: Kubelet, registry: Registry) -> None:
    late = "registry.test/cri/late:latest"
    name = kubelet.put(pod({**shell(FOREVER), "image": late}))
    kubelet.until(name, waits_for("ErrImagePull"), "the failure")
    images.push(registry.address, "cri/late", images.busybox(env=["PATH=/bin", "LATE=yes"]))
    kubelet.until(name, is_running, "its start")
    assert "LATE=yes" in kubelet.run(name, "env")


def test_an_image_by_digest_and_always_pulled(kubelet: Kubelet, registry: Registry) -> None:
    pushed = images.push(registry.address, "cri/digest", images.busybox(env=["PATH=/bin", "A=b"]))
    digest = re.sub(r"^[^/]*", "registry.test", pushed)
    main = {**shell(FOREVER), "image": digest, "imagePullPolicy": "Always"}
    name = kubelet.put(pod(main))
    status = containers(kubelet.until(name, is_running, "its start"))["main"]
    assert status["imageID"] == digest


def test_the_images_own_command_user_and_directory(kubelet: Kubelet, registry: Registry) -> None:
    image = images.busybox(
        images.layer(images.directory("home", 0o755)),
        entrypoint=["/bin/sh", "-c"],
        cmd=["id -u; pwd; echo $COLOR"],
        env=["PATH=/bin", "COLOR=green"],
        user="nobody",
        working_dir="/home",
    )
    images.push(registry.address, "cri/own", image)
    container = {"name": "main", "image": "registry.test/cri/own:latest"}
    name = kubelet.put(pod(container, restartPolicy="Never"))
    kubelet.until(name, has_ended, "its end")
    printed = kubelet.get(f"/containerLogs/tests/{name}/main").decode()
    assert printed.splitlines() == ["65534", "/home", "green"]


def test_an_image_as_a_volume(kubelet: Kubelet, registry: Registry) -> None:
    content = images.files_layer({"dir/file": "content\n", "other": "other\n"})
    images.push(registry.address, "cri/volume", images.Image((content,)))
    reference = "registry.test/cri/volume:latest"
    mounts = [
        {"name": "image", "mountPath": "/whole"},
        {"name": "image", "mountPath": "/part", "subPath": "dir"},
    ]
    script = "cat /whole/other /part/file; touch /whole/new 2>&1 | grep -o 'Read-only file system'"
    name = kubelet.put(
        pod(
            shell(script, volumeMounts=mounts),
            volumes=[{"name": "image", "image": {"reference": reference}}],
            restartPolicy="Never",
        )
    )
    kubelet.until(name, has_ended, "its end")
    printed = kubelet.get(f"/containerLogs/tests/{name}/main").decode()
    assert printed.splitlines() == ["other", "content", "Read-only file system"]

"""The kubelet removes images that nobody uses when the disk is fuller than it may be."""

from __future__ import annotations

from tests.integration import images
from tests.integration.daemon import wait_for
from tests.integration.registry import Registry
from tests.kubelet.kubelet import Kubelet, has_ended, is_running
from tests.kubelet.manifests import IMAGE, pod, shell

UNUSED = "registry.test/cri/unused:latest"
# The kubelet looks every five minutes (ImageGCPeriod), the first time at its start.
SECONDS = 400.0


def names(kubelet: Kubelet) -> set[str]:
    return {tag for image in kubelet.runtime_images() for tag in image.repo_tags}


def test_unused_images_go_and_used_ones_stay(kubelet: Kubelet, registry: Registry) -> None:
    more = images.files_layer({"unused": b"x" * 1_000_000})
    images.push(registry.address, "cri/unused", images.busybox(more))
    once = kubelet.put(pod({**shell("true"), "image": UNUSED}, restartPolicy="Never"))
    kubelet.until(once, has_ended, "its end")
    kubelet.remove(once)
    kubelet.until_gone(once)
    used = kubelet.put(pod())
    kubelet.until(used, is_running, "its start")
    assert {UNUSED, IMAGE} <= names(kubelet)
    kubelet.restart(
        imageGCHighThresholdPercent=1, imageGCLowThresholdPercent=0, imageMinimumGCAge="1ms"
    )
    try:
        wait_for(lambda: UNUSED not in names(kubelet), "the image's end", SECONDS)
        assert IMAGE in names(kubelet)
        kubelet.until(used, is_running, "its running on")
    finally:
        kubelet.restart()

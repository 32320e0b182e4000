"""What is in a pod's manifest, and what the pod then sees of it."""

from __future__ import annotations

import json
import os
import urllib.request
from pathlib import Path
from typing import Any

from tests.kubelet.kubelet import Kubelet, containers, has_ended, is_ready, is_running, waits_for
from tests.kubelet.manifests import FOREVER, IMAGE, pod, shell


def output(kubelet: Kubelet, manifest: dict[str, Any]) -> str:
    """Run the pod to its end; what its container `main` has printed. It must succeed."""
    manifest["spec"].setdefault("restartPolicy", "Never")
    name = kubelet.put(manifest)
    ended = kubelet.until(name, has_ended, "its end")
    printed = kubelet.get(f"/containerLogs/tests/{name}/main").decode()
    assert ended["status"]["phase"] == "Succeeded", (printed, ended["status"])
    return printed


def test_the_status_names_the_image_by_tag_and_by_digest(kubelet: Kubelet) -> None:
    name = kubelet.put(pod())
    status = containers(kubelet.until(name, is_running, "its start"))["main"]
    assert status["image"] == IMAGE
    assert status["imageID"].startswith("registry.test/cri/busybox@sha256:")


def test_init_containers_run_in_order_before_the_others(kubelet: Kubelet) -> None:
    mounts = [{"name": "shared", "mountPath": "/shared"}]
    manifest = pod(
        shell("cat /shared/order", volumeMounts=mounts),
        initContainers=[
            shell("sleep 1; echo first >>/shared/order", "first", volumeMounts=mounts),
            shell("echo second >>/shared/order", "second", volumeMounts=mounts),
        ],
        volumes=[{"name": "shared", "emptyDir": {}}],
    )
    assert output(kubelet, manifest) == "first\nsecond\n"


def test_an_init_container_that_fails_is_tried_again_and_holds_up_the_others(
    kubelet: Kubelet,
) -> None:
    mounts = [{"name": "shared", "mountPath": "/shared"}]
    once = "[ -e /shared/tried ] || { touch /shared/tried; exit 3; }"
    name = kubelet.put(
        pod(
            initContainers=[shell(once, "init", volumeMounts=mounts)],
            volumes=[{"name": "shared", "emptyDir": {}}],
        )
    )
    status = kubelet.until(name, is_running, "its start")
    init = containers(status, "initContainerStatuses")["init"]
    assert init["restartCount"] == 1
    assert init["state"]["terminated"]["reason"] == "Completed"


def test_a_sidecar_starts_first_and_ends_last(kubelet: Kubelet, tmp_path: Path) -> None:
    mounts = [{"name": "events", "mountPath": "/events"}]
    life = "echo {0} starts >>/events/log; trap 'echo {0} ends >>/events/log; exit 0' TERM"
    wait = "while true; do sleep 0.2; done"
    sidecar = shell(
        f"{life.format('sidecar')}; {wait}",
        "sidecar",
        restartPolicy="Always",
        volumeMounts=mounts,
        startupProbe={
            "exec": {"command": ["grep", "-q", "sidecar", "/events/log"]},
            "periodSeconds": 1,
        },
    )
    name = kubelet.put(
        pod(
            shell(f"{life.format('main')}; {wait}", volumeMounts=mounts),
            initContainers=[sidecar],
            volumes=[{"name": "events", "hostPath": {"path": str(tmp_path)}}],
        )
    )  # fmt: skip
    both = kubelet.until(name, is_running, "its start")
    assert containers(both, "initContainerStatuses")["sidecar"]["started"] is True
    kubelet.until(name, lambda _: "main" in (tmp_path / "log").read_text(), "main's line")
    kubelet.remove(name)
    kubelet.until_gone(name)
    events = (tmp_path / "log").read_text().splitlines()
    assert events == ["sidecar starts", "main starts", "main ends", "sidecar ends"]


def test_resource_limits_are_the_cgroups(kubelet: Kubelet) -> None:
    resources = {"limits": {"cpu": "500m", "memory": "64Mi"}, "requests": {"cpu": "250m"}}
    script = """
        cd /sys/fs/cgroup
        if [ -e cpu.max ]; then cat cpu.max memory.max; else
            echo $(cat cpu/cpu.cfs_quota_us cpu/cpu.cfs_period_us)
            cat memory/memory.limit_in_bytes
        fi
        if [ -e cpu/cpu.shares ]; then cat cpu/cpu.shares; fi"""
    lines = output(kubelet, pod(shell(script, resources=resources))).splitlines()
    assert lines[:2] == ["50000 100000", str(64 << 20)]
    assert lines[2:] in ([], ["256"])


def test_a_pods_resources_are_shown_in_its_status(kubelet: Kubelet) -> None:
    resources = {
        "limits": {"cpu": "500m", "memory": "64Mi"},
        "requests": {"cpu": "250m", "memory": "32Mi"},
    }
    name = kubelet.put(pod(shell(FOREVER, resources=resources)))
    shown = containers(kubelet.until(name, is_running, "its start"))["main"]["resources"]
    assert shown == resources


def test_an_empty_directory_is_shared_and_can_be_memory(kubelet: Kubelet) -> None:
    script = """
        stat -f -c %T /memory; df -k /memory | tail -1 | tr -s ' ' | cut -d ' ' -f 2; cat /again"""
    mounts = [
        {"name": "disk", "mountPath": "/disk"},
        {"name": "memory", "mountPath": "/memory"},
        {"name": "disk", "mountPath": "/again", "subPath": "file"},
    ]
    first = shell("echo there >/disk/file", "first", volumeMounts=mounts[:1])
    manifest = pod(
        shell(script, volumeMounts=mounts),
        initContainers=[first],
        volumes=[
            {"name": "disk", "emptyDir": {}},
            {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "16Mi"}},
        ],
    )
    assert output(kubelet, manifest).splitlines() == ["tmpfs", str(16 << 10), "there"]


def test_a_host_path_read_only_and_with_mount_propagation(kubelet: Kubelet) -> None:
    shared = kubelet.home / "shared"  # below the kubelet's directory, which is a shared mount
    shared.mkdir()
    (shared / "given").write_text("from the host\n")
    read_only = {"readOnly": True, "recursiveReadOnly": "IfPossible"}
    mounts = [
        {"name": "host", "mountPath": "/read-only", **read_only},
        {"name": "host", "mountPath": "/writable", "mountPropagation": "HostToContainer"},
    ]
    script = """
        cat /read-only/given
        touch /read-only/new 2>&1 | grep -o 'Read-only file system'
        echo from the pod >/writable/made
        grep -o ' /writable .*master' /proc/self/mountinfo | cut -d ' ' -f 2"""
    manifest = pod(
        shell(script, volumeMounts=mounts),
        volumes=[{"name": "host", "hostPath": {"path": str(shared), "type": "Directory"}}],
    )
    lines = output(kubelet, manifest).splitlines()
    assert lines == ["from the host", "Read-only file system", "/writable"]
    assert (shared / "made").read_text() == "from the pod\n"


def test_a_volume_of_the_downward_api(kubelet: Kubelet) -> None:
    """What a projected volume is made of; one itself needs an API server (test_api_server.py)."""

    def file(path: str, field: str) -> dict[str, Any]:
        return {"path": path, "fieldRef": {"fieldPath": field}}

    items = [
        file("labels", "metadata.labels"),
        file("name", "metadata.name"),
        {
            "path": "memory",
            "resourceFieldRef": {"containerName": "main", "resource": "limits.memory"},
            "mode": 0o400,
        },
    ]
    environment = [
        {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
    ]
    script = """
        cat /pod/labels; echo; cat /pod/name; echo; cat /pod/memory; echo
        stat -L -c %a /pod/memory /pod/name; echo $NODE
        ip -4 -o addr show dev eth0 | grep -q " $POD_IP/" && echo the address is right"""
    manifest = pod(
        shell(
            script,
            env=environment,
            resources={"limits": {"memory": "32Mi"}},
            volumeMounts=[{"name": "pod", "mountPath": "/pod"}],
        ),
        volumes=[{"name": "pod", "downwardAPI": {"items": items, "defaultMode": 0o440}}],
        labels={"app": "web"},
    )
    name = f"{manifest['metadata']['name']}-node"
    lines = output(kubelet, manifest).splitlines()
    assert lines == ['app="web"', name, str(32 << 20), "400", "440", "node", "the address is right"]


def test_the_security_context(kubelet: Kubelet) -> None:
    script = """
        id -u; id -g; id -G
        touch /file 2>&1 | grep -o 'Read-only file system'
        touch /data/file && stat -c %g /data/file
        grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status | tr -d '\\t '"""
    context = {
        "readOnlyRootFilesystem": True,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]},
    }
    manifest = pod(
        shell(
            script,
            securityContext=context,
            volumeMounts=[{"name": "data", "mountPath": "/data"}],
        ),
        volumes=[{"name": "data", "emptyDir": {}}],
        securityContext={
            "runAsUser": 1234,
            "runAsGroup": 2345,
            "fsGroup": 3456,
            "supplementalGroups": [4567],
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    )
    lines = output(kubelet, manifest).splitlines()
    assert lines[:2] == ["1234", "2345"]
    assert set(lines[2].split()) == {"2345", "3456", "4567"}
    assert lines[3:5] == ["Read-only file system", "3456"]
    assert set(lines[5:]) == {
        "CapEff:0000000000000000",  # of another user than root only the ambient ones stay
        "CapBnd:0000000000000400",
        "NoNewPrivs:1",
        "Seccomp:2",
    }


def test_without_a_profile_a_container_is_not_filtered(kubelet: Kubelet) -> None:
    script = "grep -E '^(NoNewPrivs|Seccomp):' /proc/self/status | tr -d '\\t '"
    assert output(kubelet, pod(shell(script))).splitlines() == ["NoNewPrivs:0", "Seccomp:0"]


def test_run_as_non_root_is_held(kubelet: Kubelet) -> None:
    name = kubelet.put(pod(securityContext={"runAsNonRoot": True}))
    shown = kubelet.until(name, waits_for("CreateContainerConfigError"), "the refusal")
    assert "runAsNonRoot" in containers(shown)["main"]["state"]["waiting"]["message"]


def test_the_hosts_network_and_processes(kubelet: Kubelet) -> None:
    script = "readlink /proc/self/ns/net; readlink /proc/self/ns/pid; hostname"
    lines = output(kubelet, pod(shell(script), hostNetwork=True, hostPID=True)).splitlines()
    own = [os.readlink(f"/proc/self/ns/{kind}") for kind in ("net", "pid")]
    assert lines == [*own, os.uname().nodename]


def test_a_pods_own_network_and_name(kubelet: Kubelet) -> None:
    script = "readlink /proc/self/ns/net; hostname; cat /etc/hosts; cat /etc/resolv.conf"
    manifest = pod(
        shell(script),
        hostname="web",
        hostAliases=[{"ip": "192.0.2.9", "hostnames": ["other.example"]}],
        dnsPolicy="None",
        dnsConfig={"nameservers": ["192.0.2.53"], "searches": ["example"]},
    )
    lines = output(kubelet, manifest).splitlines()
    assert lines[0] != os.readlink("/proc/self/ns/net")
    assert lines[1] == "web"
    assert {"192.0.2.9\tother.example", "nameserver 192.0.2.53", "search example"} <= set(lines)


def test_a_shared_process_namespace(kubelet: Kubelet) -> None:
    other = shell("exec sleep 1000", "other")
    # By the program, which the shell that is still to become it is not.
    script = "until pid=$(pidof sleep); do usleep 200000; done; echo $$$$ seen; kill $pid"
    name = kubelet.put(pod(shell(script), other, shareProcessNamespace=True, restartPolicy="Never"))
    ended = kubelet.until(name, has_ended, "its end")
    assert containers(ended)["other"]["state"]["terminated"]["exitCode"] == 143
    pid, seen = kubelet.get(f"/containerLogs/tests/{name}/main").decode().split()
    assert int(pid) > 1
    assert seen == "seen"


def test_a_user_namespace(kubelet: Kubelet) -> None:
    script = """
        id -u; tr -s ' ' </proc/self/uid_map
        touch /data/file && stat -c %u /data/file; echo done"""
    manifest = pod(
        shell(script, volumeMounts=[{"name": "data", "mountPath": "/data"}]),
        hostUsers=False,
        volumes=[{"name": "data", "emptyDir": {}}],
    )
    lines = output(kubelet, manifest).splitlines()
    inside, outside, count = (int(number) for number in lines[1].split())
    assert (lines[0], inside, count) == ("0", 0, 65536)
    assert outside >= 65536
    assert lines[2:] == ["0", "done"]


def test_a_user_namespace_and_a_volume_in_memory(kubelet: Kubelet) -> None:
    """As the kubelet makes one of the downward API; Linux maps the ids of a tmpfs since 6.3."""
    field = {"path": "name", "fieldRef": {"fieldPath": "metadata.name"}}
    manifest = pod(
        shell("stat -c %u /pod/name", volumeMounts=[{"name": "pod", "mountPath": "/pod"}]),
        hostUsers=False,
        volumes=[{"name": "pod", "downwardAPI": {"items": [field]}}],
    )
    if tuple(int(number) for number in os.uname().release.split(".")[:2]) >= (6, 3):
        assert output(kubelet, manifest) == "0\n"
        return
    shown = kubelet.until(kubelet.put(manifest), waits_for("CreateContainerError"), "the refusal")
    assert "cannot map the ids" in containers(shown)["main"]["state"]["waiting"]["message"]


def test_a_host_port_reaches_the_pod(kubelet: Kubelet) -> None:
    port = 20000 + os.getpid() % 10000
    server = shell(
        "mkdir /www; echo served >/www/index.html; exec httpd -f -p 80 -h /www",
        ports=[{"containerPort": 80, "hostPort": port}],
        readinessProbe={"tcpSocket": {"port": 80}, "periodSeconds": 1},
    )
    name = kubelet.put(pod(server))
    ready = kubelet.until(name, is_ready, "its server")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for address in (ready["status"]["podIP"] + ":80", f"127.0.0.1:{port}"):
        with opener.open(f"http://{address}/", timeout=20) as answer:
            assert answer.read() == b"served\n"


def test_a_wrong_command_is_told(kubelet: Kubelet) -> None:
    name = kubelet.put(pod({**shell(""), "command": ["/bin/nothing"]}, restartPolicy="Never"))
    status = containers(kubelet.until(name, has_ended, "its end"))["main"]["state"]["terminated"]
    assert (status["exitCode"], status["reason"]) == (128, "StartError")
    assert "/bin/nothing" in status["message"]
    assert "no such file or directory" in status["message"].lower(), json.dumps(status)

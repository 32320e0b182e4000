"""Probes: what they do to a pod when their answer changes."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from tests.integration.daemon import wait_for
from tests.kubelet.kubelet import Kubelet, containers, has_restarted, is_ready, is_running
from tests.kubelet.manifests import FOREVER, pod, shell

FAST = {"periodSeconds": 1, "failureThreshold": 1}
SERVER = "mkdir -p /www; echo ok >/www/ready; exec httpd -f -p 8080 -h /www"

# A gRPC health server (grpc.health.v1) of the project's own interpreter and packages: the answer
# to Check is one field, status, which is 1 (SERVING) or, without the file, 2.
GRPC_SERVER = """
import grpc, os
from concurrent import futures
def check(request, context):
    return b"\\x08\\x01" if os.path.exists("/ready") else b"\\x08\\x02"
methods = {"Check": grpc.unary_unary_rpc_method_handler(check)}
server = grpc.server(futures.ThreadPoolExecutor(2))
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("grpc.health.v1.Health", methods),))
assert server.add_insecure_port("0.0.0.0:8080")
server.start()
server.wait_for_termination()
"""  # noqa: E501 - a program, as it is run


def is_not_ready(one: dict[str, Any]) -> bool:
    return not is_ready(one)


@pytest.mark.parametrize(
    ("script", "probe"),
    [
        (f"touch /ready; {FOREVER}", {"exec": {"command": ["cat", "/ready"]}}),
        (
            f"touch /ready; (while true; do if [ -e /ready ]; then httpd -f -p 8080 & p=$!;"
            f" while [ -e /ready ]; do sleep 0.2; done; kill $p; fi; sleep 0.2; done) & {FOREVER}",
            {"tcpSocket": {"port": 8080}},
        ),
        (
            f"mkdir /www; ln -s /ready /www/ready; touch /ready; httpd -p 8080 -h /www; {FOREVER}",
            {"httpGet": {"path": "/ready", "port": 8080}},
        ),
    ],
    ids=["exec", "tcp", "http"],
)
def test_readiness_follows_the_probe(kubelet: Kubelet, script: str, probe: dict[str, Any]) -> None:
    name = kubelet.put(pod(shell(script, readinessProbe={**probe, **FAST})))
    kubelet.until(name, is_ready, "readiness")
    kubelet.run(name, "rm /ready")
    kubelet.until(name, is_not_ready, "the end of readiness")
    kubelet.run(name, "touch /ready")
    again = kubelet.until(name, is_ready, "readiness")
    assert containers(again)["main"]["restartCount"] == 0


def test_readiness_by_grpc(kubelet: Kubelet) -> None:
    """The server is this interpreter, from the host's directories."""
    paths = {"/usr/lib": "/lib", "/usr/lib64": "/lib64", "/usr": "/usr"}
    paths |= {prefix: prefix for prefix in (sys.prefix, sys.base_prefix) if prefix != "/usr"}
    mounts = [
        {"name": f"v{number}", "mountPath": target, "readOnly": True}
        for number, target in enumerate(paths.values())
    ]
    volumes = [
        {"name": f"v{number}", "hostPath": {"path": path}} for number, path in enumerate(paths)
    ]
    server = shell("", command=[sys.executable, "-c", GRPC_SERVER], volumeMounts=mounts)
    server["readinessProbe"] = {"grpc": {"port": 8080}, **FAST}
    name = kubelet.put(pod(server, volumes=volumes))
    kubelet.until(name, is_running, "its start")
    assert not is_ready(kubelet.pods()[name])
    kubelet.run(name, "touch /ready")
    kubelet.until(name, is_ready, "readiness")
    kubelet.run(name, "rm /ready")
    kubelet.until(name, is_not_ready, "the end of readiness")


def test_a_container_whose_liveness_fails_is_restarted(kubelet: Kubelet) -> None:
    probe = {"exec": {"command": ["test", "!", "-e", "/sick"]}, **FAST}
    name = kubelet.put(pod(shell(f"sleep 3; touch /sick; {FOREVER}", livenessProbe=probe)))
    again = containers(kubelet.until(name, has_restarted(1), "a restart"))["main"]
    last = again["lastState"]["terminated"]
    assert (last["exitCode"], last["reason"]) == (0, "Completed")  # it exits 0 on SIGTERM
    assert last["containerID"] != again["containerID"]


def test_an_exec_probe_that_takes_too_long_has_failed(kubelet: Kubelet) -> None:
    command = ["sh", "-c", "echo >>/probes; sleep 1000"]
    probe = {"exec": {"command": command}, "timeoutSeconds": 1, **FAST}
    name = kubelet.put(pod(shell(f"touch /probes; {FOREVER}", readinessProbe=probe)))
    kubelet.until(name, is_running, "its start")
    wait_for(lambda: int(kubelet.run(name, "wc -l /probes").split()[0]) > 4, "probes", 60.0)
    assert is_not_ready(kubelet.pods()[name])
    assert kubelet.run(name, "ps").count("sleep 1000") <= 2  # of one probe: the shell, and it


def test_others_wait_for_a_startup_probe(kubelet: Kubelet) -> None:
    probes = {
        "startupProbe": {
            "exec": {"command": ["cat", "/started"]},
            "periodSeconds": 1,
            "failureThreshold": 60,
        },
        "livenessProbe": {"exec": {"command": ["cat", "/started"]}, **FAST},
    }
    name = kubelet.put(pod(shell(f"sleep 4; touch /started; {FOREVER}", **probes)))
    ready = containers(kubelet.until(name, is_ready, "readiness"))["main"]
    assert (ready["started"], ready["restartCount"]) == (True, 0)


def test_a_startup_probe_that_never_succeeds_restarts(kubelet: Kubelet) -> None:
    probe = {"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1, "failureThreshold": 2}
    name = kubelet.put(pod(shell(FOREVER, startupProbe=probe)))
    again = kubelet.until(
        name, lambda one: containers(one).get("main", {}).get("restartCount", 0) > 0, "a restart"
    )
    assert containers(again)["main"]["started"] is False

"""How containers begin and end: hooks, crashes, memory, messages, and the pod's removal."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from tests.kubelet.kubelet import (
    Kubelet,
    containers,
    has_ended,
    has_restarted,
    is_running,
    waits_for,
)
from tests.kubelet.manifests import FOREVER, pod, shell

WAIT = "while true; do sleep 0.2; done"


def events(directory: Path) -> dict[str, Any]:
    """A container's and a pod's fields for a file /events/log on the host."""
    return {
        "volumeMounts": [{"name": "events", "mountPath": "/events"}],
        "volumes": [{"name": "events", "hostPath": {"path": str(directory)}}],
    }


def say(text: str) -> str:
    return f"echo {text} >>/events/log"


def hook(script: str) -> dict[str, Any]:
    return {"exec": {"command": ["sh", "-c", script]}}


def test_hooks_after_the_start_and_before_the_stop(kubelet: Kubelet, tmp_path: Path) -> None:
    fields = events(tmp_path)
    lifecycle = {"postStart": hook(say("started")), "preStop": hook(f"sleep 1; {say('stopping')}")}
    script = f"trap '{say('terminated')}; exit 0' TERM; {WAIT}"
    main = shell(script, lifecycle=lifecycle, volumeMounts=fields["volumeMounts"])
    name = kubelet.put(pod(main, volumes=fields["volumes"]))
    kubelet.until(name, is_running, "its start")
    assert (tmp_path / "log").read_text() == "started\n"
    kubelet.remove(name)
    kubelet.until_gone(name)
    assert (tmp_path / "log").read_text().splitlines() == ["started", "stopping", "terminated"]


def test_a_hook_that_fails_after_the_start_ends_the_container(kubelet: Kubelet) -> None:
    lifecycle = {"postStart": hook("echo cannot; exit 3")}
    name = kubelet.put(pod(shell(FOREVER, lifecycle=lifecycle)))
    kubelet.until(
        name, lambda one: containers(one).get("main", {}).get("restartCount", 0) > 0, "a restart"
    )


def test_a_crash_loop_backs_off(kubelet: Kubelet) -> None:
    name = kubelet.put(pod(shell("echo attempt; exit 7")))
    status = containers(kubelet.until(name, waits_for("CrashLoopBackOff"), "the back-off"))["main"]
    last = status["lastState"]["terminated"]
    assert (last["exitCode"], last["reason"]) == (7, "Error")
    assert last["startedAt"] <= last["finishedAt"]
    later = kubelet.until(name, lambda one: containers(one)["main"]["restartCount"] >= 2, "a retry")
    assert containers(later)["main"]["lastState"]["terminated"]["exitCode"] == 7
    kubelet.until(name, waits_for("CrashLoopBackOff"), "the back-off")
    previous = kubelet.get(f"/containerLogs/tests/{name}/main?previous=true").decode()
    assert previous == "attempt\n"


def test_too_much_memory(kubelet: Kubelet) -> None:
    hog = shell("exec tail -c 200m /dev/zero", resources={"limits": {"memory": "32Mi"}})
    name = kubelet.put(pod(hog, restartPolicy="Never"))
    ended = containers(kubelet.until(name, has_ended, "its end"))["main"]["state"]["terminated"]
    assert (ended["exitCode"], ended["reason"]) == (137, "OOMKilled")


def test_too_much_memory_of_a_child(kubelet: Kubelet) -> None:
    """On v1 the kernel chooses one process; the container goes on, or ends by its own choice."""
    script = "tail -c 200m /dev/zero; code=$?; echo child $code; exit $code"
    name = kubelet.put(
        pod(shell(script, resources={"limits": {"memory": "32Mi"}}), restartPolicy="Never")
    )
    ended = containers(kubelet.until(name, has_ended, "its end"))["main"]["state"]["terminated"]
    assert (ended["exitCode"], ended["reason"]) == (137, "OOMKilled")


def test_a_termination_message_from_its_file(kubelet: Kubelet) -> None:
    script = "echo in the log; echo -n it was me >/dev/termination-log; exit 2"
    policy = "FallbackToLogsOnError"
    name = kubelet.put(pod(shell(script, terminationMessagePolicy=policy), restartPolicy="Never"))
    ended = containers(kubelet.until(name, has_ended, "its end"))["main"]["state"]["terminated"]
    assert (ended["exitCode"], ended["message"]) == (2, "it was me")


def test_a_termination_message_from_the_log(kubelet: Kubelet) -> None:
    script = "echo first; echo last words >&2; exit 2"
    policy = "FallbackToLogsOnError"
    name = kubelet.put(pod(shell(script, terminationMessagePolicy=policy), restartPolicy="Never"))
    ended = containers(kubelet.until(name, has_ended, "its end"))["main"]["state"]["terminated"]
    assert set(ended["message"].splitlines()) == {"first", "last words"}


def test_removal_is_graceful(kubelet: Kubelet, tmp_path: Path) -> None:
    """SIGTERM, then so much time as the container takes, up to its grace."""
    fields = events(tmp_path)
    script = f"trap '{say('told')}; sleep 2; {say('done')}; exit 0' TERM; {say('here')}; {WAIT}"
    name = kubelet.put(
        pod(
            shell(script, volumeMounts=fields["volumeMounts"]),
            volumes=fields["volumes"],
            terminationGracePeriodSeconds=30,
        )
    )
    kubelet.until(name, lambda _: (tmp_path / "log").exists(), "its first line")
    kubelet.remove(name)
    kubelet.until_gone(name)
    assert (tmp_path / "log").read_text().splitlines() == ["here", "told", "done"]


def test_what_ignores_sigterm_is_killed_after_its_grace(kubelet: Kubelet, tmp_path: Path) -> None:
    fields = events(tmp_path)
    script = (
        f"trap '{say('told')}' TERM; {say('here')}; while true; do {say('on')}; sleep 0.2; done"
    )
    grace = 3
    name = kubelet.put(
        pod(
            shell(script, volumeMounts=fields["volumeMounts"]),
            volumes=fields["volumes"],
            terminationGracePeriodSeconds=grace,
        )
    )
    kubelet.until(name, lambda _: (tmp_path / "log").exists(), "its first line")
    kubelet.remove(name)
    begin = time.monotonic()
    kubelet.until_gone(name)
    assert time.monotonic() - begin >= grace  # a lower bound, which a slow machine keeps
    lines = (tmp_path / "log").read_text().splitlines()
    assert lines.count("told") == 1
    assert lines[lines.index("told") :].count("on") > 1


def test_a_changed_manifest_is_another_pod(kubelet: Kubelet) -> None:
    manifest = pod()
    name = kubelet.put(manifest)
    before = kubelet.until(name, is_running, "its start")
    manifest["spec"]["containers"][0]["env"] = [{"name": "CHANGED", "value": "yes"}]
    kubelet.put(manifest)
    after = kubelet.until(
        name,
        lambda one: one["metadata"]["uid"] != before["metadata"]["uid"] and is_running(one),
        "the other pod",
    )
    ids = [containers(one)["main"]["containerID"] for one in (before, after)]
    assert ids[0] != ids[1]


def test_an_exit_restarts_only_its_container(kubelet: Kubelet) -> None:
    name = kubelet.put(pod(shell("sleep 2"), shell(FOREVER, "other")))
    first = kubelet.until(name, is_running, "its start")
    again = kubelet.until(name, has_restarted(1), "a restart")
    assert containers(again)["other"] == containers(first)["other"]
    assert again["status"]["podIP"] == first["status"]["podIP"]
    last = containers(again)["main"]["lastState"]["terminated"]
    assert (last["exitCode"], last["reason"]) == (0, "Completed")

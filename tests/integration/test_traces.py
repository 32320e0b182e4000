"""Traces of a daemon's RPCs, as a collector gets them: the caller's trace, with every stage."""

from __future__ import annotations

import itertools
import json
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from api.cri import api_pb2 as cri
from tests.integration.collector import Collector, Received
from tests.integration.daemon import RPC_SECONDS, Daemon, wait_for
from tests.integration.pods import IMAGE, Pods
from tests.integration.registry import Registry

SERVICE = "runtime.v1.RuntimeService/"
# Times of RPCs and operations are taken from clocks that the kernel adjusts.
ADJUSTED_NS = 5_000_000

SANDBOX_STAGES = {"cgroup", "files", "namespaces", "network"}
CREATE_STAGES = {"rootfs", "user", "spec", "create"}
EXECUTOR_STAGES = {
    f"create.{name}"
    for name in ("cgroup", "fork", "init", "namespaces", "rootfs", "pivot", "credentials")
}


@pytest.fixture
def collector() -> Iterator[Collector]:
    running = Collector()
    yield running
    running.stop()


@pytest.fixture
def make_traced(
    make_daemon: Callable[[], Daemon], collector: Collector, registry: Registry
) -> Callable[[str], Pods]:
    """A maker of daemons whose traces the collector gets, with more lines in [tracing]."""

    def make(lines: str = "") -> Pods:
        daemon = make_daemon()
        with daemon.config.open("a") as config:
            config.write(f'[tracing]\nendpoint = "{collector.endpoint}"\n{lines}\n')
        daemon.start()
        pods = Pods(daemon)
        pods.pull(registry)
        return pods

    return make


class Caller:
    """A caller with a span of its own, as the kubelet is with tracing."""

    def __init__(self, *, sampled: bool = True) -> None:
        self.trace, self.span = secrets.token_hex(16), secrets.token_hex(8)
        flags = "01" if sampled else "00"
        self.metadata = (("traceparent", f"00-{self.trace}-{self.span}-{flags}"),)


def start_pod(pods: Pods, caller: Caller, command: tuple[str, ...] = ("sleep", "60")) -> str:
    """RunPodSandbox with a network, CreateContainer and StartContainer; the container's id."""
    runtime, metadata = pods.daemon.runtime, caller.metadata
    config = pods.config(linux=cri.LinuxPodSandboxConfig())
    run = cri.RunPodSandboxRequest(config=config)
    pod = runtime.RunPodSandbox(run, timeout=RPC_SECONDS, metadata=metadata).pod_sandbox_id
    container = cri.ContainerConfig(
        metadata=cri.ContainerMetadata(name="app"),
        image=cri.ImageSpec(image=IMAGE),
        command=command,
    )
    create = cri.CreateContainerRequest(pod_sandbox_id=pod, config=container, sandbox_config=config)
    created = runtime.CreateContainer(create, timeout=RPC_SECONDS, metadata=metadata)
    start = cri.StartContainerRequest(container_id=created.container_id)
    runtime.StartContainer(start, timeout=RPC_SECONDS, metadata=metadata)
    return str(created.container_id)


def spans_of(collector: Collector, caller: Caller, last: str) -> list[Received]:
    """The spans of a caller's trace, once that of the RPC `last` has come."""

    def has_come() -> bool:
        return any(span.name == SERVICE + last for span in collector.spans(caller.trace))

    wait_for(has_come, f"the trace of {last}")
    return collector.spans(caller.trace)


def below(spans: list[Received], parent: Received) -> dict[str, Received]:
    return {span.name: span for span in spans if span.parent == parent.id}


def test_a_container_start_is_one_trace_with_all_its_stages(
    make_traced: Callable[[str], Pods], collector: Collector
) -> None:
    pods, caller = make_traced(""), Caller()
    container = start_pod(pods, caller)
    spans = spans_of(collector, caller, "StartContainer")
    rpcs = [span for span in spans if span.parent == caller.span]
    methods = ["RunPodSandbox", "CreateContainer", "StartContainer"]
    assert [rpc.name for rpc in rpcs] == [SERVICE + method for method in methods]
    operations = [below(spans, rpc)[method] for rpc, method in zip(rpcs, methods, strict=True)]
    sandbox = below(spans, operations[0])["sandbox"]
    assert below(spans, sandbox).keys() >= SANDBOX_STAGES
    stages = below(spans, operations[1])
    assert stages.keys() >= CREATE_STAGES
    executor = below(spans, stages["create"])
    assert executor.keys() >= EXECUTOR_STAGES
    assert "start" in below(spans, operations[2])
    for rpc in rpcs:
        assert rpc.attributes["k8s.namespace.name"] == "tests"
        assert str(rpc.attributes["k8s.pod.name"]).startswith("pod")
        assert rpc.attributes["rpc.grpc.status_code"] == 0
    for rpc in rpcs[1:]:
        assert rpc.attributes["container.id"] == container
        assert rpc.attributes["k8s.container.name"] == "app"
    assert operations[2].attributes["criserver.object"] == container
    assert spans[0].resource["service.name"] == "criserver"
    assert [span for span in spans if span.error is not None] == []


def test_spans_are_where_their_parents_are(
    make_traced: Callable[[str], Pods], collector: Collector
) -> None:
    pods, caller = make_traced(""), Caller()
    start_pod(pods, caller)
    spans = spans_of(collector, caller, "StartContainer")
    by_id = {span.id: span for span in spans}
    for span in spans:
        parent = by_id.get(span.parent)
        if parent is not None:
            assert parent.start - ADJUSTED_NS <= span.start <= span.end
            assert span.end <= parent.end + ADJUSTED_NS, (span, parent)
    executor = [span for span in spans if span.name in EXECUTOR_STAGES]
    for earlier, later in itertools.pairwise(executor):
        assert earlier.end <= later.start  # they follow one another


def test_what_fails_is_an_error_down_to_its_stage(
    make_traced: Callable[[str], Pods], collector: Collector
) -> None:
    pods, caller = make_traced(""), Caller()
    with pytest.raises(grpc.RpcError):
        start_pod(pods, caller, ("/there/is/none",))
    spans = spans_of(collector, caller, "StartContainer")
    failed = [span for span in spans if span.error is not None]
    assert [span.name for span in failed] == [SERVICE + "StartContainer", "StartContainer", "start"]
    for span in failed:
        assert "no such file or directory" in str(span.error)
    assert failed[0].attributes["rpc.grpc.status_code"] == grpc.StatusCode.INVALID_ARGUMENT.value[0]


def test_the_callers_decision_not_to_sample_holds(
    make_traced: Callable[[str], Pods], collector: Collector
) -> None:
    pods = make_traced("sampling_ratio = 1.0")
    start_pod(pods, Caller(sampled=False))
    start_pod(pods, sampled := Caller())
    spans_of(collector, sampled, "StartContainer")
    traced = [span.name for span in collector.spans()]
    assert traced.count(SERVICE + "RunPodSandbox") == 1


def test_a_caller_without_a_trace_is_traced_as_configured(
    make_traced: Callable[[str], Pods], collector: Collector
) -> None:
    always, never = make_traced("sampling_ratio = 1.0"), make_traced("")
    before = len(collector.spans())
    never.run_pod()
    never.daemon.stop()  # sends what it has
    assert not [span for span in collector.spans()[before:] if "RunPodSandbox" in span.name]
    always.run_pod()
    always.daemon.stop()
    roots = [span for span in collector.spans() if span.name == SERVICE + "RunPodSandbox"]
    assert [root.parent for root in roots] == [""]


def test_a_pull_is_traced_with_its_stages(
    make_traced: Callable[[str], Pods], collector: Collector, registry: Registry
) -> None:
    pods = make_traced("sampling_ratio = 1.0")
    pods.daemon.stop()
    (operation,) = (span for span in collector.spans() if span.name == "PullImage")
    assert operation.attributes["criserver.object"] == IMAGE
    stages = below(collector.spans(), operation)
    assert {"resolve", "config"} <= stages.keys()


def test_the_log_names_the_trace(make_traced: Callable[[str], Pods]) -> None:
    pods, caller = make_traced(""), Caller()
    daemon = pods.daemon
    daemon.stop()
    daemon.config.write_text('log_format = "json"\n' + daemon.config.read_text())
    daemon.log.write_text("")
    daemon.start()
    start_pod(pods, caller)
    lines = [json.loads(line) for line in daemon.log.read_text().splitlines()]
    traced = [line["method"] for line in lines if line.get("trace_id") == caller.trace]
    assert traced == ["RunPodSandbox", "CreateContainer", "StartContainer"]
    (start,) = (line for line in lines if line.get("method") == "StartContainer")
    assert (start["namespace"], start["container"], start["code"]) == ("tests", "app", "OK")
    assert {"pod", "container_id", "pod_sandbox_id", "duration_ms"} <= start.keys()


def test_a_collector_that_is_away_disturbs_nothing(make_daemon: Callable[[], Daemon]) -> None:
    daemon = make_daemon()
    with daemon.config.open("a") as config:
        config.write('[tracing]\nendpoint = "http://127.0.0.1:9"\nsampling_ratio = 1.0\n')
    daemon.start()
    Pods(daemon).run_pod()
    daemon.restart()
    assert Path(f"/proc/{daemon.pid}").exists()

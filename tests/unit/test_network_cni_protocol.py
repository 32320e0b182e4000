"""What plugins are given, and how their answers are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from api.errors import InvalidArgumentError
from podsandbox.network import DNS, PodNetworkRequest, PortMapping
from podsandbox.network.cni_config import from_json
from podsandbox.network.cni_protocol import (
    Attachment,
    CNIPluginError,
    capabilities,
    cni_args,
    environment,
    parse_error,
    parse_result,
    plugin_input,
    pod_ips,
    result_for_del,
)


def pod(**changes: Any) -> PodNetworkRequest:
    fields = {
        "sandbox_id": "abc",
        "name": "web",
        "namespace": "shop",
        "uid": "u-1",
        "netns": Path("/run/ns/net"),
    }
    return PodNetworkRequest(**(fields | changes))


def attachment(version: str = "1.0.0", **changes: Any) -> Attachment:
    config = from_json({"name": "net", "cniVersion": version, "plugins": [{"type": "x"}]})
    fields = {"sandbox_id": "abc", "config": config, "capabilities": {}, "args": "K=V"}
    return Attachment(**(fields | changes))


def test_the_pods_identity_goes_into_cni_args() -> None:
    assert cni_args(pod()) == (
        "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;"
        "K8S_POD_INFRA_CONTAINER_ID=abc;K8S_POD_UID=u-1"
    )
    with pytest.raises(InvalidArgumentError, match="K8S_POD_NAME"):
        cni_args(pod(name="web;K8S_POD_NAMESPACE=kube-system"))


def test_only_what_the_pod_asks_for_is_offered() -> None:
    assert capabilities(pod()) == {"io.kubernetes.cri.pod-annotations": {}}
    offered = capabilities(
        pod(
            port_mappings=(PortMapping("udp", 53, 5353, "10.0.0.1"), PortMapping("tcp", 80, 0)),
            annotations={"kubernetes.io/egress-bandwidth": "1M"},
            cgroup_path="/kubepods/pod1",
            dns=DNS(("10.0.0.10",), ("a",), ()),
        )
    )
    assert offered["portMappings"] == [
        {"hostPort": 5353, "containerPort": 53, "protocol": "udp", "hostIP": "10.0.0.1"}
    ]
    assert offered["bandwidth"] == {"egressRate": 10**6, "egressBurst": 2**32 - 1}
    assert offered["dns"] == {"servers": ["10.0.0.10"], "searches": ["a"], "options": []}
    assert offered["cgroupPath"] == "/kubepods/pod1"


def test_a_plugin_gets_the_capabilities_that_it_declares() -> None:
    given = attachment(capabilities={"portMappings": [1], "dns": {"servers": []}})
    declared = {"portMappings": True, "dns": False, "ips": True}
    document = json.loads(plugin_input(given, {"type": "x", "capabilities": declared}, {"ips": []}))
    assert document == {
        "type": "x",
        "name": "net",
        "cniVersion": "1.0.0",
        "runtimeConfig": {"portMappings": [1]},
        "prevResult": {"ips": []},
    }
    assert set(json.loads(plugin_input(given, {"type": "x"}, None))) == {
        "type",
        "name",
        "cniVersion",
    }


def test_the_environment_is_complete_and_nothing_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "x")
    assert environment("ADD", attachment(), "/run/ns/net", ["/a", "/b"]) == {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": "abc",
        "CNI_NETNS": "/run/ns/net",
        "CNI_IFNAME": "eth0",
        "CNI_ARGS": "K=V",
        "CNI_PATH": "/a:/b",
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    }


@pytest.mark.parametrize(("version", "passed"), [("0.3.1", False), ("0.4.0", True)])
def test_del_gets_the_result_since_0_4_0(version: str, passed: bool) -> None:
    given = attachment(version, result={"ips": []})
    assert (result_for_del(given) is not None) == passed


def result(*ips: dict[str, Any]) -> dict[str, Any]:
    interfaces = [{"name": "br0"}, {"name": "eth0", "sandbox": "/run/ns/net"}]
    return {"interfaces": interfaces, "ips": list(ips)}


@pytest.mark.parametrize(
    ("ips", "expected"),
    [
        ([{"address": "10.0.0.2/24"}], ["10.0.0.2"]),
        ([{"address": "10.0.0.2/24", "interface": 1}], ["10.0.0.2"]),
        (
            [
                {"address": "10.0.0.1/24", "interface": 0},
                {"address": "10.0.0.2/24", "interface": 1},
            ],
            ["10.0.0.2"],
        ),
        (
            [{"address": "fd00::2/64"}, {"address": "10.0.0.2/24"}, {"address": "fd00::3/64"}],
            ["10.0.0.2", "fd00::2", "fd00::3"],
        ),
        ([{"address": "fd00::2/64"}], ["fd00::2"]),
    ],
)
def test_the_pods_addresses_are_read_ipv4_first(ips: list[Any], expected: list[str]) -> None:
    assert pod_ips(result(*ips)) == expected


@pytest.mark.parametrize(
    "ips",
    [
        [],
        [{"address": "10.0.0.1/24", "interface": 0}],
        [{"address": "nonsense"}],
        [{"gateway": "10.0.0.1"}],
        [{"address": "10.0.0.2/24", "interface": -1}],
        [{"address": "10.0.0.2/24", "interface": "eth0"}],
    ],
)
def test_a_result_without_a_usable_address_is_an_error(ips: list[Any]) -> None:
    with pytest.raises(CNIPluginError):
        pod_ips(result(*ips))


def test_a_result_has_the_version_that_was_asked_for_unless_it_says_another() -> None:
    assert parse_result(b"{}", "1.0.0")["cniVersion"] == "1.0.0"
    assert parse_result(b'{"cniVersion": "0.4.0"}', "1.0.0")["cniVersion"] == "0.4.0"


@pytest.mark.parametrize("stdout", [b"", b"x", b"3", b'{"ips": 3}', b'{"interfaces": ["eth0"]}'])
def test_an_answer_that_is_no_result_is_an_error(stdout: bytes) -> None:
    with pytest.raises(CNIPluginError, match="answered"):
        parse_result(stdout, "1.0.0")


@pytest.mark.parametrize(
    ("stdout", "stderr", "words"),
    [
        (b'{"code": 7, "msg": "bad", "details": "very"}', b"", "bad: very (code 7)"),
        (b'{"code": 7, "msg": "bad"}', b"log", "bad (code 7); stderr: log"),
        (b"boom", b"trace\n", "exit code 1, without a CNI error; stderr: trace"),
        (b"[]", b"", "exit code 1, without a CNI error"),
    ],
)
def test_a_failure_is_told_in_the_plugins_words(stdout: bytes, stderr: bytes, words: str) -> None:
    assert str(parse_error(1, stdout, stderr)) == words


def test_an_attachment_survives_being_stored() -> None:
    given = attachment(result={"ips": []}, capabilities={"portMappings": []})
    stored = json.loads(json.dumps(given.as_json()))
    assert from_json(stored["config"]) == given.config
    assert stored["capabilities"] == given.capabilities

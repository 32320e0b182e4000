"""What the options of `run` become in the CRI."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format

from api.cri import api_pb2 as cri
from criserver.cli.errors import RUNTIME_FAILURE, CommandError
from criserver.cli.pod_config import RunOptions, container_config, pod_config

IMAGE = cri.ImageSpec(image="sha256:1", user_specified_image="busybox")

LOGS = Path("/logs/u1")


def options(**given: Any) -> RunOptions:
    return RunOptions(**{"name": "web", "uid": "u1", "log_directory": LOGS, **given})


def container(**given: Any) -> cri.ContainerConfig:
    return container_config(options(**given), IMAGE, {"HERE": "value"})


def test_the_pod_has_the_containers_name_and_a_label_that_tells_who_made_it() -> None:
    config = pod_config(options())
    assert (config.metadata.name, config.metadata.namespace) == ("web", "default")
    assert (config.metadata.uid, config.hostname) == ("u1", "web")
    assert config.log_directory == "/logs/u1"
    assert dict(config.annotations) == {"io.criserver.cli.log-directory": "/logs/u1"}
    assert dict(config.labels) == {"io.criserver.cli.run": "web"}
    assert dict(container().labels) == dict(config.labels)


@pytest.mark.parametrize(("host", "mode"), [(False, cri.POD), (True, cri.NODE)])
def test_pod_and_container_agree_on_namespaces(host: bool, mode: int) -> None:
    pod = pod_config(options(host_network=host)).linux.security_context.namespace_options
    assert pod == container(host_network=host).linux.security_context.namespace_options
    assert (pod.network, pod.pid, pod.ipc) == (mode, cri.CONTAINER, cri.POD)


def test_a_pod_on_the_hosts_network_has_the_hosts_name() -> None:
    assert pod_config(options(host_network=True)).hostname == ""


def test_a_long_name_is_cut_to_a_hostname() -> None:
    assert pod_config(options(name="n" * 100)).hostname == "n" * 64


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"command": ["ls", "-l"]}, {"args": ["ls", "-l"]}),
        ({"entrypoint": "/bin/x", "command": ["a"]}, {"command": ["/bin/x"], "args": ["a"]}),
        ({"interactive": True}, {"stdin": True, "stdinOnce": True}),
        ({"interactive": True, "detach": True}, {"stdin": True}),
        ({"terminal": True}, {"tty": True}),
        ({"workdir": "/srv"}, {"workingDir": "/srv"}),
    ],
)
def test_container_fields(given: dict[str, Any], expected: dict[str, Any]) -> None:
    plain = json_format.MessageToDict(container())
    assert json_format.MessageToDict(container(**given)) == {**plain, **expected}


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("A=1", "A", b"1"),
        ("A=", "A", b""),
        ("A=b=c", "A", b"b=c"),
        ("HERE", "HERE", b"value"),
        ("NOT_HERE", "NOT_HERE", b""),
        ("A=\udcff", "A", b"\xff"),
    ],
)
def test_env(text: str, key: str, value: bytes) -> None:
    (env,) = container(env=[text]).envs
    assert (env.key, bytes(env.value)) == (key, value)


@pytest.mark.parametrize(("mode", "readonly"), [("", False), (":rw", False), (":ro", True)])
def test_volume(tmp_path: Path, mode: str, readonly: bool) -> None:
    (mount,) = container(volumes=[f"{tmp_path}:/data{mode}"]).mounts
    assert (mount.host_path, mount.container_path) == (str(tmp_path), "/data")
    assert mount.readonly is readonly


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8080:80", ("", 8080, 80, cri.TCP)),
        ("53:53/udp", ("", 53, 53, cri.UDP)),
        ("127.0.0.1:1:2/tcp", ("127.0.0.1", 1, 2, cri.TCP)),
        ("[::1]:1:2", ("::1", 1, 2, cri.TCP)),
    ],
)
def test_port(text: str, expected: tuple[str, int, int, int]) -> None:
    (port,) = pod_config(options(ports=[text])).port_mappings
    assert (port.host_ip, port.host_port, port.container_port, port.protocol) == expected


@pytest.mark.parametrize(
    ("text", "limit"), [("1", 1), ("10b", 10), ("2k", 2048), ("64M", 64 << 20), ("1g", 1 << 30)]
)
def test_memory(text: str, limit: int) -> None:
    assert container(memory=text).linux.resources.memory_limit_in_bytes == limit


@pytest.mark.parametrize(("text", "quota"), [("1", 100_000), ("0.5", 50_000), (".25", 25_000)])
def test_cpus(text: str, quota: int) -> None:
    resources = container(cpus=text).linux.resources
    assert (resources.cpu_quota, resources.cpu_period) == (quota, 100_000)


@pytest.mark.parametrize(
    ("text", "uid", "name", "gid"),
    [
        ("0", 0, "", None),
        ("1000:5", 1000, "", 5),
        ("nobody", None, "nobody", None),
        ("nobody:0", None, "nobody", 0),
    ],
)
def test_user(text: str, uid: int | None, name: str, gid: int | None) -> None:
    context = container(user=text).linux.security_context
    assert (context.run_as_user.value if context.HasField("run_as_user") else None) == uid
    assert (context.run_as_group.value if context.HasField("run_as_group") else None) == gid
    assert context.run_as_username == name


Maker = Callable[..., Any]


@pytest.mark.parametrize(
    ("make", "given", "option"),
    [
        (pod_config, {"name": "a/b"}, "--name"),
        (pod_config, {"name": "-a"}, "--name"),
        (pod_config, {"hostname": "n" * 65}, "--hostname"),
        (pod_config, {"ports": ["80"]}, "--publish"),
        (pod_config, {"ports": ["0:80"]}, "--publish"),
        (pod_config, {"ports": ["65536:80"]}, "--publish"),
        (pod_config, {"ports": ["1:2/icmp"]}, "--publish"),
        (pod_config, {"ports": ["x:1:2"]}, "--publish"),
        (container_config, {"env": ["=1"]}, "--env"),
        (container_config, {"volumes": ["/etc"]}, "--volume"),
        (container_config, {"volumes": ["/etc:relative"]}, "--volume"),
        (container_config, {"volumes": ["/etc:/x:rx"]}, "--volume"),
        (container_config, {"volumes": ["/nonexistent:/x"]}, "--volume"),
        (container_config, {"memory": "0"}, "--memory"),
        (container_config, {"memory": "-1"}, "--memory"),
        (container_config, {"memory": "1t"}, "--memory"),
        (container_config, {"cpus": "0"}, "--cpus"),
        (container_config, {"cpus": "nan"}, "--cpus"),
        (container_config, {"user": ""}, "--user"),
        (container_config, {"user": "0:"}, "--user"),
        (container_config, {"user": "0:wheel"}, "--user"),
        (container_config, {"user": "4294967296"}, "--user"),
    ],
)
def test_an_option_that_makes_no_sense_is_named(
    make: Maker, given: dict[str, Any], option: str
) -> None:
    more = (IMAGE, {}) if make is container_config else ()
    with pytest.raises(CommandError, match=option) as caught:
        make(options(**given), *more)
    assert caught.value.exit_code == RUNTIME_FAILURE

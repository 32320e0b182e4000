"""The files below /etc that a pod gets."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from api.cri import api_pb2 as cri
from api.errors import InvalidArgumentError
from podsandbox import etc_files
from podsandbox.etc_files import resolv_conf, write_etc_files


def test_resolv_conf_has_the_order_of_containerd() -> None:
    dns = cri.DNSConfig(
        servers=["10.0.0.10", "fd00::10"], searches=["a", "b"], options=["ndots:5", "edns0"]
    )
    assert resolv_conf(dns) == (
        "search a b\nnameserver 10.0.0.10\nnameserver fd00::10\noptions ndots:5 edns0\n"
    )


def test_an_empty_configuration_is_an_empty_file() -> None:
    assert resolv_conf(cri.DNSConfig()) == ""


@pytest.mark.parametrize("value", ["", "a b", "a\nnameserver 6.6.6.6", "a\0"])
@pytest.mark.parametrize("field", ["servers", "searches", "options"])
def test_a_value_cannot_become_another_line(field: str, value: str) -> None:
    with pytest.raises(InvalidArgumentError, match="dns_config"):
        resolv_conf(cri.DNSConfig(**{field: [value]}))


def test_the_hosts_files_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hosts, resolver = tmp_path / "host.hosts", tmp_path / "host.resolv"
    hosts.write_text("10.0.0.1 host\n")
    resolver.write_text("nameserver 10.9.9.9\n")
    monkeypatch.setattr(etc_files, "_HOST_HOSTS", hosts)
    monkeypatch.setattr(etc_files, "_HOST_RESOLV_CONF", resolver)
    umask = os.umask(0o077)
    try:
        files = write_etc_files(tmp_path, cri.PodSandboxConfig())
    finally:
        os.umask(umask)
    assert Path(files["hosts"]).read_text() == "10.0.0.1 host\n"
    assert Path(files["resolv.conf"]).read_text() == "nameserver 10.9.9.9\n"
    empty = write_etc_files(tmp_path, cri.PodSandboxConfig(dns_config=cri.DNSConfig()))
    assert Path(empty["resolv.conf"]).read_text() == "nameserver 10.9.9.9\n"
    assert Path(files["hostname"]).read_text() == socket.gethostname() + "\n"
    assert {os.stat(path).st_mode & 0o777 for path in files.values()} == {0o644}


def test_in_a_user_namespace_they_are_the_pods_roots(tmp_path: Path) -> None:
    files = write_etc_files(tmp_path, cri.PodSandboxConfig(), owner=(1000, 2000))
    found = {(os.stat(path).st_uid, os.stat(path).st_gid) for path in files.values()}
    assert found == {(1000, 2000)}


def test_a_minimal_host_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_HOST_HOSTS", "_HOST_RESOLV_CONF"):
        monkeypatch.setattr(etc_files, name, tmp_path / "absent")
    files = write_etc_files(tmp_path, cri.PodSandboxConfig(hostname="web"))
    assert "127.0.0.1\tlocalhost" in Path(files["hosts"]).read_text()
    assert Path(files["resolv.conf"]).read_text() == ""
    assert Path(files["hostname"]).read_text() == "web\n"

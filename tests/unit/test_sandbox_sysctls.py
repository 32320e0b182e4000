"""Which sysctls a pod may set, however their names are written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.errors import InvalidArgumentError
from podsandbox.sysctls import path_of, sysctls_for

ALL = ("net", "ipc", "uts")
PORTS, PING = "net/ipv4/ip_unprivileged_port_start", "net/ipv4/ping_group_range"


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("net.ipv4.ip_forward", "net/ipv4/ip_forward"),
        ("net/ipv4/ip_forward", "net/ipv4/ip_forward"),
        ("net.ipv4.conf.eth0/100.forwarding", "net/ipv4/conf/eth0.100/forwarding"),
        ("net/ipv4/conf/eth0.100/forwarding", "net/ipv4/conf/eth0.100/forwarding"),
        ("kernel.sem", "kernel/sem"),
    ],
)
def test_both_separators(name: str, path: str) -> None:
    assert path_of(name) == path


@pytest.mark.parametrize(
    "name", ["", ".", "/", "net.", "/net/core", "net/../kernel", "net.//.x", "net..x", "net.a\0b"]
)
def test_malformed_names(name: str) -> None:
    with pytest.raises(InvalidArgumentError, match="malformed"):
        path_of(name)


def test_a_value_with_a_nul_byte_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="NUL"):
        sysctls_for({"net.core.somaxconn": "1\0"}, ("net",))


@given(st.text(alphabet="abn./\0", max_size=12))
def test_no_name_leaves_proc_sys(name: str) -> None:
    try:
        path = path_of(name)
    except InvalidArgumentError:
        return
    assert not path.startswith("/")
    assert ".." not in path.split("/")


@pytest.mark.parametrize(
    "name",
    ["kernel.shmmax", "kernel.msgmax", "kernel.sem", "kernel.shm_rmid_forced", "fs.mqueue.msg_max"],
)
def test_those_of_ipc(name: str) -> None:
    path = name.replace(".", "/")
    assert sysctls_for({name: "1"}, ("ipc",)) == {path: "1"}
    with pytest.raises(InvalidArgumentError, match="host's ipc namespace"):
        sysctls_for({name: "1"}, ("net", "uts"))


@pytest.mark.parametrize(
    "name",
    [
        "vm.swappiness",
        "kernel.core_pattern",
        "kernel.hostname",
        "kernel.shmmax.x",
        "fs.mqueue",
        "netx.a",
        "fs.file-max",
    ],
)
def test_those_of_the_host(name: str) -> None:
    with pytest.raises(InvalidArgumentError, match="does not belong"):
        sysctls_for({name: "1"}, ALL)


def test_the_defaults_hold_where_the_pod_says_nothing() -> None:
    assert sysctls_for({}, ALL) == {PORTS: "0", PING: "0 2147483647"}
    assert sysctls_for({"net.ipv4.ip_unprivileged_port_start": "80"}, ALL)[PORTS] == "80"
    assert sysctls_for({}, ("ipc",)) == {}


def test_the_domain_name_is_of_the_uts_namespace() -> None:
    assert sysctls_for({"kernel.domainname": "x"}, ("uts",)) == {"kernel/domainname": "x"}
    with pytest.raises(InvalidArgumentError, match="host's uts namespace"):
        sysctls_for({"kernel.domainname": "x"}, ("net", "ipc"))


def test_a_user_namespace_lacks_the_groups_of_the_default() -> None:
    assert sysctls_for({}, ALL, all_ids=False) == {PORTS: "0"}

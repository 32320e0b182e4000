"""certs.d is read as containerd reads it (docs/hosts.md)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.errors import ImagePullError
from imageservice.hosts import CAPABILITIES, RegistryHost, default_host, hosts_for, parse_hosts


def write(certs_dir: Path, host: str, text: str) -> Path:
    directory = certs_dir / host
    directory.mkdir(parents=True)
    (directory / "hosts.toml").write_text(text)
    return directory


def bases(hosts: list[RegistryHost]) -> list[str]:
    return [host.base for host in hosts]


@pytest.mark.parametrize(
    ("domain", "base"),
    [
        ("docker.io", "https://registry-1.docker.io/v2"),
        ("quay.io", "https://quay.io/v2"),
        ("host:5000", "https://host:5000/v2"),
        ("localhost:5000", "http://localhost:5000/v2"),
        ("127.0.0.1:5000", "http://127.0.0.1:5000/v2"),
        ("127.1.2.3:80", "http://127.1.2.3:80/v2"),
        ("[::1]:5000", "http://[::1]:5000/v2"),
        ("localhost:443", "https://localhost:443/v2"),
        ("localhost", "https://localhost/v2"),
        ("10.0.0.1:5000", "https://10.0.0.1:5000/v2"),
    ],
)
def test_without_configuration_only_local_ports_are_plain(domain: str, base: str) -> None:
    host = default_host(domain)
    assert (host.base, host.is_mirror) == (base, False)


def test_hosts_come_in_the_order_of_the_file_and_the_server_last(tmp_path: Path) -> None:
    write(
        tmp_path,
        "docker.io",
        """
        server = "https://origin.example"
        [host."https://z.example"]
          capabilities = ["pull"]
        [host."http://a.example:5000/path"]
        [host."https://m.example/v2/prefix"]
          override_path = true
        [host."https://a.example".header]
          x-one = "1"
          x-two = ["2", "3"]
        """,
    )
    hosts = hosts_for("docker.io", tmp_path)
    assert bases(hosts) == [
        "https://z.example/v2",
        "http://a.example:5000/path/v2",
        "https://m.example/v2/prefix",
        "https://a.example/v2",
        "https://origin.example/v2",
    ]
    assert hosts[0].capabilities == {"pull"}
    assert hosts[1].capabilities == CAPABILITIES
    assert hosts[3].headers == (("x-one", "1"), ("x-two", "2"), ("x-two", "3"))
    assert all(host.namespace == "docker.io" and host.is_mirror for host in hosts)


def test_without_a_server_the_registry_itself_is_last(tmp_path: Path) -> None:
    write(tmp_path, "docker.io", '[host."https://mirror"]')
    hosts = hosts_for("docker.io", tmp_path)
    assert bases(hosts) == ["https://mirror/v2", "https://registry-1.docker.io/v2"]
    assert [host.is_mirror for host in hosts] == [True, False]


@pytest.mark.parametrize("name", ["host.example_5000_", "host.example:5000", "_default"])
def test_the_directory_is_named_after_host_and_port(tmp_path: Path, name: str) -> None:
    write(tmp_path, name, 'server = "https://configured"')
    assert bases(hosts_for("host.example:5000", tmp_path)) == ["https://configured/v2"]


def test_a_host_of_its_own_goes_before_the_default(tmp_path: Path) -> None:
    write(tmp_path, "_default", 'server = "https://fallback"')
    write(tmp_path, "quay.io", 'server = "https://own"')
    assert bases(hosts_for("quay.io", tmp_path)) == ["https://own/v2"]
    assert bases(hosts_for("ghcr.io", tmp_path)) == ["https://fallback/v2"]


def test_an_edit_takes_effect_at_once(tmp_path: Path) -> None:
    directory = write(tmp_path, "quay.io", 'server = "https://one"')
    assert bases(hosts_for("quay.io", tmp_path)) == ["https://one/v2"]
    (directory / "hosts.toml").write_text('server = "https://two"')
    assert bases(hosts_for("quay.io", tmp_path)) == ["https://two/v2"]


def test_tls_files_are_relative_to_the_directory(tmp_path: Path) -> None:
    directory = write(
        tmp_path,
        "quay.io",
        """
        ca = "ca.pem"
        client = [["a.cert", "/keys/a.key"], "both.pem"]
        skip_verify = true
        dial_timeout = "1m"
        [host."https://m"]
          ca = ["/etc/one.pem", "two.pem"]
          client = "pair.pem"
          dial_timeout = "1500ms"
        """,
    )
    mirror, server = hosts_for("quay.io", tmp_path)
    assert mirror.ca == (Path("/etc/one.pem"), directory / "two.pem")
    assert mirror.clients == ((directory / "pair.pem", None),)
    assert (mirror.skip_verify, mirror.dial_timeout) == (False, 1.5)
    assert server.ca == (directory / "ca.pem",)
    assert server.clients == (
        (directory / "a.cert", Path("/keys/a.key")),
        (directory / "both.pem", None),
    )
    assert (server.skip_verify, server.dial_timeout) == (True, 60.0)


def test_dockers_layout_is_read_without_a_hosts_toml(tmp_path: Path) -> None:
    directory = tmp_path / "localhost:5000"
    directory.mkdir()
    for name in ("ca.crt", "client.cert", "client.key", "other.cert", "README"):
        (directory / name).touch()
    (host,) = hosts_for("localhost:5000", tmp_path)
    assert host.base == "https://localhost:5000/v2"
    assert host.ca == (directory / "ca.crt",)
    assert host.clients == (
        (directory / "client.cert", directory / "client.key"),
        (directory / "other.cert", None),
    )


@pytest.mark.parametrize(
    "text",
    [
        "not toml",
        "server = 1",
        "host = 1",
        '[host]\n"https://a" = 1',
        '[host."ftp://a"]',
        '[host."https://user:password@a"]',
        '[host."https://a"]\ncapabilities = ["fly"]',
        '[host."https://a"]\ncapabilities = [1]',
        '[host."https://a"]\nca = 1',
        '[host."https://a"]\nclient = 1',
        '[host."https://a"]\nclient = [["a"]]',
        '[host."https://a"]\nskip_verify = "yes"',
        '[host."https://a"]\nheader = 1',
        '[host."https://a"]\ndial_timeout = "soon"',
        "\0",
    ],
)
def test_a_wrong_file_is_an_error_that_names_it(tmp_path: Path, text: str) -> None:
    directory = write(tmp_path, "quay.io", text)
    with pytest.raises(ImagePullError, match=str(directory / "hosts.toml")):
        hosts_for("quay.io", tmp_path)


def test_a_huge_file_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, "quay.io", "# " + "x" * (2 << 20))
    with pytest.raises(ImagePullError, match="larger than"):
        hosts_for("quay.io", tmp_path)


@given(st.text(max_size=200))
def test_any_text_is_hosts_or_an_error(text: str) -> None:
    try:
        parse_hosts(text, Path("/certs"), "docker.io")
    except (ValueError, TypeError):
        return


_VALUE = st.one_of(
    st.none(), st.booleans(), st.integers(), st.text(max_size=5), st.lists(st.text(max_size=5))
)


@given(
    st.sampled_from(
        ["server", "ca", "client", "capabilities", "skip_verify", "header", "dial_timeout", "host"]
    ),
    _VALUE,
)
def test_a_value_of_any_type_is_hosts_or_an_error(key: str, value: object) -> None:
    text = json.dumps({} if value is None else value)
    try:
        parse_hosts(f"{key} = {text}", Path("/certs"), "docker.io")
    except (ValueError, TypeError):
        return


@pytest.mark.parametrize(
    ("domain", "skip"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("localhost:443", True),
        ("[::1]:443", True),
        ("[::1]", True),
        ("localhost:5000", False),  # plain HTTP
        ("quay.io", False),
        ("docker.io", False),
    ],
)
def test_certificates_of_this_machine_are_not_verified(domain: str, skip: bool) -> None:
    assert default_host(domain).skip_verify is skip


def test_a_local_registry_with_certificates_speaks_tls(tmp_path: Path) -> None:
    write(tmp_path, "localhost:5000", 'ca = "ca.pem"')
    (host,) = hosts_for("localhost:5000", tmp_path)
    assert host.base == "https://localhost:5000/v2"

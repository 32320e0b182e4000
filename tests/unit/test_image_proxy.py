"""Which registry is reached through which proxy (golang.org/x/net/http/httpproxy)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from imageservice.proxy import Proxies

BOTH = {"HTTP_PROXY": "http://plain:3128", "HTTPS_PROXY": "tunnel:3129"}


def chosen(environment: dict[str, str], url: str) -> str | None:
    proxy = Proxies(environment).of(URL(url))
    return None if proxy is None else str(proxy.url)


def test_each_scheme_has_its_proxy() -> None:
    assert chosen(BOTH, "http://registry/v2/") == "http://plain:3128"
    assert chosen(BOTH, "https://registry/v2/") == "http://tunnel:3129"
    assert chosen({}, "https://registry/") is None
    assert chosen({"https_proxy": "https://lower"}, "https://registry/") == "https://lower"
    assert chosen({"HTTPS_PROXY": " "}, "https://registry/") is None


def test_a_password_becomes_a_header_and_is_not_shown() -> None:
    proxy = Proxies({"HTTPS_PROXY": "http://me:se%40cret@proxy:1"}).of(URL("https://registry/"))
    assert proxy is not None
    assert str(proxy.url) == "http://proxy:1"
    assert proxy.authorization == "Basic bWU6c2VAY3JldA=="
    assert "bWU6" not in repr(proxy)


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:5000", "127.0.0.1:5000", "127.8.8.8", "[::1]:5000"]
)
def test_this_machine_is_reached_directly(host: str) -> None:
    assert chosen(BOTH, f"http://{host}/") is None


@pytest.mark.parametrize(
    ("rules", "host", "direct"),
    [
        ("*", "anything.example", True),
        ("quay.io", "quay.io", True),
        ("quay.io", "cdn.quay.io", True),
        ("quay.io", "notquay.io", False),
        (".quay.io", "cdn.quay.io", True),
        (".quay.io", "quay.io", False),
        ("*.quay.io", "cdn.quay.io", True),
        ("Quay.IO", "quay.io", True),
        ("a.example, quay.io", "quay.io", True),
        ("quay.io:443", "quay.io", True),
        ("quay.io:5000", "quay.io", False),
        ("10.0.0.0/8", "10.1.2.3", True),
        ("10.0.0.0/8", "11.1.2.3", False),
        ("10.1.2.3", "10.1.2.3", True),
        ("10.1.2.3:443", "10.1.2.3", True),
        ("10.1.2.4", "10.1.2.3", False),
        ("fd00::/8", "[fd00::1]", True),
        ("fd00::1", "[fd00::1]", True),
        ("[fd00::1]:443", "[fd00::1]", True),
        ("not/a/network", "10.1.2.3", False),
        ("", "quay.io", False),
    ],
)
def test_no_proxy_names_what_is_reached_directly(rules: str, host: str, direct: bool) -> None:
    environment = {**BOTH, "NO_PROXY": rules}
    assert (chosen(environment, f"https://{host}/") is None) is direct


@pytest.mark.parametrize("text", ["socks5://me:secret@proxy:1", "http://me:secret@", "::secret"])
def test_a_wrong_variable_is_named_without_its_value(text: str) -> None:
    proxies = Proxies({"HTTPS_PROXY": text})
    with pytest.raises(ValueError, match="HTTPS_PROXY") as raised:
        proxies.of(URL("https://registry/"))
    assert "secret" not in str(raised.value)
    assert proxies.of(URL("http://registry/")) is None


@given(st.text(max_size=60), st.text(max_size=60))
def test_any_text_is_survived(proxy: str, rules: str) -> None:
    proxies = Proxies({"HTTPS_PROXY": proxy, "NO_PROXY": rules})
    try:
        proxies.of(URL("https://registry.example:5000/"))
    except ValueError as err:
        assert "HTTPS_PROXY" in str(err)

"""Validation of names, subnets, addresses and ports."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.plan import validate
from core.text import bounds, safe

TAKEN = {ipaddress.ip_network("10.9.0.0/16"): "docker's network front"}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("x" * 16, "16 bytes"),
        ("ääääääää", "16 bytes"),
        ("..", "directory"),
        (".", "directory"),
        ("a/b", '"/"'),
        ("../etc", '"/"'),
        ("a b", '" "'),
        ("[red]x[/]", '"["'),
        ("-rf", "dash"),
        ("grün", '"ü"'),
        ("a;reboot", '";"'),
        ("$(id)", '"$"'),
        ("a\nb", "\\n"),
        ("a\x1b[31m", "\\x1b"),
        ("a\u202eb", "\\u202e"),
        (".hidden", ". (not first)"),
        ("lo", "reserved"),
        ("all", "reserved"),
    ],
)
def test_bad_names(text: str, reason: str) -> None:
    assert reason in validate.name(text)


@pytest.mark.parametrize("text", ["a", "web-1", "br_0.x", "x" * 15, "0"])
def test_good_names(text: str) -> None:
    assert validate.name(text) == "" == validate.link_name(text)


@given(st.text(max_size=20))
def test_any_accepted_name_is_safe(text: str) -> None:
    if not validate.name(text):
        assert text.isascii() and text.isprintable() and 1 <= len(text) <= 15
        assert not set(text) & set(" /\\'\"`$&|;<>()[]{}*?!#~=%@:,") and not text.startswith(("-", "."))
    else:
        assert validate.name(text) == safe(validate.name(text))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "isn't a subnet"),
        ("shop", "isn't a subnet"),
        ("10.9.0.0/33", "isn't a subnet"),
        ("10.9.0.0", "10.9.0.0/24"),
        ("10.200.0.7/24", "has host bits set. Try: 10.200.0.0/24"),
        ("fd00:9::7/64", "has host bits set. Try: fd00:9::/64"),
        ("10.9.3.0/24", "docker's network front"),
        ("10.0.0.0/8", "docker's network front"),
        ("10.200.0.7/32", "single address"),
        ("fd00::1/128", "single address"),
        ("fd00::/127", "too small"),
        ("0.0.0.0/0", "every address"),
        ("::/0", "every address"),
        ("10.0.0.0/7", "too large"),
        ("::ffff:10.9.0.0/120", "IPv4"),
        ("fe80::/64", "link-local"),
        ("169.254.0.0/16", "link-local"),
        ("ff02::/64", "multicast"),
        ("224.0.0.0/8", "multicast"),
        ("127.0.0.0/8", "loopback"),
        ("250.0.0.0/8", "reserved"),
        ("fd00::%eth0/64", "zone"),
    ],
)
def test_bad_subnets(text: str, reason: str) -> None:
    assert reason in validate.subnet(text, TAKEN)


@pytest.mark.parametrize(
    "text", ["10.200.0.0/24", "10.200.0.0/31", "192.168.7.0/30", "fd00:9::/64", "fd00::/126"]
)
def test_good_subnets(text: str) -> None:
    assert validate.subnet(text, TAKEN) == ""


@given(st.text(max_size=30) | st.from_regex(r"[0-9a-f.:]{1,12}/[0-9]{1,3}", fullmatch=True))
def test_any_text_is_checked_as_a_subnet(text: str) -> None:
    if not validate.subnet(text, TAKEN):
        prefix = ipaddress.ip_network(text)
        assert prefix.version == 6 or not prefix.overlaps(ipaddress.ip_network("10.9.0.0/16"))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("x", "isn't an address"),
        ("10.9.0.5/24", "isn't an address"),
        ("fe80::1%eth0", "isn't an address"),
        ("10.10.0.5", "not in 10.9.0.0/24"),
        ("10.9.0.0", "network"),
        ("10.9.0.255", "broadcast"),
        ("10.9.0.9", "in use"),
    ],
)
def test_bad_addresses(text: str, reason: str) -> None:
    assert reason in validate.address(text, ("10.9.0.0/24",), {"10.9.0.9"})


def test_both_addresses_of_a_pair_are_good() -> None:
    assert [validate.address(text, ("10.9.0.0/31",)) for text in ("10.9.0.0", "10.9.0.1")] == ["", ""]


@pytest.mark.parametrize("value", [0, 67, 65536, -1])
def test_bad_mtu(value: int) -> None:
    assert "68 to 65535" in validate.mtu(value)


def test_mtu() -> None:
    assert validate.mtu(1500) == validate.mtu(68) == validate.mtu(1280, ipv6=True) == ""
    assert "1280" in validate.mtu(1279, ipv6=True)
    assert "eth0 (1500)" in validate.mtu_of_path(9000, "eth0", 1500)
    assert validate.mtu_of_path(1400, "eth0", 1500) == ""


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "isn't a port"),
        ("http", "isn't a port"),
        ("0", "out of range"),
        ("65536", "out of range"),
        ("90-80", "80-90"),
        ("1-65535", "65535 ports"),
        ("٨٠", "isn't a port"),
        ("80-", "isn't a port"),
    ],
)
def test_bad_ports(text: str, reason: str) -> None:
    assert reason in validate.ports(text)


@given(st.integers(1, 65535), st.integers(0, 999))
def test_good_ports(first: int, more: int) -> None:
    last = min(first + more, 65535)
    assert validate.ports(f"{first}-{last}") == "" == validate.ports(str(first))
    assert bounds(f"{first}-{last}") == (first, last)

"""Publish ports by command with real traffic: IPv6, UDP, ranges; SCTP by its rule."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from tests.support.echo import ASK, answer, ask, serving
from tests.support.machine import Machine, ok, uplink
from tests.support.waiting import PATIENCE, wait_until

pytestmark = pytest.mark.root

# A server on UDP ports 53 and 54 that answers with the client's address and its port.
SERVE_UDP = (
    "import select, socket\n"
    "all = [socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) for _ in (53, 54)]\n"
    "for s, p in zip(all, (53, 54)): s.bind(('::', p))\n"
    "print('ready', flush=True)\n"
    "while True:\n"
    "    for s in select.select(all, [], [])[0]:\n"
    "        _, a = s.recvfrom(99)\n"
    "        s.sendto(f\"{a[0].removeprefix('::ffff:')} {s.getsockname()[1]}\".encode(), a)\n"
)
ASK_UDP = (
    "import socket, sys\n"
    "s = socket.socket(socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET, socket.SOCK_DGRAM)\n"
    "s.settimeout(1)\n"
    "s.connect((sys.argv[1], int(sys.argv[2])))\n"
    "s.send(b'?')\n"
    "print(s.recv(99).decode())\n"
)


@pytest.fixture
def site(machine: Machine) -> Machine:
    """Return a machine with an IPv4 and IPv6 uplink, and web and till on shop."""
    uplink(machine)
    for inside, link, number in (("", "up0", 2), ("world", "far", 1)):
        machine.run(f"ip addr add 2001:db8:2::{number}/64 dev {link} nodad", inside=inside)
    ok(machine, "network create shop --subnet 10.91.0.0/24 --subnet fd91::/64")
    ok(machine, "container create web --network shop")
    ok(machine, "container create till --network shop")
    names = ("", "world", "web", "till")
    wait_until(
        lambda: not any(machine.run("ip -6 addr show tentative", inside=name) for name in names),
        "all addresses to be tried out", 2 * PATIENCE,
    )  # fmt: skip
    return machine


def test_ipv6_is_reached_from_outside_the_host_and_a_neighbour(site: Machine) -> None:
    with serving(site, "web"):
        ok(site, "publish web 8080:80")
        assert answer(site, "2001:db8:2::2", 8080, "world") == "2001:db8:2::1"
        assert answer(site, "2001:db8:2::2", 8080) and answer(site, "fd91::1", 8080, "till")
        assert answer(site, "2001:db8:2::2", 8080, "web"), "by its own published port"
        ok(site, "unpublish tcp/8080")
        ok(site, "publish web [2001:db8:2::2]:81:80")
        assert answer(site, "2001:db8:2::2", 81, "world") == "2001:db8:2::1"
        assert site.run([sys.executable, "-c", ASK, "192.0.2.2", "81"], "world", check=False) == ""
        ok(site, "unpublish [2001:db8:2::2]:81")
        assert site.run([sys.executable, "-c", ASK, "2001:db8:2::2", "81"], "world", check=False) == ""


def test_udp_ports_and_ranges(site: Machine) -> None:
    with serving(site, "web", SERVE_UDP):
        ok(site, "publish web 5353:53/udp")
        assert answer(site, "192.0.2.2", 5353, "world", program=ASK_UDP) == "192.0.2.1 53"
        assert answer(site, "2001:db8:2::2", 5353, "world", program=ASK_UDP) == "2001:db8:2::1 53"
        clients = (("", "192.0.2.2"), ("till", "10.91.0.1"), ("till", "fd91::1"), ("web", "192.0.2.2"))
        for client, address in clients:
            assert answer(site, address, 5353, client, program=ASK_UDP).endswith(" 53"), (client, address)
        ok(site, "unpublish 5353/udp")
        ok(site, "publish web 6053-6054:53-54/udp")
        assert answer(site, "192.0.2.2", 6053, "world", program=ASK_UDP) == "192.0.2.1 53"
        assert answer(site, "192.0.2.2", 6054, "world", program=ASK_UDP) == "192.0.2.1 54"
        assert answer(site, "2001:db8:2::2", 6054, "world", program=ASK_UDP) == "2001:db8:2::1 54"
        ok(site, "unpublish 6053-6054/udp")
        assert ask(site, "192.0.2.2", 6054, "world", program=ASK_UDP) == ""


def matches(rule: dict[str, Any]) -> list[tuple[str, Any]]:
    """Yield the matches of a rule: "protocol field" and value."""
    found = [one["match"] for one in rule["expr"] if "match" in one]
    payloads = [(one["left"].get("payload"), one["right"]) for one in found]
    return [(f"{left['protocol']} {left['field']}", right) for left, right in payloads if left]


def test_sctp_rules_in_nft(site: Machine) -> None:
    ok(site, "publish web 3868/sctp")
    listed = json.loads(site.run("nft -j list chain inet vnet publish"))["nftables"]
    rules = [one["rule"] for one in listed if "rule" in one]
    assert [("sctp dport", 3868) in matches(rule) for rule in rules] == [True, True]
    targets = [one["dnat"]["addr"] for rule in rules for one in rule["expr"] if "dnat" in one]
    assert sorted(targets) == ["10.91.0.2", "fd91::2"]
    ok(site, "unpublish 3868/sctp")
    assert "3868" not in site.run("nft list ruleset")

"""Docker's gateway modes, and vnet's published ports: views agree with traffic.

Traffic comes from outside, with either policy of Docker's forward chain.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest

from tests.docker.engine_site import HOST, HOST6, HTTPD, WORLD, Site, engine_site
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.root, pytest.mark.docker_from("28.0")]

_OPTION = "com.docker.network.bridge."
_PORT, _HIDDEN = 80, 81
# Docker drops the answers to what leaves `bare` untranslated: direct access isn't allowed.
_UNANSWERED = "A rule of raw PREROUTING on the host drops the answers: "


@dataclass(frozen=True)
class Mode:
    """A network's options, its kind, and its mode by address family.

    `ipv4` and `ipv6` say which `ends` of its container are reachable from the world.
    """

    number: int
    options: tuple[str, ...]
    kind: str
    modes: tuple[str, str]
    ipv4: tuple[bool, bool, bool]
    ipv6: tuple[bool, bool, bool]

    def ends(self, ipv6: bool) -> tuple[tuple[str, int], ...]:
        """The published port, another one, and the first by the host's address."""
        own, host = self.address(2, ipv6), HOST6 if ipv6 else HOST
        return (own, _PORT), (own, _HIDDEN), (host, self.host_port)

    def address(self, last: int, ipv6: bool = False) -> str:
        return f"fd00:7:{self.number}::{last}" if ipv6 else f"10.{self.number}.0.{last}"

    @property
    def host_port(self) -> int:
        return 8000 + self.number


def _modes(mode: str) -> tuple[str, ...]:
    return tuple(f"{_OPTION}gateway_mode_{family}={mode}" for family in ("ipv4", "ipv6"))


_NAT, _OPEN, _ROUTED, _SHUT = (False, False, True), (True, True, True), (True, False, False), (False,) * 3
_BOTH_NAT = ("nat", "nat")
MODES = {
    "plain": Mode(211, (), "nat", _BOTH_NAT, _NAT, _NAT),
    "open": Mode(212, _modes("nat-unprotected"), "nat", ("nat-unprotected",) * 2, _OPEN, _OPEN),
    "led": Mode(213, _modes("routed"), "routed", ("routed",) * 2, _ROUTED, _ROUTED),
    "alone": Mode(214, _modes("isolated"), "internal", ("isolated",) * 2, _SHUT, _SHUT),
    "trusting": Mode(
        215, (f"{_OPTION}trusted_host_interfaces=up0",), "nat", _BOTH_NAT, (True, False, True),
        (True, False, True),
    ),
    "bare": Mode(216, (f"{_OPTION}enable_ip_masquerade=false",), "routed", _BOTH_NAT, _NAT, _NAT),
    "mixed": Mode(
        217, (f"{_OPTION}gateway_mode_ipv6=routed",), "nat", ("nat", "routed"), _NAT, _ROUTED
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=[False, True], ids=["drop", "accept"])
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Create each network with a container that publishes a port.

    `by-led` has no published port.
    """
    forwards = request.param
    with engine_site(tmp_path_factory.mktemp("state"), forwards=forwards, live_restore=True) as made:
        run, container = made.engine.run, made.engine.container
        for name, mode in MODES.items():
            options = [word for option in mode.options for word in ("-o", option)]
            subnets = ("--subnet", f"10.{mode.number}.0.0/24", "--subnet", f"fd00:7:{mode.number}::/64")
            closed = ["--internal"] if name == "alone" else []
            run("network", "create", "--ipv6", *subnets, *options, *closed, name)
            container(name, "--network", name, "-p", f"{mode.host_port}:{_PORT}", command=HTTPD)
            run("exec", "-d", name, "httpd", "-p", str(_HIDDEN))
        container("six", "--network", "plain", "-p", f"[::]:8091:{_PORT}", command=HTTPD)
        container("by-led", "--network", "led", command=HTTPD)
        policy = re.findall(r"^-P FORWARD (\w+)", made.host.run("iptables -S FORWARD"), re.MULTILINE)
        assert policy == ["ACCEPT" if forwards else "DROP"]
        yield made


def findings(site: Site) -> list[dict[str, Any]]:
    """Return findings above "info" about the engine's host, its networks and containers.

    `bare` has one of its own, see `test_a_network_without_masquerade_gets_no_answers`.
    """
    shown = site.shown()
    own = {str(site.engine.inode)}
    own |= {one["id"] for one in (*shown["networks"], *shown["containers"]) if one.get("engine") == "docker"}
    own |= {one["id"] for one in shown["containers"] if one["uid"].startswith("docker:")}
    found = [one for one in shown["findings"] if any(text in json.dumps(one) for text in own)]
    return [one for one in found if one["severity"] != "info" and _UNANSWERED not in one["sentence"]]


def test_a_network_without_masquerade_gets_no_answers(site: Site) -> None:
    ping = ("exec", "bare", "ping", "-c1", "-W1", WORLD)
    assert "100% packet loss" in site.engine.run(*ping, check=False)
    (found,) = [one for one in site.shown()["findings"] if _UNANSWERED in one["sentence"]]
    assert (found["severity"], found["kind"]) == ("bad", "forward")
    assert "PREROUTING -d 10.216.0.2/32" in found["evidence"][0]
    assert found["advice"].startswith(
        f"create the network bare with -o {_OPTION}trusted_host_interfaces=up0 or"
    )


def test_why_says_that_a_routed_network_needs_a_route_back(site: Site) -> None:
    """The world has one, so that it answers."""
    assert sender(site, "led") == MODES["led"].address(2)
    shown = site.vnet("why", "led", "outside", "--port", "443")
    text = " ".join(shown.split())
    assert "with their own source: hosts outside need a route to 10.213.0.0/24 by this host." in text
    assert "no rule masquerades" not in text


def answers(site: Site, ends: Sequence[tuple[str, int]]) -> list[bool]:
    """Return which of these addresses and ports are reachable from the world.

    All are tried at once, because time-outs take long.
    """
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(lambda end: site.reaches("world", *end), ends))


def sender(site: Site, name: str) -> str:
    """Return the source that the world sees of a container's packets, "" if none."""
    address = MODES[name].address(2)
    site.engine.run("exec", name, "ping", "-c1", "-W1", WORLD, check=False)
    found = re.findall(r"dst=(\S+)", site.host.run(f"conntrack -L -p icmp -s {address}", check=False))
    return str(found[-1]) if found else ""


def test_views_of_each_mode_agree_with_traffic(site: Site) -> None:
    shown = site.shown()
    networks = {one["name"]: one for one in shown["networks"] if one["engine"] == "docker"}
    for name, mode in MODES.items():
        found = networks[name]
        assert (found["kind"], found["gateway_mode"]) == (
            mode.kind, dict(zip(("ipv4", "ipv6"), mode.modes, strict=True)),
        ), name  # fmt: skip
        assert found["masquerade"] == (name != "bare")
        assert found["trusted_links"] == (["up0"] if name == "trusting" else [])
    wait_until(lambda: site.reaches("world", HOST, MODES["mixed"].host_port), "the last server")
    ends = [end for mode in MODES.values() for ipv6 in (False, True) for end in mode.ends(ipv6)]
    found = dict(zip(ends, answers(site, ends), strict=True))
    expected = [reached for mode in MODES.values() for reached in (*mode.ipv4, *mode.ipv6)]
    assert found == dict(zip(ends, expected, strict=True))
    with ThreadPoolExecutor(8) as pool:
        seen = dict(zip(MODES, pool.map(lambda name: sender(site, name), MODES), strict=True))
    by_kind = {"nat": lambda _: HOST, "routed": lambda mode: mode.address(2), "internal": lambda _: ""}
    assert seen == {name: by_kind[mode.kind](mode) for name, mode in MODES.items()}
    assert findings(site) == []


def test_published_ports_are_shown_with_the_families_that_answer(site: Site) -> None:
    shown = site.shown()
    containers = {one["name"]: one for one in shown["containers"] if one["uid"].startswith("docker:")}
    ports = {
        name: [(port["host_ip"], port["host_port"]) for port in one["ports"]]
        for name, one in containers.items()
    }
    every = {name: [("", MODES[name].host_port)] for name in ("plain", "open", "trusting", "bare")}
    mixed = {"mixed": [("0.0.0.0", MODES["mixed"].host_port)], "six": [("::", 8091)]}
    assert ports == every | mixed | {"led": [], "alone": [], "by-led": []}
    entries = {
        (one["family"], int(one["outside"].rpartition(":")[2]))
        for one in shown["nat"]
        if one["ns"] == site.engine.inode and one["kind"] == "published port"
    }
    expected = {(family, port) for ends in every.values() for _, port in ends for family in ("ip", "ip6")}
    assert entries == expected | {("ip", MODES["mixed"].host_port), ("ip6", 8091)}
    assert not site.reaches("world", HOST, 8091) and site.reaches("world", HOST6, 8091)


@pytest.mark.parametrize("name", ["plain", "led"])
def test_the_printed_command_opens_only_the_published_port(site: Site, name: str) -> None:
    mode, port = MODES[name], 7000 + MODES[name].number
    ends = [(HOST, port), (HOST6, port)]
    closed = [(mode.address(2, ipv6), _HIDDEN) for ipv6 in (False, True)]
    closed += [(MODES["led"].address(3, ipv6), _PORT) for ipv6 in (False, True)]
    words = ("publish", name, f"{port}:{_HIDDEN}")
    remedies = [one for one in site.warnings(*words) if "Docker's rules drop new connections to" in one]
    assert sorted(re.findall(r"\((IPv.)\); to allow", "\n".join(remedies))) == ["IPv4", "IPv6"], remedies
    site.vnet(*words)
    for address, _ in ends:
        wait_until(lambda at=address: site.reaches("host", at, port), f"an answer at {address}")
    assert not any(answers(site, (*ends, *closed)))
    found = findings(site)
    assert {(one["kind"], one["severity"]) for one in found} == {("forward", "bad")}, found
    assert sorted(command(one["advice"]) for one in found) == sorted(map(command, remedies))
    for remedy in remedies:
        site.run_advice(remedy)
    for end in ends:
        wait_until(lambda at=end: site.reaches("world", *at), f"{end}, from outside")
    assert not any(answers(site, closed))
    assert findings(site) == []
    site.vnet("unpublish", str(port))


def command(advice: str) -> str:
    return advice.partition("to allow it, run: ")[2]


def test_a_stopped_engine_causes_no_findings_about_its_bridges(site: Site) -> None:
    site.engine.stop()
    try:
        assert site.reaches("world", HOST, MODES["plain"].host_port), "containers live on"
        assert not [one for one in site.shown()["networks"] if one["name"] in MODES], "Docker says nothing"
        assert [one for one in findings(site) if one["severity"] == "bad"] == []
    finally:
        site.engine.start()

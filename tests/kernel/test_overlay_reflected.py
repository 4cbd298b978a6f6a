"""Overlays of many hosts that one BGP session announces, as a route reflector passes them on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from core.frr_config import DEFAULT_ASN
from core.plan.vxlan import vni_by_name
from tests.support.gobgp import RouteGenerator
from tests.support.machine import Machine, ok
from tests.support.underlay import FrrDaemons, destinations, flood_list, underlay
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.root, pytest.mark.needs("frr", "gobgp", "gobgpd")]

VNI = vni_by_name("blue")
TUNNEL = f"vx{VNI}"
HOSTS = [f"192.0.2.{number}" for number in range(10, 16)]
CONTAINERS = [
    (host, f"02:00:00:00:0{place}:0{number}", f"10.239.224.{100 + 10 * place + number}")
    for place, host in enumerate(HOSTS[:-1])
    for number in range(3)
]


@contextmanager
def joined() -> Iterator[tuple[Machine, RouteGenerator]]:
    """Yield a host of the overlay `blue`, and its only peer."""
    with underlay(1) as under:
        (host,) = under.hosts
        frr = FrrDaemons(host)
        ok(host, f"network join blue --peer {RouteGenerator.address}")
        with RouteGenerator(under, DEFAULT_ASN, VNI) as generator:
            wait_until(lambda: frr.established() == {generator.address}, "the session")
            yield host, generator


def shown(host: Machine) -> dict[str, dict[str, Any]]:
    """Return the other hosts of `show overlay --json` by address."""
    (found,) = json.loads(ok(host, "show overlay --json"))["overlay"]
    return {one["address"]: one for one in found["hosts"] if not one["local"]}


def test_each_announced_host_is_shown_with_its_containers() -> None:
    with joined() as (host, generator):
        generator.announce(HOSTS, CONTAINERS)
        wait_until(lambda: flood_list(host, TUNNEL) == set(HOSTS), "the flood list")
        for place, mac, _ in CONTAINERS:
            wait_until(lambda place=place, mac=mac: destinations(host, TUNNEL, mac) == {place}, "the MAC")  # type: ignore[misc]
        found = shown(host)
        assert found.keys() == {*HOSTS, generator.address}
        for address in HOSTS:
            one = found[address]
            assert (one["source"], one["flood"], one["session"]) == ("extern_learn", True, None)
            expected = {(mac, ip) for place, mac, ip in CONTAINERS if place == address}
            assert {(each["mac"], *each["addresses"]) for each in one["macs"]} == expected
        assert found[generator.address]["session"]["state"] == "Established"
        lines = ok(host, "show overlay").splitlines()
        assert sum(" announced " in line for line in lines) == len(HOSTS)
        assert [one for one in _findings(host) if "BGP" in one or "announce" in one] == []


def test_hosts_of_a_lost_session_are_gone() -> None:
    with joined() as (host, generator):
        generator.announce(HOSTS, CONTAINERS)
        wait_until(lambda: flood_list(host, TUNNEL) == set(HOSTS), "the flood list")
        generator.kill()
        wait_until(lambda: not flood_list(host, TUNNEL), "the empty flood list")
        found = shown(host)
        assert found.keys() == {generator.address} and found[generator.address]["macs"] == []
        assert any(f"BGP session with {generator.address}" in one for one in _findings(host))


def _findings(host: Machine) -> list[str]:
    return [one["sentence"] for one in json.loads(host.vnet("doctor", "--json").stdout)["findings"]]

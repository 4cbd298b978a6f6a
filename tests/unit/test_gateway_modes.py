"""Docker's gateway modes: from the engine's answer to the networks view."""

from __future__ import annotations

from typing import Any

import pytest

from core.collect.engine_decode import network_of
from core.model import network_ref
from core.topology import Topology
from tests.support.host_builder import HOST, HostBuilder
from tui.views import networks

BOTH = ("172.30.0.0/16", "fd30::/64")


def answered(subnets: tuple[str, ...] = BOTH[:1], internal: bool = False, **options: str) -> dict[str, Any]:
    """Return one network of `GET /networks`, with options without their common prefix."""
    begins = "com.docker.network.bridge."
    return {
        "Id": "ab" * 32, "Name": "shop", "Driver": "bridge", "Internal": internal,
        "IPAM": {"Config": [{"Subnet": subnet} for subnet in subnets]},
        "Options": {begins + name: value for name, value in options.items()} | {f"{begins}name": "br-shop"},
    }  # fmt: skip


def shown(answer: dict[str, Any], translated: tuple[str, ...] = BOTH) -> tuple[str, dict[str, str]]:
    """Return the kind in the list, and details on incoming and outgoing packets.

    `translated` are subnets with a NAT rule.
    """
    host = HostBuilder()
    host.bridge("br-shop", ("172.30.0.1/16", "fd30::1/64"))
    host.networks = [network_of("docker", HOST, answer)]
    host.container("docker", "x", None)
    for subnet in translated:
        family = "ip6" if ":" in subnet else "ip"
        host.rule("POSTROUTING", "", verdict="masquerade", src=subnet, oif="!br-shop", family=family)
    topology = Topology(host.snapshot())
    (one,) = topology.networks
    detail = networks.detail(topology, network_ref(one.id))
    lines = {name: cell.text for section in detail.sections for name, cell, _ in section.lines}
    return networks.kind_words(one), {
        name: text for name, text in lines.items() if name in ("IPv4", "IPv6", "trusted")
    }


def test_a_network_without_options_is_nat() -> None:
    kind, modes = shown(answered())
    assert kind == "nat"
    assert modes == {
        "IPv4": "nat: sources are translated; from outside only published ports, at the host's address"
    }
    assert network_of("docker", HOST, answered(BOTH)).gateway_mode == {"ipv4": "nat", "ipv6": "nat"}
    assert network_of("podman", HOST, answered(BOTH)).gateway_mode == {}


def test_nat_unprotected() -> None:
    kind, modes = shown(answered(gateway_mode_ipv4="nat-unprotected"))
    assert kind == "nat-unprotected"
    assert modes["IPv4"].endswith("every port is open from outside")


def test_routed_ipv6_beside_translated_ipv4() -> None:
    kind, modes = shown(answered(BOTH, gateway_mode_ipv6="routed"), translated=BOTH[:1])
    assert kind == "nat/routed"
    assert modes["IPv4"].startswith("nat: sources are translated")
    assert modes["IPv6"].startswith("routed: sources are kept")


def test_routed() -> None:
    kind, modes = shown(answered(gateway_mode_ipv4="routed"), translated=())
    assert kind == "routed"
    assert modes["IPv4"].endswith("only published ports, at the containers' addresses")


def test_without_masquerade() -> None:
    kind, modes = shown(answered(enable_ip_masquerade="false"), translated=())
    assert kind == "no-masquerade"
    assert modes["IPv4"] == "nat: sources are kept; from outside only published ports, at the host's address"


def test_isolated() -> None:
    kind, modes = shown(answered(internal=True, gateway_mode_ipv4="isolated"), translated=())
    assert kind == "isolated"
    assert "the bridge has no address" in modes["IPv4"]
    assert shown(answered(internal=True), translated=()) == ("internal", {})


def test_trusted_host_interfaces() -> None:
    _, modes = shown(answered(trusted_host_interfaces="up0:up1"))
    assert modes["trusted"] == "packets from up0, up1 reach containers directly"


def test_an_engine_without_rules_does_not_translate() -> None:
    assert shown(answered(), translated=()) == ("routed", {})


@pytest.mark.parametrize("text", ["", "true", "1"])
def test_masquerading_is_the_default(text: str) -> None:
    assert network_of("docker", HOST, answered(enable_ip_masquerade=text)).masquerade

"""Choices in the form that publishes a port."""

from __future__ import annotations

import pytest

from core.model import container_ref
from core.topology import Topology
from tests.support.host_builder import HOST, HostBuilder
from tui.screens.forms.network import publish_form

OWN = ("192.0.2.1/24", "2001:db8::1/64", "fe80::1/64")
CASES = {
    "IPv4 alone": (("10.0.0.2/24", "fe80::2/64"), ("127.0.0.1", "192.0.2.1", "10.0.0.1")),
    "IPv6 alone": (("fd00::2/64",), ("2001:db8::1", "fd00::1")),
    "both": (("10.0.0.2/24", "fd00::2/64"), ("127.0.0.1", "192.0.2.1", "2001:db8::1", "10.0.0.1", "fd00::1")),
    "no address": ((), ()),
}


@pytest.mark.parametrize("case", CASES)
def test_the_form_offers_host_addresses_of_the_containers_families(case: str) -> None:
    addresses, expected = CASES[case]
    host = HostBuilder()
    host.link(HOST, "eth0", "physical", OWN)
    host.wire(host.namespace(HOST + 1), host.bridge("br0", ("10.0.0.1/24", "fd00::1/64")), "v0", addresses)
    web = host.container("netns", "web", HOST + 1)
    host.container("netns", "other", host.namespace(HOST + 2))
    form = publish_form(container_ref("netns", web.id))
    topology = Topology(host.snapshot())
    assert form.fill(topology, {}).options["address"] == expected
    assert form.fill(topology, {"container": "other"}).options["address"] == ()

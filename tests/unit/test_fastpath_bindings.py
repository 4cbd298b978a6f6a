"""Addresses that move between containers, and how often that begins a generation."""

from __future__ import annotations

import ipaddress

from bpf.ports import OWNER_KEY, LinkRow, MapContents
from bpf.reconcile import HOLDOFF, Bindings

_X = ipaddress.ip_address("10.9.0.2").packed
_Y = ipaddress.ip_address("10.9.0.3").packed
_MAC, _OTHER = b"\x02\0\0\0\0\x0a\0\0", b"\x02\0\0\0\0\x0b\0\0"


def _found(*owned: tuple[int, bytes, bytes]) -> MapContents:
    """Return ports with an address and a MAC each, on one bridge."""
    made = MapContents()
    for port, address, mac in owned:
        made.links[port] = LinkRow(port, f"p{port}", 1, 0, "")
        made.owners[OWNER_KEY.pack(port, 2, address)] = mac
        made.macs[bytes(4) + mac] = port.to_bytes(4, "little") + bytes(4)
        made.port_macs.append((port, mac[:6]))
    return made


def _ports(found: MapContents) -> set[int]:
    return {OWNER_KEY.unpack(key)[0] for key in found.owners}


def test_a_first_move_starts_a_generation_and_the_next_waits() -> None:
    bindings = Bindings()
    assert not bindings.update(_found((3, _X, _MAC), (4, _Y, _OTHER)), 100.0)
    assert bindings.update(moved := _found((5, _X, _MAC), (4, _Y, _OTHER)), 100.1)
    assert _ports(moved) == {4, 5} and not bindings.retry_after
    assert not bindings.update(again := _found((6, _X, _MAC), (4, _Y, _OTHER)), 100.2)
    assert _ports(again) == {4}, "others keep theirs"
    assert len(again.macs) == 1 and again.port_macs == [(4, _OTHER[:6])]
    assert 0 < bindings.retry_after <= HOLDOFF
    assert bindings.update(later := _found((6, _X, _MAC), (4, _Y, _OTHER)), 100.1 + HOLDOFF)
    assert _ports(later) == {4, 6} and not bindings.retry_after


def test_an_address_that_returns_while_it_waits_keeps_waiting() -> None:
    """Its connections may have passed the rules from the other port meanwhile."""
    bindings = Bindings()
    bindings.update(_found((3, _X, _MAC)), 100.0)
    assert bindings.update(_found((3, _X, _OTHER)), 100.1)
    for mac in (_MAC, _OTHER):
        assert not bindings.update(found := _found((3, _X, mac)), 100.2)
        assert not found.owners and not found.macs and bindings.retry_after
    assert bindings.update(found := _found((3, _X, _OTHER)), 101.0)
    assert _ports(found) == {3} and not bindings.retry_after


def test_a_mac_at_another_port_waits_with_its_addresses() -> None:
    bindings = Bindings()
    bindings.update(_found((3, _X, _MAC), (4, _Y, _OTHER)), 100.0)
    assert bindings.update(_found((3, _X, _OTHER)), 100.1)
    assert not bindings.update(found := _found((4, _Y, _OTHER)), 100.2)
    assert not found.owners and not found.macs

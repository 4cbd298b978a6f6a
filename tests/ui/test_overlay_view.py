"""The overlay view: rows, filters, details, and where Enter leads."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from core.model import FdbEntry, LinkKey, Ref
from core.overlay import overlays
from core.topology import Topology
from tests.support.host_builder import HOST
from tests.support.snapshots import empty_host, overlay_host, rates_of
from tests.ui.driver import dashboard
from tui.views import registry
from tui.views.overlay import MACS_SHOWN, VIEW, detail
from tui.views.rows import Detail, ViewContext

SNAPSHOT = overlay_host()
TOPOLOGY = Topology(SNAPSHOT)
CONTEXT = ViewContext(TOPOLOGY, rates_of(SNAPSHOT))
TUNNEL = next(link for link in SNAPSHOT.links() if link.name == "vx42")


def rows(text: str = "") -> list[dict[str, str]]:
    found = VIEW.rows(CONTEXT).matching(text)
    names = [column.name for column in VIEW.columns]
    return [dict(zip(names, (cell.text for cell in row.cells), strict=True)) for row in found]


def text_of(found: Detail) -> str:
    lines = [f"{label} {cell.text}" for section in found.sections for label, cell, _ in section.lines]
    return "\n".join([found.title, *(section.title for section in found.sections), *lines])


def test_each_host_has_a_row() -> None:
    own, first, second = rows()
    assert (own["name"], own["vni"], own["owner"], own["host"]) == ("blue", "42", "vnet-tui", "192.0.2.1")
    assert (own["session"], own["flood"], own["mtu"]) == ("this host", "–", "1450")
    assert "bit/s" in own["in"] and first["in"] == "–"
    assert [one["host"] for one in (first, second)] == ["192.0.2.7", "192.0.2.8"]
    assert (first["session"], first["macs"], first["addr"]) == ("static", "1", "10.128.0.130")
    assert (first["flood"], first["mtu"]) == ("yes", "")


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("host:remote", ["192.0.2.7", "192.0.2.8"]),
        ("host:local", ["192.0.2.1"]),
        ("mac:02:00:00:00:08:01", ["192.0.2.8"]),
        ("addr:10.128.0.130", ["192.0.2.7"]),
        ("net:blue vni:42 session:static", ["192.0.2.7", "192.0.2.8"]),
        ("made-by:vnet", ["192.0.2.1", "192.0.2.7", "192.0.2.8"]),
        ("net:red", []),
    ],
)
def test_filters(text: str, hosts: list[str]) -> None:
    assert [one["host"] for one in rows(text)] == hosts


def test_details_of_this_host_have_the_command_to_join() -> None:
    text = text_of(detail(TOPOLOGY, Ref("vtep", (*TUNNEL.key, ""))))
    assert (
        "vnet-tui network join blue --remote 192.0.2.1 --remote 192.0.2.7 --remote 192.0.2.8 --vni 42" in text
    )
    assert "assigns 10.128.0.64/26" in text and "Flood list" in text
    assert "MTU 1450, at most 1450" in text and "underlay eth0, MTU 1500" in text


def test_details_of_another_host_have_its_macs() -> None:
    text = text_of(detail(TOPOLOGY, Ref("vtep", (*TUNNEL.key, "192.0.2.8"))))
    assert "02:00:00:00:08:01 10.128.0.131, learned from packets" in text
    assert "known static" in text and "MACs behind 192.0.2.8" in text and "join" not in text
    gone = detail(TOPOLOGY, Ref("vtep", (*TUNNEL.key, "192.0.2.99")))
    assert gone.title == "this host of the overlay is gone"


def changed(entries: list[FdbEntry], **link: Any) -> Topology:
    """Return the host with further forwarding entries, and another tunnel link."""
    net = SNAPSHOT.nets[HOST]
    links = {**net.links, TUNNEL.ifindex: replace(TUNNEL, **link)}
    nets = {**SNAPSHOT.nets, HOST: replace(net, fdb=(*net.fdb, *entries), links=links)}
    return Topology(replace(SNAPSHOT, nets=nets))


def behind(mac: str, host: str) -> FdbEntry:
    return FdbEntry(mac, TUNNEL.ifindex, None, flags=("self",), dst=host)


def test_details_list_the_first_macs_of_many() -> None:
    many = [behind(f"02:00:00:00:{n // 256:02x}:{n % 256:02x}", "192.0.2.7") for n in range(MACS_SHOWN)]
    found = detail(changed(many), Ref("vtep", (*TUNNEL.key, "192.0.2.7")))
    title = f"MACs behind 192.0.2.7 (the first {MACS_SHOWN} of {MACS_SHOWN + 1})"
    (macs,) = (section for section in found.sections if section.title == title)
    assert len(macs.lines) == MACS_SHOWN


@pytest.mark.parametrize(("mtu", "tone"), [(1450, ""), (1451, "bad")])
def test_an_mtu_that_does_not_fit_is_marked(mtu: int, tone: str) -> None:
    found = detail(changed([], mtu=mtu), Ref("vtep", (*TUNNEL.key, "")))
    (cell,) = (cell for section in found.sections for label, cell, _ in section.lines if label == "MTU")
    assert (cell.text, cell.tone) == (f"{mtu}, at most 1450", tone)


def test_a_host_that_only_sends_is_not_joined() -> None:
    """Its MACs are learned, or left from before it was removed."""
    text = text_of(
        detail(changed([behind("02:00:00:00:08:09", "192.0.2.9")]), Ref("vtep", (*TUNNEL.key, "")))
    )
    assert "other hosts 3" in text and "--remote 192.0.2.8 --vni" in text and "--remote 192.0.2.9" not in text


def test_an_overlay_is_found_from_its_network_bridge_and_link() -> None:
    (overlay,) = overlays(TOPOLOGY)
    assert overlay.bridge is not None and overlay.network is not None
    own = Ref("vtep", (*TUNNEL.key, ""))
    refs = (Ref("link", tuple(TUNNEL.key)), Ref("network", (overlay.network.id,)))
    for ref in refs:
        assert own in [target for _, target in registry.detail(CONTEXT, ref).related] or own in [
            target for section in registry.detail(CONTEXT, ref).sections for *_, target in section.lines
        ]
    home = registry.home_of(TOPOLOGY, own)
    assert home is not None and home.name == "overlay"
    assert LinkKey(HOST, TUNNEL.ifindex) == TUNNEL.key


@pytest.mark.parametrize("size", [(80, 24), (130, 40), (200, 60)])
async def test_the_view_fits_and_enter_follows(size: tuple[int, int]) -> None:
    async with dashboard(SNAPSHOT, size=size) as person:
        person.dashboard.go_to("overlay")
        await person.settle()
        for word in ("Overlays", "blue", "this host", "192.0.2.7", "static", "MACs"):
            assert word in person.text
        await person.press("enter")
        assert person.dashboard.view.name == "networks"


async def test_the_overview_counts_the_other_hosts() -> None:
    async with dashboard(SNAPSHOT, size=(130, 60)) as person:
        assert "overlay with 2 other hosts" in person.text


async def test_an_empty_view_says_how_to_create_an_overlay() -> None:
    async with dashboard(empty_host()) as person:
        person.dashboard.go_to("overlay")
        await person.settle()
        assert "--kind overlay" in " ".join(person.text.split())

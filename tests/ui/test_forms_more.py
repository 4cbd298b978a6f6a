"""Detach, move, join, unpublish and edit with forms, checked with ip and nft."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.apply import guard, journal
from core.collect.snapshot import read_snapshot
from core.plan.vxlan import subnet_by_name, vni_by_name
from tests.support.host import ThrowawayHost
from tests.support.waiting import wait_until
from tests.ui.change_forms import (
    BRIDGE,
    NET,
    PARTS,
    apply_form,
    attach,
    closed,
    dialog_shows,
    host_dashboard,
    keys,
    make_network,
    select,
    shows,
    values,
)  # fmt: skip
from tests.ui.driver import Person

pytestmark = pytest.mark.root

OTHER = f"{NET}b"


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VNET_STATE", str(tmp_path / "state"))


def links(host: ThrowawayHost, inside: str = "host") -> set[str]:
    return {one["ifname"] for one in host.json("ip -j link", inside=inside)}


def rules(host: ThrowawayHost) -> str:
    return host.run("nft list table inet vnet")


def link_settings(host: ThrowawayHost) -> list[object]:
    """Return the settings of each link."""
    found = host.json("ip -j link")
    return [(one["ifname"], one["mtu"], one.get("ifalias"), "UP" in one["flags"]) for one in found]


def address(host: ThrowawayHost, link: str, inside: str = "host") -> str:
    (found,) = host.json(f"ip -j -4 addr show dev {link}", inside=inside)
    return str(found["addr_info"][0]["local"])


async def test_detaching(inside_host: ThrowawayHost) -> None:
    name = inside_host.namespace("web")
    async with host_dashboard() as person:
        await make_network(person)
        before = links(inside_host), links(inside_host, "web"), rules(inside_host)
        await attach(person, name)
        await keys(person, "D")
        await keys(person, *name)
        assert values(person) == {"container": name, "network": NET}
        await shows(person, f"detach {name} from {NET}")
        await apply_form(person)
        assert (links(inside_host), links(inside_host, "web"), rules(inside_host)) == before
        await keys(person, "D")
        await keys(person, *name)
        await shows(person, f"can't detach {name}: neither vnet-tui")


async def test_networks_that_vnet_tui_did_not_create_are_refused(inside_host: ThrowawayHost) -> None:
    """A bridge that vnet-tui did not create can't get containers: the form says so."""
    name = inside_host.namespace("web")
    inside_host.run("ip link add br-own type bridge")
    inside_host.run("ip addr add 10.88.0.1/24 dev br-own")
    async with host_dashboard() as person:
        await keys(person, "a")
        await keys(person, *name)
        await shows(person, "br-own")
        await shows(person, "not possible: ")


async def test_d_on_an_attached_veth_detaches(inside_host: ThrowawayHost) -> None:
    name = inside_host.namespace("web")
    async with host_dashboard() as person:
        await make_network(person)
        before = links(inside_host), links(inside_host, "web"), rules(inside_host)
        await attach(person, name)
        port = next(link for link in links(inside_host) if link.startswith("v-"))
        await select(person, "links", port)
        await keys(person, "d")
        await shows(person, f"detach {name} from {NET}", f"ip link del {port}")
        await apply_form(person, "y")
        assert (links(inside_host), links(inside_host, "web"), rules(inside_host)) == before


async def test_moving(inside_host: ThrowawayHost) -> None:
    name = inside_host.namespace("web")
    async with host_dashboard() as person:
        await make_network(person)
        await make_network(person, OTHER)
        await attach(person, name)
        await select(person, "containers", name)
        await keys(person, "m")
        assert {"container": name, "network": NET, "to": OTHER}.items() <= values(person).items()
        chosen = values(person)["address"]
        await shows(person, f"move {name} from {NET} to {OTHER}")
        await apply_form(person)
        assert address(inside_host, "eth0", "web") == chosen
        (port,) = inside_host.json(f"ip -j link show master br-{OTHER}")
        assert port["ifname"].startswith("v-") and not inside_host.json(f"ip -j link show master {BRIDGE}")


async def test_joining_and_parting(inside_host: ThrowawayHost) -> None:
    async with host_dashboard() as person:
        await keys(person, "J")
        await shows(person, "can't join networks: two networks of vnet-tui")
        await person.press("escape")
        await make_network(person)
        await make_network(person, OTHER)
        apart = inside_host.run("nft -j list ruleset")
        await select(person, "networks", BRIDGE)
        await keys(person, "J")
        assert values(person) == {"network": NET, "other": OTHER, "state": "joined"}
        await apply_form(person)
        assert f"join {NET} {OTHER}" in rules(inside_host)
        await keys(person, "J")
        assert values(person)["state"] == "apart"
        await apply_form(person)
        assert f"join {NET} {OTHER}" not in rules(inside_host)
        assert len(inside_host.run("nft -j list ruleset")) == len(apart)


async def test_d_on_a_published_port_unpublishes_it(inside_host: ThrowawayHost) -> None:
    name = inside_host.namespace("web")
    async with host_dashboard() as person:
        await make_network(person)
        await attach(person, name)
        before = rules(inside_host)
        await keys(person, "P")
        await keys(person, *name, "tab", *"8088")
        await apply_form(person)
        assert "dnat" in rules(inside_host)
        await select(person, "nat", "port:8088")
        await keys(person, "d")
        await shows(person, "unpublish tcp/8088")
        await apply_form(person, "y")
        assert rules(inside_host) == before


async def test_rules_of_other_programs_are_not_removed(inside_host: ThrowawayHost) -> None:
    inside_host.run("nft add table ip theirs")
    inside_host.run(["nft", "add chain ip theirs pre { type nat hook prerouting priority -100; }"])
    inside_host.run("nft add rule ip theirs pre tcp dport 7070 dnat to 192.0.2.7:70")
    async with host_dashboard() as person:
        await select(person, "nat", "port:7070")
        await keys(person, "d")
        reason = "vnet-tui only removes ports that it published itself"
        await dialog_shows(person, f"can't delete the NAT entry tcp 7070 -> 192.0.2.7:70: {reason}")
        await person.press("y")
        assert len(person.app.screen_stack) == 2


async def test_editing_a_link(inside_host: ThrowawayHost) -> None:
    inside_host.run("ip link add v0 type veth peer name v1")
    async with host_dashboard() as person:
        await select(person, "links", "v0")
        before = link_settings(inside_host)
        await keys(person, "e")
        await shows(person, "nothing differs")
        assert values(person)["link"] == "v0"
        await keys(person, "tab", "right", "tab", *"9x")
        await shows(person, "can't use \"9x\" as MTU: it isn't a number. Try: 1400")
        await keys(person, "backspace", *"000", "tab", *"uplink7", "tab", *"to the rack")
        await shows(person, "ip link set v0 mtu 9000", "ip link set v0 up", "ip link set v0 name uplink7")
        await apply_form(person)
        (link,) = inside_host.json("ip -j link show dev uplink7")
        assert (link["mtu"], link["ifalias"], "UP" in link["flags"]) == (9000, "to the rack", True)
        await person.press("u")
        await shows(person, "change the link v0")
        await person.press("enter")
        await apply_form(person, "y")
        assert link_settings(inside_host) == before


async def test_editing_a_bridge_and_its_port(inside_host: ThrowawayHost) -> None:
    inside_host.run("ip link add br7 type bridge")
    inside_host.run("ip link add p7 type veth peer name far7")
    inside_host.run("ip link set p7 master br7")
    async with host_dashboard((80, 24)) as person:
        await select(person, "bridges", "br7")
        await keys(person, "e")
        for field, typed in (("bridge.stp_state", ("right",)), ("bridge.ageing_time", tuple("6000"))):
            await keys(person, *_to(person, field))
            await keys(person, *typed)
        await shows(person, "ageing_time", "↓ 6 more")
        await keys(person, "up", *["up"] * len(values(person)), *_to(person, "bridge.nf_call_iptables"))
        await shows(person, "nf_call_iptables", "↑", "more")
        await apply_form(person)
        (bridge,) = inside_host.json("ip -j -d link show dev br7")
        data = bridge["linkinfo"]["info_data"]
        assert (data["stp_state"], data["ageing_time"]) == (1, 6000)
        await select(person, "links", "p7")
        await keys(person, "e")
        await keys(person, *_to(person, "port.isolated"), "right")
        await shows(person, "isolated on")
        await apply_form(person)
        (port,) = inside_host.json("bridge -j -d link show dev p7")
        assert port["isolated"] is True


def _to(person: Person, field: str) -> list[str]:
    """Return the keys that lead from the current field to another."""
    names, here = list(values(person)), person.app.screen.fields.place  # type: ignore[attr-defined]
    return ["tab"] * (names.index(field) - here)


async def test_tags_in_an_alias_cannot_be_edited(inside_host: ThrowawayHost) -> None:
    async with host_dashboard() as person:
        await make_network(person)
        await select(person, "networks", BRIDGE)
        await keys(person, "e")
        assert values(person)["link"] == BRIDGE and "alias" not in values(person)


@pytest.mark.parametrize("answer", ["y", "n"])
async def test_the_undo_of_a_guarded_change_is_guarded(inside_host: ThrowawayHost, answer: str) -> None:
    inside_host.namespace("world")
    inside_host.run(f"ip link add up0 type veth peer name far netns {inside_host.full('world')}")
    inside_host.run("ip addr add 192.0.2.2/24 dev up0")
    inside_host.run("ip link set up0 up")
    inside_host.run("ip route add default via 192.0.2.1")
    async with host_dashboard() as person:
        await keys(person, "n")
        await keys(person, *"lan", "tab", *"nic")
        await shows(person, "ip link set up0 master br-lan")
        await person.press("enter")
        await shows(person, "Keep it? y / n")
        await person.press("y")
        await closed(person)
        await person.press("u")
        await shows(person, "create the nic-bridged network lan")
        await person.press("enter")
        await keys(person)
        await shows(person, "y: apply")
        await person.press("y")
        await shows(person, "Keep it? y / n", "undo: create the nic-bridged network lan")
        assert address(inside_host, "up0") == "192.0.2.2" and "br-lan" not in links(inside_host)
        assert len(guard.pending_guards()) == 1
        await person.press(answer)
        await closed(person)
        await shows(person, "Kept" if answer == "y" else "Undone")
    assert address(inside_host, "up0" if answer == "y" else "br-lan") == "192.0.2.2"
    wait_until(lambda: not guard.pending_guards(), "the end of the guard")
    ends = {entry.title: entry.end for entry in journal.history()}
    bridged = "create the nic-bridged network lan"
    assert ends == ({bridged: "undone"} if answer == "y" else {bridged: "done", f"undo: {bridged}": "undone"})


@pytest.mark.parametrize("view", ["overview", "networks", "bridges"])
async def test_a_created_item_is_selected_and_proposed_next(inside_host: ThrowawayHost, view: str) -> None:
    async with host_dashboard() as person:
        await person.type(f":{view}⏎")
        await make_network(person)
        await person.feed(read_snapshot(PARTS))
        await person.until(lambda: NET in person.row(), "the network under the cursor")
        await keys(person, "c")
        assert values(person)["network"] == NET
        await keys(person, "escape")


async def test_a_created_item_is_selected_beside_a_bridge_with_a_similar_name(
    inside_host: ThrowawayHost,
) -> None:
    inside_host.run(f"ip link add {BRIDGE} type bridge")
    async with host_dashboard() as person:
        await person.type(":overview⏎")
        await make_network(person)
        await person.feed(read_snapshot(PARTS))
        await person.until(lambda: person.row() == NET, "the network under the cursor")


async def test_an_error_replaces_the_hint(inside_host: ThrowawayHost) -> None:
    async with host_dashboard() as person:
        await keys(person, "n", *NET, "tab", "tab")
        assert "a free subnet" in person.text
        await keys(person, *"10.250.0.0/24")
        assert "a free subnet" not in person.text
        await keys(person, "tab", *"10.251.0.1")
        line = next(line for line in person.lines if "gateway" in line)
        assert '"10.251.0.1"' in line.partition("10.251.0.1 ")[2] and "the first address" not in line
        await keys(person, "escape")


async def test_a_field_with_choices_accepts_no_other_text(inside_host: ThrowawayHost) -> None:
    async with host_dashboard() as person:
        await keys(person, "n", *NET)
        await keys(person, "up", *"maybe")
        assert 'can\'t use "maybe" as VLAN filtering' in person.text
        await keys(person, *["backspace"] * 5, "y")
        assert "can't use" not in person.text
        await person.press("escape")
    assert BRIDGE not in links(inside_host)


async def test_emptying_the_ipv6_subnet_adds_no_field(inside_host: ThrowawayHost) -> None:
    async with host_dashboard() as person:
        await keys(person, "n", *NET, *["tab"] * 4)
        await keys(person, "backspace")
        assert values(person)["ipv6"] == "" and "nat66" not in values(person)
        await person.press("escape")


@pytest.mark.parametrize("size", [(80, 24), (130, 40), (200, 60)])
async def test_an_overlay_is_created(inside_host: ThrowawayHost, size: tuple[int, int]) -> None:
    inside_host.run("ip link add up0 type veth peer name far0")
    inside_host.run("ip addr add 192.0.2.1/24 dev up0")
    inside_host.run("ip link set up0 up")
    async with host_dashboard(size) as person:
        await keys(person, "n")
        await keys(person, *NET, "tab", "left")
        await keys(person, "tab", *"192.0.2.2, 192.0.2.3")
        given = values(person)
        assert (given["kind"], given["vni"]) == ("overlay", str(vni_by_name(NET)))
        assert given["subnet"] == subnet_by_name(NET, 4)
        await apply_form(person)
    (tunnel,) = inside_host.json("ip -j -d link show type vxlan")
    assert tunnel["linkinfo"]["info_data"]["id"] == vni_by_name(NET)
    entries = inside_host.json(f"bridge -j fdb show dev {tunnel['ifname']}")
    assert {one["dst"] for one in entries if "dst" in one} == {"192.0.2.2", "192.0.2.3"}

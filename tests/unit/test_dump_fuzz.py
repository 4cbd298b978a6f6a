"""Dumps with random changes: they open in all views, or are refused with a reason."""

from __future__ import annotations

import io
import json
import os
import random
from dataclasses import replace

import pytest

from core.model import (
    BridgePort,
    BridgeSettings,
    ConntrackStats,
    FdbEntry,
    GuardDrops,
    LinkTuning,
    Listener,
    Network,
    NextHop,
    OvsBridge,
    OvsInterface,
    OvsPort,
    PacketSizes,
    PolicyRule,
    PortVlan,
    Problem,
    Route,
    Snapshot,
    Storm,
    StormGuard,
    StormLimits,
    Translation,
)
from core.serialize import CorruptFile, to_json, unpack_both
from core.text import safe
from core.update import Update
from tests.support.host_builder import HOST, HostBuilder
from tests.support.mutations import mutated
from tests.support.snapshots import small_builder
from tui.cli.parser import TOPICS
from tui.cli.show import Output, show
from tui.sources import FileSource
from tui.view_model import ViewModel, ViewState
from tui.views import registry
from tui.views.rows import Rows

SEED = int(os.environ.get("SEED", "1"))
CASES = int(os.environ.get("CASES", "200"))


def rich_host() -> Snapshot:
    """Return a host with one of everything that a dump may contain."""
    host = small_builder()
    uplink = host.link(
        HOST, "eth1", "physical", ("198.51.100.2/25", "fd00::2/64"), altnames=("enp3s0",), offloads=("tso",),
        sizes=PacketSizes(65536, 65536, 65536, 65536, 65536),
    )  # fmt: skip
    vlans = (PortVlan(1, 1, True, True), PortVlan(10, 20))
    settings = BridgeSettings(stp=True, vlan_filtering=True, vlans=vlans, root_id="8000.02:42:00:00:00:09")
    tag = "vnet:net=shop kind=nat subnet=10.9.0.0/24 gateway=10.9.0.1"
    shop = host.bridge("br-shop", ("10.9.0.1/24", "fd09::1/64"), bridge=settings, alias=tag)
    plain = host.bridge("br-plain", ("10.7.0.1/24",))
    inside = host.namespace(
        HOST + 3000, names=("app",), pids=(3000,), mounts=("/run/netns/app",), held_fds=((1, 3),), nsid=4
    )
    host.container("netns", "app", inside, id="app", pid=None, namespaces={"net": inside})
    outer = host.wire(inside, shop, "v-app", ("10.9.0.2/24",))
    alias = "vnet:of=netns:app net=shop link=eth0 address=10.9.0.2/24"
    host.links[HOST][outer.ifindex] = replace(outer, alias=alias, port=BridgePort("forwarding", vlans=vlans))
    fields = {"lower": uplink.ifindex, "master": plain.ifindex, "port": BridgePort("blocking")}
    host.link(HOST, "vx7", "vxlan", details={"vni": 7, "remote": "192.0.2.9", "port": 4789}, **fields)
    host.link(HOST, "eth1.5", "vlan", ("10.5.0.1/24",), lower=uplink.ifindex, details={"vlan": 5})
    host.link(HOST, "mac0", "macvlan", ("10.4.0.1/24",), lower=uplink.ifindex, details={"mode": "bridge"})
    host.link(HOST, "bond0", "bond", details={"mode": "802.3ad"})
    host.link(HOST, "wg0", "wireguard", ("10.3.0.1/32",))
    host.fdb[HOST].append(FdbEntry("02:00:00:00:00:09", 3, None, 7, "permanent", ("self",), "192.0.2.9"))
    hops = (NextHop("198.51.100.1", uplink.ifindex, 2), NextHop("fd00::1", uplink.ifindex, onlink=True))
    host.routes[HOST].append(
        Route(4, "203.0.113.0/24", "unicast", hops, "198.51.100.2", 9, options=("mtu 1400",))
    )
    host.policy[HOST].append(
        PolicyRule(4, 7, "10.9.0.0/24", fwmark=1, fwmask=255, goto=9, more=("dport 53",))
    )
    _filters(host)
    return _other_objects(host.snapshot(), inside)


def _filters(host: HostBuilder) -> None:
    """Return nftables rules, including vnet's."""
    nft = {"backend": "nft", "family": "inet", "table": "vnet"}
    host.rule("forward", "jump x", verdict="jump", target="x", iif="br-shop", oif="{eth0,eth1}", **nft)
    host.rule("forward", "drop", verdict="drop", ct_state="new", src="!10.9.0.0/24", dport="80-90,443", **nft)
    host.rule(
        "prerouting", "dnat", verdict="dnat", l4_proto="tcp", comment="vnet:publish shop netns:app",
        translations=(Translation("", "192.0.2.1", "tcp", "", "80", "10.9.0.2", "80"),),
        **nft,
    )  # fmt: skip
    host.rule("postrouting", "masquerade", verdict="masquerade", src="10.9.0.0/24", oif="!br-shop", **nft)
    host.rule(
        "FORWARD", "-A FORWARD -d 10.9.0.2/32 -j REJECT", table="filter", dst="10.9.0.2/32", verdict="reject"
    )


def _other_objects(found: Snapshot, inside: int) -> Snapshot:
    """Return objects that the builder can't create."""
    problem = Problem("links", "what", "why", "try", HOST)
    ports = (
        OvsPort(
            "p1",
            7,
            (1, 2),
            "trunk",
            "slb",
            (OvsInterface("eth9", "vxlan", 3, 1, options={"remote_ip": "192.0.2.3"}),),
        ),
    )
    docker = found.engines["docker"]
    changed = replace(
        docker, problems=(problem,),
        networks=(*docker.networks, Network("docker", "mac", "mac", "macvlan", ns=HOST, parent="eth1")),
    )  # fmt: skip
    table = found.conntracks[HOST]
    return replace(
        found,
        host=replace(
            found.host, listening=(Listener("tcp", "0.0.0.0", 22),), missing_capabilities=("CAP_BPF",)
        ),
        engines={**found.engines, "docker": changed},
        conntracks={
            HOST: replace(table, stats=ConntrackStats(), stats_before=ConntrackStats(), stats_seconds=9.0)
        },
        ovs=(OvsBridge("ovs0", ports=ports, external_ids={"a": "b"}),),
        storms=(Storm(HOST, 3, "broadcast", 900.0, 0.5, (4,)),),
        storm_guards=(
            StormGuard(HOST, 4, StormLimits(500, 5000, 500), (GuardDrops("arp", 30.0),), (0, 0, 9, 0)),
        ),
        tuning={HOST: {2: LinkTuning(("tso",), ("tso",), ("f",))}},
        part_problems={"ovs": (problem,)},
    )


WHOLE = json.loads(to_json(rich_host()))


def used(data: bytes) -> None:
    """Use a file as the commands and the dashboard do."""
    snapshot, fast = unpack_both(data)
    for as_json in (False, True):
        show(snapshot, TOPICS, Output(io.StringIO(), as_json))
    assert "/" in FileSource(snapshot, "/", fast).title
    view_model = ViewModel()
    view_model.apply_update(Update(snapshot, fast=fast), ())
    for view in registry.VIEWS:
        _read_views(view_model, view_model.view_data(view.list, ViewState()).rows)


def _read_views(view_model: ViewModel, rows: Rows) -> None:
    for place in range(min(len(rows), 40)):
        row = rows.row(place)
        for cell in row.cells:
            cell.text.encode()  # nothing that a terminal can't be given
        view_model.detail(row.ref)
        view_model.target((row.ref,))


@pytest.mark.parametrize("part", range(4))
def test_a_changed_dump_opens_or_is_refused_with_a_reason(part: int) -> None:
    opened = 0
    for number in range(part, CASES, 4):
        data = json.dumps(mutated(WHOLE, random.Random(SEED * 1_000_000 + number))).encode()
        try:
            used(data)
            opened += 1
        except CorruptFile as error:
            assert "\n" not in safe(str(error)) and len(str(error)) < 500
        except Exception as error:
            error.add_note(f"SEED={SEED}, case {number}")
            raise
    assert opened

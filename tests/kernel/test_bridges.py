"""Check bridges, ports and forwarding tables against `ip -j -d` and `bridge -j`."""

from __future__ import annotations

from typing import Any

import pytest

from core.model import BridgePort, BridgeSettings, FdbEntry, Link
from tests.kernel.reading import links_of, net_of
from tests.support.host import ThrowawayHost
from tests.support.waiting import wait_until

pytestmark = pytest.mark.root

PORT_FLAGS = (
    "learning", "flood", "mcast_flood", "bcast_flood", "isolated", "hairpin", "neigh_suppress", "guard",
    "root_block", "fastleave",
)  # fmt: skip


def settings_from_ip(data: dict[str, Any]) -> dict[str, Any]:
    """Convert a bridge's `linkinfo.info_data` to the names of the model."""
    return {
        "stp": bool(data["stp_state"]),
        "vlan_filtering": bool(data["vlan_filtering"]),
        "ageing_time": data["ageing_time"] / 100,
        "forward_delay": data["forward_delay"] / 100,
        "hello_time": data["hello_time"] / 100,
        "max_age": data["max_age"] / 100,
        "priority": data["priority"],
        "bridge_id": short_octets(data["bridge_id"]),
        "root_id": short_octets(data["root_id"]),
        "root_port": data["root_port"],
        "mcast_snooping": bool(data["mcast_snooping"]),
        "mcast_querier": bool(data["mcast_querier"]),
        "group_fwd_mask": int(str(data["group_fwd_mask"]), 16),
        "nf_call_iptables": bool(data["nf_call_iptables"]),
        "nf_call_ip6tables": bool(data["nf_call_ip6tables"]),
    }


def short_octets(bridge_id: str) -> str:
    """Format a bridge id like `ip`, with octets without leading zeros."""
    priority, _, mac = bridge_id.partition(".")
    return priority + "." + ":".join(f"{int(octet, 16):x}" for octet in mac.split(":"))


def settings_of(bridge: BridgeSettings) -> dict[str, Any]:
    """Pick the same properties of the model."""
    found = {name: getattr(bridge, name) for name in BridgeSettings.__slots__ if not name.startswith("vlan")}
    found["vlan_filtering"] = bridge.vlan_filtering
    found.pop("route_localnet")  # a sysctl, which ip-link(8) doesn't print
    return found | {"bridge_id": short_octets(bridge.bridge_id), "root_id": short_octets(bridge.root_id)}


def two_ports(host: ThrowawayHost) -> None:
    """Create br0 with ports p1 and p2, all up."""
    host.run("ip link add br0 type bridge")
    for name in ("p1", "p2"):
        host.run(f"ip link add {name} type veth peer name {name}-peer")
        host.run(f"ip link set {name} master br0 up")
        host.run(f"ip link set {name}-peer up")
    host.run("ip link set br0 up")


def port_of(link: Link) -> BridgePort:
    """Return the port settings of a link."""
    assert link.port
    return link.port


@pytest.mark.parametrize(
    "options",
    [
        "",
        "stp_state 1 priority 4096 ageing_time 12300 forward_delay 400 hello_time 100 max_age 1000",
        "mcast_snooping 0 group_fwd_mask 8 nf_call_iptables 1",
        "mcast_querier 1",
    ],
)
def test_settings_are_those_that_ip_prints(host: ThrowawayHost, options: str) -> None:
    two_ports(host)
    host.run(f"ip link set br0 type bridge {options}")
    (printed,) = host.json("ip -j -d link show br0")
    bridge = links_of(host)["br0"].bridge
    assert bridge
    assert settings_of(bridge) == settings_from_ip(printed["linkinfo"]["info_data"])


@pytest.mark.parametrize(("stp", "state"), [(0, "forwarding"), (1, "listening")])
def test_port_states_and_flags_are_those_that_bridge_prints(
    host: ThrowawayHost, stp: int, state: str
) -> None:
    two_ports(host)
    host.run(
        "bridge link set dev p1 learning off flood off mcast_flood off bcast_flood off cost 77 priority 5"
    )
    host.run(
        "bridge link set dev p2 isolated on hairpin on neigh_suppress on guard on root_block on fastleave on"
    )
    host.run("ip link add p3 master br0 type veth peer name p3-peer")
    host.run(f"ip link set br0 type bridge stp_state {stp}")
    for name in ("p1", "p2"):
        host.run(f"ip link set {name} down")
        host.run(f"ip link set {name} up")
    wait_until(lambda: [entry["state"] for entry in host.json("bridge -j link")].count(state) == 2)
    read = links_of(host)
    printed = {entry["ifname"]: entry for entry in host.json("bridge -j -d link")}
    assert printed.keys() == {name for name, link in read.items() if link.port}
    for name, entry in printed.items():
        port = port_of(read[name])
        assert (port.state, port.cost, port.priority) == (entry["state"], entry["cost"], entry["priority"])
        assert {flag: getattr(port, flag) for flag in PORT_FLAGS} == {
            flag: entry[flag] for flag in PORT_FLAGS
        }
    assert {port_of(read[name]).state for name in printed} == {state, "disabled"}


def fdb_from_bridge(entry: dict[str, Any]) -> tuple[Any, ...]:
    """Pick the properties of the entries of `bridge -j fdb`."""
    state = entry["state"] if entry["state"] in ("permanent", "static") else "learned"
    return (
        entry["mac"], entry["ifname"], entry.get("master"), entry.get("vlan"), state, sorted(entry["flags"]),
        entry.get("dst", ""),
    )  # fmt: skip


def fdb_of(host: ThrowawayHost) -> list[tuple[Any, ...]]:
    """Pick the same properties of the model."""
    net = net_of(host)
    names = {ifindex: link.name for ifindex, link in net.links.items()}

    def properties(entry: FdbEntry) -> tuple[Any, ...]:
        bridge = names[entry.bridge] if entry.bridge else None
        # `bridge` shows the master flag by naming the bridge.
        flags = sorted(set(entry.flags) - {"master"})
        return entry.mac, names[entry.port], bridge, entry.vlan, entry.state, flags, entry.dst

    return sorted(map(properties, net.fdb), key=repr)


def test_forwarding_entries_are_those_that_bridge_prints(host: ThrowawayHost) -> None:
    two_ports(host)
    host.run("ip link add vx0 type vxlan id 5 dstport 4789 local 10.9.0.1 nolearning")
    host.run("ip link set vx0 master br0 up")
    host.run("bridge fdb append 00:00:00:00:00:00 dev vx0 dst 10.9.0.2")
    host.run("bridge fdb append 02:00:00:00:00:05 dev vx0 dst fd00::5", check=False)
    host.run("bridge fdb add 02:00:00:00:00:01 dev p1 master static")
    host.run("bridge fdb add 02:00:00:00:00:02 dev p2 master static sticky")
    host.run("bridge fdb add 02:00:00:00:00:03 dev p2 master dynamic extern_learn")
    printed = [
        fdb_from_bridge(entry)
        for entry in host.json("bridge -j fdb")
        if "master" in entry or entry["ifname"] == "vx0"
    ]
    assert fdb_of(host) == sorted(printed, key=repr)
    assert {entry[4] for entry in fdb_of(host)} == {"permanent", "static", "learned"}


def test_a_learned_address_names_its_port(host: ThrowawayHost) -> None:
    host.run("ip link add br0 type bridge")
    host.run("ip addr add 10.0.0.1/24 dev br0")
    host.run("ip link set br0 up")
    host.container("c", "br0", "10.0.0.2/24")
    host.run("ping -c1 -W5 10.0.0.2")
    net = net_of(host)
    (eth0,) = (link for link in net_of(host, "c").links.values() if link.name == "eth0")
    ports = {net.links[e.port].name for e in net.fdb if e.mac == eth0.mac and e.state == "learned"}
    assert ports == {"v-c"}


def test_vlans_are_those_that_bridge_prints(host: ThrowawayHost) -> None:
    two_ports(host)
    host.run("ip link set br0 type bridge vlan_filtering 1 vlan_default_pvid 3", check=False)
    for arguments in ("vid 10 pvid untagged dev p1", "vid 20-29 dev p1", "vid 5 dev br0 self"):
        host.run(f"bridge vlan add {arguments}", check=False)
    read = links_of(host)
    printed = {
        entry["ifname"]: [
            (
                v["vlan"],
                v.get("vlanEnd", v["vlan"]),
                "PVID" in v.get("flags", ()),
                "Egress Untagged" in v["flags"],
            )
            for v in entry["vlans"]
        ]
        for entry in host.json("bridge -j -compressvlans vlan")
    }
    vlans = {name: link.port.vlans for name, link in read.items() if link.port}
    if read["br0"].bridge:
        vlans["br0"] = read["br0"].bridge.vlans
    found = {
        name: [(v.vid, v.vid_end, v.pvid, v.untagged) for v in entries]
        for name, entries in vlans.items()
        if entries
    }
    assert found == printed


def test_route_localnet_is_read(host: ThrowawayHost) -> None:
    two_ports(host)
    host.run("ip link add br1 type bridge")
    host.run("sysctl -qw net.ipv4.conf.br1.route_localnet=1")
    found = {name: link.bridge.route_localnet for name, link in links_of(host).items() if link.bridge}
    assert found == {"br0": False, "br1": True}

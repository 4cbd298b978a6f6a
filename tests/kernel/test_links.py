"""Check links against `ip -j -d` and `ethtool`."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from typing import Any

import pytest

from core.collect.links import read_nets, read_stats
from core.collect.namespaces import read_namespaces
from core.model import Link, Namespace
from core.netlink.netns import inode_of
from core.peers import resolve
from tests.kernel.holders import holder, shell
from tests.kernel.reading import links_of, net_of, nets_of
from tests.support.host import ThrowawayHost
from tests.support.waiting import wait_until

pytestmark = pytest.mark.root

# Every kind with details of its own; the kernel may lack some.
KINDS = (
    "name bridge0 type bridge",
    "name veth0 type veth peer name veth1",
    "name vx0 type vxlan id 7 remote 10.1.1.1 local 10.1.1.2 dstport 4790 dev veth0 nolearning proxy",
    "name vx6 type vxlan id 8 group ff05::1 dstport 4789 dev veth0",
    "name vxe type vxlan external dstport 4791",
    "link veth1 name macvlan0 type macvlan mode vepa",
    "link veth1 name macvtap0 type macvtap mode private",
    "name dummy0 type dummy",
    "link veth1 name vlan0 type vlan protocol 802.1ad id 42",
    "link dummy0 name ipvlan0 type ipvlan mode l3s private",
    "name bond0 type bond mode 802.3ad miimon 150",
    "name wg0 type wireguard",
    "name vrf0 type vrf table 99",
    "name ifb0 type ifb",
)
ALWAYS_THERE = {"lo", "bridge0", "veth0", "veth1", "vx0", "vx6", "vxe", "macvlan0", "macvtap0", "tap0"}


def make_all_kinds(host: ThrowawayHost) -> None:
    """Create a link of each kind that this kernel has."""
    for words in KINDS:
        host.run(f"ip link add {words}", check=False)
    host.run("ip tuntap add tap0 mode tap multi_queue")
    host.run("ip link set veth0 up")
    host.run("ip link set veth1 up mtu 1400 alias uplink")
    host.run("ip link property add dev veth1 altname other altname a-second-name")
    host.run("ip link set veth0 master bridge0")
    host.run("ip link set bridge0 up promisc on")
    wait_until(lambda: "UP" in host.run("ip -br link show bridge0").split())


def as_ip_prints(link: Link, links: dict[str, Link]) -> dict[str, Any]:
    """Convert a link to the fields of `ip -j -d link` that the model has."""
    names = {other.ifindex: name for name, other in links.items()}
    special = {"link": names[int(link.details["link"])]} if "link" in link.details else {}
    return {
        "ifindex": link.ifindex,
        "kind": None if link.kind in ("loopback", "physical") else link.kind,
        "operstate": link.state.upper(),
        "flags": [link.admin_up, link.carrier],
        "promiscuous": link.promiscuous,
        "address": link.mac,
        "mtu": link.mtu,
        "master": names.get(link.master or 0),
        "link": None if link.kind == "vxlan" else names.get(link.lower or 0),
        "ifalias": link.alias,
        "altnames": list(link.altnames),
        "qdisc": link.qdisc,
        "details": {**link.details, **special},
    }


def from_ip(entry: dict[str, Any]) -> dict[str, Any]:
    """Pick the same fields from the output of `ip -j -d link`."""
    info = entry.get("linkinfo", {})
    kind = info.get("info_kind")
    return {
        "ifindex": entry["ifindex"],
        "kind": kind,
        "operstate": entry["operstate"],
        "flags": ["UP" in entry["flags"], "LOWER_UP" in entry["flags"]],
        "promiscuous": entry["promiscuity"] > 0,
        "address": entry["address"],
        "mtu": entry["mtu"],
        "master": entry.get("master"),
        "link": entry.get("link"),
        "ifalias": entry.get("ifalias", ""),
        "altnames": entry.get("altnames", []),
        "qdisc": entry["qdisc"],
        "details": special_from_ip(kind, info.get("info_data", {})),
    }


def special_from_ip(kind: str | None, data: dict[str, Any]) -> dict[str, Any]:
    """Convert `linkinfo.info_data` to the names of the model."""
    match kind:
        case "vxlan":
            words = {
                "id": "vni",
                "group": "remote",
                "group6": "remote",
                "remote6": "remote",
                "local6": "local",
            }
            same = {"remote", "local", "link", "port", "learning", "proxy", "external"}
            return {words.get(key, key): value for key, value in data.items() if key in same | words.keys()}
        case "macvlan" | "macvtap":
            return {"mode": data["mode"]}
        case "ipvlan":
            return {"mode": data["mode"], "flag": data["flags"][0] if data.get("flags") else "bridge"}
        case "vlan":
            return {"id": data["id"], "protocol": data["protocol"]}
        case "bond":
            return {"mode": data["mode"], "miimon": data["miimon"]}
        case "tun":
            return {"mode": data["type"], "persist": data["persist"], "multi_queue": data["multi_queue"]}
        case "vrf":
            return {"table": data["table"]}
    return {}


def test_every_kind_is_read_as_ip_prints_it(host: ThrowawayHost) -> None:
    make_all_kinds(host)
    read = links_of(host)
    printed = {entry["ifname"]: from_ip(entry) for entry in host.json("ip -j -d link")}
    assert printed.keys() >= ALWAYS_THERE
    for name, expected in printed.items():
        assert as_ip_prints(read[name], read) == expected, name
    assert read.keys() == printed.keys()


def test_addresses_are_those_that_ip_prints(host: ThrowawayHost) -> None:
    host.run("ip link add v type veth peer name w")
    host.run("ip link set v up")
    for words in (
        "10.1.0.1/24",
        "10.1.0.2/24",
        "10.2.0.1 peer 10.2.0.9/32",
        "10.3.0.1/16 scope link",
        "fd01::1/64",
    ):
        host.run(f"ip addr add {words} dev v nodad" if "::" in words else f"ip addr add {words} dev v")
    for entry in host.json("ip -j addr"):
        printed = [
            (
                int(a["family"] == "inet6") * 2 + 4,
                a["local"],
                a["prefixlen"],
                a["scope"],
                a.get("address", ""),
            )
            for a in entry["addr_info"]
        ]
        read = links_of(host)[entry["ifname"]].addresses
        assert [(a.family, a.address, a.prefixlen, a.scope, a.peer) for a in read] == printed


def test_offloads_are_those_that_ethtool_prints(host: ThrowawayHost) -> None:
    host.run("ip link add v type veth peer name w")
    host.run("ethtool -K v tso off gro on tx-udp-segmentation off", check=False)
    words = {
        "rx-checksumming": "rx-checksumming", "tx-checksumming": "tx-checksumming", "sg": "scatter-gather",
        "tso": "tcp-segmentation-offload", "gso": "generic-segmentation-offload",
        "gro": "generic-receive-offload", "lro": "large-receive-offload", "rxvlan": "rx-vlan-offload",
        "txvlan": "tx-vlan-offload", "tx-udp-segmentation": "tx-udp-segmentation", "highdma": "highdma",
        "rx-gro-list": "rx-gro-list", "tx-nocache-copy": "tx-nocache-copy",
    }  # fmt: skip
    for name in ("v", "w", "lo"):
        (printed,) = host.json(f"ethtool --json -k {name}")
        expected = {ours for ours, theirs in words.items() if printed[theirs]["active"]}
        assert expected == set(links_of(host)[name].offloads) & words.keys(), name
    assert "tso" not in links_of(host)["v"].offloads
    assert "tso" in links_of(host)["w"].offloads


@pytest.mark.parametrize(
    "alias", ["[red]bold[/]\x1b[31m", "two\nlines\ttab", "\u202eright to left", "x" * 255, "\udcff\udcfe raw"]
)
def test_an_alias_stays_verbatim(host: ThrowawayHost, alias: str) -> None:
    host.run("ip link add v type veth peer name w")
    subprocess.run(
        [b"nsenter", f"--net=/run/netns/{host.name}".encode(), b"ip", b"link", b"set", b"v", b"alias",
         os.fsencode(alias)], check=True,
    )  # fmt: skip
    assert links_of(host)["v"].alias == alias


def test_a_link_name_of_odd_bytes_stays_verbatim(host: ThrowawayHost) -> None:
    name = b"\xff\x1b[7m[b]\xe2\x80\xae"
    subprocess.run(
        [
            b"nsenter",
            f"--net=/run/netns/{host.name}".encode(),
            b"ip",
            b"link",
            b"add",
            name,
            b"type",
            b"bridge",
        ],
        check=True,
    )
    assert os.fsdecode(name) in links_of(host)


def test_namespace_ids_are_those_of_ip_netns(inside_host: ThrowawayHost) -> None:
    host = inside_host
    host.run("ip link add br0 type bridge")
    for number in range(3):
        host.container(f"c{number}", "br0", f"10.0.0.{number + 2}/24")
    host.run(f"ip link add side type veth peer name side netns {host.full('c2')}", inside="c1")
    nets = nets_of(host)
    names = {name: host.inode_of(name) for name in nets}
    assert {link.lower_nsid for net in nets.values() for link in net.links.values()} >= {None, 0}
    for name, net in nets.items():
        listed = {e["nsid"]: e.get("name", "") for e in host.json("ip -j netns list-id", inside=name)}
        wanted = {e.get("link_netnsid") for e in host.json("ip -j link", inside=name)} - {None}
        expected = {nsid: names[listed[nsid].removeprefix(f"{host.prefix}-")] for nsid in wanted}
        assert net.nsids == expected, name
    assert set(nets["c1"].nsids.values()) == {names["host"], names["c2"]}


def peer_name(host: ThrowawayHost, found: dict[int, Namespace], name: str) -> tuple[int, str] | None:
    """Return the namespace and the name of the peer of one of the host's links."""
    nets = read_nets(found.values())
    (end,) = (link for link in nets[host.inode].links.values() if link.name == name)
    peer = resolve(nets).get(end.key)
    return (peer.ns, nets[peer.ns].links[peer.ifindex].name) if peer else None


@pytest.mark.parametrize("fixture", ["host", "inside_host"])
def test_peers_are_found_in_namespaces_without_name_and_process(
    request: pytest.FixtureRequest, fixture: str
) -> None:
    host: ThrowawayHost = request.getfixturevalue(fixture)
    name = host.namespace("held")
    inode = host.inode_of("held")
    with holder("unshare", "--net", *shell("")) as (nameless, _), holder(*shell(f"exec 7</run/netns/{name}")):
        host.run(f"ip link add one type veth peer name far1 netns {nameless.pid}")
        host.run(f"ip link add two type veth peer name far2 netns {name}")
        host.run("ip link add here1 type veth peer name here2")
        subprocess.run(["ip", "netns", "del", name], check=True)
        found, _ = read_namespaces(deep=True)
        assert peer_name(host, found, "one") == (inode_of(f"/proc/{nameless.pid}/ns/net"), "far1")
        assert peer_name(host, found, "two") == (inode, "far2")
        pids = (*found[inode].pids, os.getpid())
        found[inode] = replace(found[inode], pids=pids, entry=f"/proc/{os.getpid()}/ns/net")
        assert peer_name(host, found, "two") == (inode, "far2"), (
            "by another reference where the entry leads elsewhere"
        )
        assert peer_name(host, found, "here1") == (host.inode, "here2")
        del found[inode]
        assert peer_name(host, found, "two") is None


def test_a_namespace_that_vanished_is_left_out(host: ThrowawayHost) -> None:
    name = host.namespace("a")
    gone = host.inode_of("a")
    found, _ = read_namespaces(deep=False)
    subprocess.run(["ip", "netns", "del", name], check=True)
    nets = read_nets([found[gone], found[host.inode]])
    assert list(nets) == [host.inode]
    assert {int(row["ns"]) for row in read_stats([found[gone], found[host.inode]]).rows} == {host.inode}


def test_counters_are_read_separately(host: ThrowawayHost) -> None:
    quiet = ["sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1"]
    host.namespace("c")
    host.run(quiet)
    host.run(quiet, inside="c")
    host.run(f"ip link add v0 type veth peer name eth0 netns {host.full('c')}")
    host.run("ip addr add 10.0.0.1/24 dev v0")
    host.run("ip addr add 10.0.0.2/24 dev eth0", inside="c")
    host.run("ip link set v0 up")
    host.run("ip link set eth0 up", inside="c")
    wait_until(lambda: links_of(host)["v0"].state == "up")
    before = net_of(host).links
    host.run("ping -c3 -i0.01 -s 900 10.0.0.2")
    assert net_of(host).links == before
    found, _ = read_namespaces(deep=False)
    rows = {int(row["ifindex"]): row for row in read_stats([found[host.inode]]).rows}
    for entry in host.json("ip -j -s link"):
        row, printed = rows[entry["ifindex"]], entry["stats64"]
        if entry["ifname"] == "v0":
            assert printed["tx"]["bytes"] > 2700
        for side in ("rx", "tx"):
            for counter in ("packets", "bytes", "errors", "dropped"):
                assert row[f"{side}_{counter}"] == printed[side][counter], (entry["ifname"], side, counter)

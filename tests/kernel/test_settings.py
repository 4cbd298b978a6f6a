"""Check settings of links, listening sockets and elements of sets against sysctl, ss and nft."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator

import pytest

from core.collect.firewall import read_firewall
from core.collect.sockets import read_all_listeners
from core.model import IpSettings, Listener, Namespace
from core.netlink.netns import entered
from tests.kernel.reading import net_of
from tests.support.host import ThrowawayHost

pytestmark = pytest.mark.root


@pytest.fixture
def linked(host: ThrowawayHost) -> ThrowawayHost:
    host.run("ip link add v0 type veth peer name w0")
    host.run("ip link set v0 up")
    return host


def space(host: ThrowawayHost) -> Namespace:
    return Namespace(host.inode, entry=f"/run/netns/{host.name}")


def settings_of(host: ThrowawayHost) -> dict[tuple[int, str], IpSettings]:
    net = net_of(host)
    names = {0: "all", **{index: link.name for index, link in net.links.items()}}
    return {(one.family, names[one.ifindex]): one for one in net.settings}


def sysctl(host: ThrowawayHost, key: str) -> int:
    return int(host.run(f"sysctl -n {key}").strip())


def test_settings_are_those_of_sysctl(linked: ThrowawayHost) -> None:
    linked.run(
        "sysctl -qw net.ipv4.conf.v0.forwarding=1 net.ipv4.conf.v0.rp_filter=2 net.ipv4.conf.all.rp_filter=1 "
        "net.ipv4.conf.w0.proxy_arp=1 net.ipv6.conf.all.forwarding=1 net.ipv6.conf.v0.proxy_ndp=1"
    )
    found = settings_of(linked)
    assert {name for _, name in found} == {"all", "lo", "v0", "w0"}
    for (family, name), one in found.items():
        folder = f"net.ipv{family}.conf.{name}"
        assert one.forwarding == bool(sysctl(linked, f"{folder}.forwarding")), (family, name)
        proxy = "proxy_arp" if family == 4 else "proxy_ndp"
        assert one.proxy == bool(sysctl(linked, f"{folder}.{proxy}")), (family, name)
        if family == 4:
            assert one.rp_filter == sysctl(linked, f"{folder}.rp_filter"), name


def test_settings_of_links_in_their_messages(linked: ThrowawayHost) -> None:
    linked.run("ip link set v0 arp off")
    linked.run("sysctl -qw net.ipv4.conf.v0.arp_ignore=2 net.ipv6.conf.w0.disable_ipv6=1")
    links = {one.name: one for one in net_of(linked).links.values()}
    flags = {one["ifname"]: one["flags"] for one in linked.json("ip -j link show")}
    for name, link in links.items():
        assert link.arp_off == ("NOARP" in flags[name]), name
        assert link.arp_ignore == sysctl(linked, f"net.ipv4.conf.{name}.arp_ignore"), name
        assert link.ipv6_disabled == bool(sysctl(linked, f"net.ipv6.conf.{name}.disable_ipv6")), name


@pytest.fixture
def listening(host: ThrowawayHost) -> Iterator[ThrowawayHost]:
    host.run("ip link set lo up")
    sockets = []
    with entered(f"/run/netns/{host.name}"):
        sockets.append(socket.create_server(("127.0.0.1", 8001)))
        sockets.append(socket.create_server(("0.0.0.0", 8002)))
        sockets.append(socket.create_server(("::", 8003), family=socket.AF_INET6, dualstack_ipv6=True))
        sockets.append(socket.create_server(("::", 8004), family=socket.AF_INET6, dualstack_ipv6=False))
        for port in (8005, 0):  # a port that the kernel chooses is a client's
            sockets.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            sockets[-1].bind(("0.0.0.0", port))
    yield host
    for one in sockets:
        one.close()


def test_listeners_are_those_of_ss(listening: ThrowawayHost) -> None:
    found = read_all_listeners({listening.inode: space(listening)})[listening.inode]
    assert Listener("tcp", "::", 8004, True) in found and Listener("tcp", "::", 8003) in found
    listed = set()
    for line in listening.run("ss -Hltun").splitlines():
        words = line.split()
        address, _, port = words[4].rpartition(":")
        listed.add((words[0], address.strip("[]").split("%")[0].replace("*", "::"), int(port)))
    assert {(one.l4_proto, one.address, one.port) for one in found} == {
        one for one in listed if one[0] == "tcp" or one[2] < 32768
    }


def test_elements_of_sets_are_those_of_nft(host: ThrowawayHost) -> None:
    host.run(
        ["nft", "table inet f {\nset hosts { type ipv4_addr; flags interval; "
         "elements = { 10.0.0.1, 10.1.0.0/16 }; }\n"
         "set ports { type inet_service; elements = { 80, 443 }; }\n"
         "map to { type inet_service : ipv4_addr; elements = { 8080 : 10.0.0.9 }; }\n}\n"]
    )  # fmt: skip
    firewall = read_firewall(space(host))
    assert {name: set(found) for name, found in firewall.sets.items()} == {
        "inet/f/hosts": {"10.0.0.1", "10.1.0.0/16"},
        "inet/f/ports": {"80", "443"},
        "inet/f/to": {"8080"},
    }
    listed = json.loads(host.run("nft -j list ruleset"))["nftables"]
    assert {one["set"]["name"] for one in listed if "set" in one} == {"hosts", "ports"}


def test_the_links_of_a_netdev_chain(linked: ThrowawayHost) -> None:
    linked.run(
        ["nft", "table netdev f {\nchain in {\ntype filter hook ingress device v0 priority 0;\n}\n}\n"]
    )
    (chain,) = read_firewall(space(linked)).chains
    assert chain.links == ("v0",) and re.search(r'device "v0"', linked.run("nft list ruleset"))

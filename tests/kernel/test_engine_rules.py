"""The networks and rules views, with rule sets of several engines and versions."""

from __future__ import annotations

from typing import Any

import pytest

from core.collect.firewall import read_firewall
from core.collect.links import read_nets
from core.collect.processes import read_unmanaged
from core.model import Host, Namespace, Snapshot
from core.nat import nat_entries
from core.networks import all_networks
from tests.kernel import engine_rules
from tests.support.host import ThrowawayHost

pytestmark = pytest.mark.root


@pytest.fixture
def engine(host: ThrowawayHost) -> ThrowawayHost:
    """Create the bridges and containers that the rules match."""
    for bridge, address in engine_rules.BRIDGES.items():
        host.run(f"ip link add {bridge} type bridge")
        host.run(f"ip addr add {address} dev {bridge}")
        host.run(f"ip link set {bridge} up")
    for bridge, address in engine_rules.BRIDGES6.items():
        host.run(f"ip addr add {address} dev {bridge} nodad")
    host.run("sysctl -qw net.ipv4.ip_forward=1")
    host.container("web", "br-app", "10.201.0.2/24", "10.201.0.1")
    host.container("lan", "br-lan", "10.202.0.2/24", "10.202.0.1")
    return host


def load(host: ThrowawayHost, command: str, text: str) -> None:
    """Run a command that loads rules."""
    host.run(["sh", "-c", f"{command} <<'END'\n{text}END\n"])


def shown(host: ThrowawayHost) -> dict[str, Any]:
    """Return entries and networks by name, as the views show them."""
    spaces = {
        host.inode_of(short): Namespace(
            host.inode_of(short), names=(host.full(short),), entry=f"/run/netns/{host.full(short)}"
        )
        for short in ("host", "web", "lan")
    }
    firewall = read_firewall(spaces[host.inode])
    assert firewall.problems == ()
    containers = {inode: space for inode, space in spaces.items() if inode != host.inode}
    snapshot = Snapshot(
        host=Host(netns=host.inode),
        namespaces=spaces,
        engines={"plain": read_unmanaged(containers, frozenset(), ())},
        nets=read_nets(spaces.values()),
        firewalls={host.inode: firewall},
    )
    networks = all_networks(snapshot)
    entries = nat_entries(snapshot, networks)
    return {
        "names": {one.name for one in entries},
        "sentences": {one.sentence for one in entries},
        "containers": {one.name: list(one.containers) for one in entries},
        "kinds": {one.name: one.kind for one in networks},
    }


def test_docker_28_shows_what_it_drops_before_routing(engine: ThrowawayHost) -> None:
    load(engine, "iptables-nft-restore", engine_rules.DOCKER_28)
    found = shown(engine)
    assert found["names"] >= {
        "drop !br-app -> 10.201.0.2",
        "accept up0 -> 10.201.0.2",
        "drop !lo -> 127.0.0.1 tcp 8081",
        "drop !br-app -> br-app",
    }
    web = engine.full("web")
    assert (
        f"drop: everything from anywhere except br-app to {web} (10.201.0.2), before routing and NAT"
        in found["sentences"]
    )
    assert found["containers"]["drop !br-app -> 10.201.0.2"] == [f"netns:{web}"]
    assert found["kinds"] == {"docker0": "nat", "br-app": "nat", "br-lan": "internal"}


def test_docker_20_shows_no_unreachable_rule(engine: ThrowawayHost) -> None:
    load(engine, "iptables-nft-restore", engine_rules.DOCKER_20)
    load(engine, "ip6tables-nft-restore", engine_rules.DOCKER_20_IPV6)
    found = shown(engine)
    drops = {name for name in found["names"] if name.startswith("drop")}
    assert drops == {"drop docker0 -> br-app", "drop br-app -> docker0"}
    assert f"{engine.full('web')} tcp 8080 -> 10.201.0.2:80" in found["names"]
    assert found["kinds"]["br-app"] == "nat"


def test_docker_29_shows_what_is_behind_its_verdict_maps(engine: ThrowawayHost) -> None:
    load(engine, "nft -f -", engine_rules.DOCKER_NFT)
    found = shown(engine)
    assert found["names"] >= {
        "drop * -> br-app",
        "drop * -> docker0",
        "accept br-app -> br-app",
        "accept br-app -> *",
        "accept * -> br-app established,related",
        "drop !br-app -> 10.201.0.2",
        "drop !lo -> 127.0.0.1 tcp 8081",
        f"{engine.full('web')} tcp 8080 -> 10.201.0.2:80",
    }
    assert "drop: everything else from anywhere to br-app" in found["sentences"]
    assert not {name for name in found["names"] if name.startswith(("drop * -> *", "accept * -> *"))}
    assert found["kinds"] == {"br-app": "nat", "docker0": "nat", "br-lan": "internal"}


def test_netavark_2_isolates_networks_only_from_each_other(engine: ThrowawayHost) -> None:
    load(engine, "nft -f -", engine_rules.NETAVARK_2)
    found = shown(engine)
    drops = {sentence for sentence in found["sentences"] if sentence.startswith("drop")}
    assert drops == {
        "drop: everything from docker0, br-lan to br-app",
        "drop: everything from br-app, br-lan to docker0",
        "drop: everything from docker0, br-app to br-lan",
    }
    assert "masquerade packets marked 0x00002000/0x00002000" in found["names"]
    assert not {name for name in found["names"] if "everything" in name}
    assert found["kinds"]["br-app"] == "nat"


@pytest.mark.parametrize("verdict", ["drop", "accept"])
def test_a_verdict_map_decides_by_itself(engine: ThrowawayHost, verdict: str) -> None:
    engine.run("nft add table ip t")
    engine.run(["nft", "add chain ip t f { type filter hook forward priority 0; }"])
    engine.run(["nft", f'add rule ip t f iifname vmap {{ "br-app" : {verdict}, "br-lan" : continue }}'])
    assert shown(engine)["names"] == {f"{verdict} br-app -> *"}


DROPS = """
table netdev early {
    chain in { type filter hook ingress device "br-app" priority 0; ip saddr 10.201.0.2 tcp dport 80 drop; }
}
table inet late {
    set s { type ipv4_addr . inet_service; elements = { 10.201.0.2 . 80 }; }
    chain f {
        type filter hook forward priority 0;
        ip daddr . tcp dport @s drop
        udp dport 53 counter drop
        tcp sport 25 drop
        ct state invalid drop
        udp dport 54 accept
        reject
    }
}
"""


def test_drops_that_name_no_side_are_shown(engine: ThrowawayHost) -> None:
    """Drops by port, set, a link's ingress, or the rest, but not of invalid packets."""
    load(engine, "nft -f -", DROPS)
    found = shown(engine)
    assert found["names"] == {
        "drop 10.201.0.2 -> * tcp 80",
        "drop * -> * some packets",
        "drop * -> * udp 53",
        "drop * -> * tcp",
        "reject * -> *",
    }
    assert found["sentences"] >= {
        "drop: everything from anywhere to anywhere, under further conditions",
        "drop: tcp from port 25 from anywhere to anywhere",
        "reject: everything else from anywhere to anywhere",
    }

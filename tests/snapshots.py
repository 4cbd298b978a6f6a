"""Hand-built hosts for tests of pure code and of the screen: nothing here reads the machine."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from core.model import (
    CONNTRACK_DTYPE,
    NAMESPACE_KINDS,
    STATS_DTYPE,
    Address,
    BridgePort,
    BridgeSettings,
    Chain,
    Conntrack,
    Container,
    Endpoint,
    Engine,
    FdbEntry,
    Firewall,
    FirewallRule,
    Host,
    Link,
    LinkKey,
    LinkStats,
    Namespace,
    Neighbour,
    NetState,
    Network,
    NextHop,
    PolicyRule,
    PublishedPort,
    Route,
    Snapshot,
)
from core.rates import RateMeter, Rates

HOST = 4026531840
HOST_KINDS = {
    kind: HOST if kind == "net" else 4026531830 + place for place, kind in enumerate(NAMESPACE_KINDS)
}
HOSTILE_NAME = "[red]x[/]\x1b[31m\n\u202eevil"


@dataclass
class HostBuilder:
    """A host in the making: add links, containers and rules, then `snapshot()`."""

    spaces: dict[int, Namespace] = field(default_factory=dict)
    links: dict[int, dict[int, Link]] = field(default_factory=dict)
    fdb: dict[int, list[FdbEntry]] = field(default_factory=dict)
    routes: dict[int, list[Route]] = field(default_factory=dict)
    policy: dict[int, list[PolicyRule]] = field(default_factory=dict)
    neighbours: dict[int, list[Neighbour]] = field(default_factory=dict)
    containers: list[Container] = field(default_factory=list)
    networks: list[Network] = field(default_factory=list)
    rules: list[FirewallRule] = field(default_factory=list)
    flows: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.namespace(HOST, is_host=True, pids=(1,), command="systemd", entry="/proc/1/ns/net")

    def namespace(self, inode: int, **fields: Any) -> int:
        """Add a namespace with a loopback link."""
        self.spaces[inode] = Namespace(inode, **fields)
        self.link(inode, "lo", "loopback", ("127.0.0.1/8",), mtu=65536, state="unknown")
        return inode

    def link(
        self, ns: int, name: str, kind: str, addresses: Iterable[str] = (), **fields: Any
    ) -> Link:  # fmt: skip
        """Add a link that is up, unless the fields say otherwise."""
        there = self.links.setdefault(ns, {})
        ifindex = fields.pop("ifindex", len(there) + 1)
        mac = (
            "" if kind == "loopback" else f"02:42:{ns % 256:02x}:00:{ifindex // 256:02x}:{ifindex % 256:02x}"
        )
        usual = {"state": "up", "admin_up": True, "carrier": True, "mtu": 1500, "mac": mac}
        made = Link(ns, ifindex, name, kind, addresses=tuple(map(address, addresses)), **(usual | fields))
        there[ifindex] = made
        return made

    def bridge(self, name: str, addresses: Iterable[str] = (), **fields: Any) -> Link:
        """Add a bridge to the host."""
        settings = fields.pop("bridge", BridgeSettings(bridge_id="8000.02:42:00:00:00:01"))
        return self.link(HOST, name, "bridge", addresses, bridge=settings, **fields)

    def wire(
        self,
        ns: int,
        bridge: Link,
        port: str,
        addresses: Iterable[str] = (),
        name: str = "eth0",
        **fields: Any,
    ) -> Link:
        """Join a namespace to a bridge by a veth pair; `fields` go to the inner end. Returns the outer end."""
        outer_index = len(self.links[HOST]) + 1
        inner_index = len(self.links[ns]) + 1
        inner = self.link(
            ns, name, "veth", addresses, **({"lower": outer_index, "lower_nsid": 0} | fields)
        )  # fmt: skip
        outer = self.link(
            HOST, port, "veth", master=bridge.ifindex, lower=inner_index, lower_nsid=ns,
            port=BridgePort("forwarding", cost=2, priority=32),
        )  # fmt: skip
        self.fdb.setdefault(HOST, []).append(FdbEntry(inner.mac, outer.ifindex, bridge.ifindex))
        self.neighbours.setdefault(HOST, []).extend(
            Neighbour(one.family, one.address, inner.mac, bridge.ifindex, "reachable")
            for one in inner.addresses
        )
        return outer

    def container(self, runtime: str, name: str, ns: int | None, **fields: Any) -> Container:
        """Add a container; all its namespaces but `ns` are its own, unless `namespaces` says otherwise."""
        number = len(self.containers) + 1
        own = {kind: 4026540000 + number * 10 + place for place, kind in enumerate(NAMESPACE_KINDS)}
        own["user"] = HOST_KINDS["user"]
        spaces = fields.pop("namespaces", {} if ns is None else own | {"net": ns})
        usual = {"id": f"{number:02d}" * 32, "pid": 1000 + number, "image": "busybox:local"}
        made = Container(runtime, name=name, namespaces=spaces, **(usual | fields))
        self.containers.append(made)
        return made

    def rule(self, chain: str, text: str, **fields: Any) -> FirewallRule:
        """Add an iptables-nft rule to the host's nat table, or to the one that `table` names."""
        usual = {"backend": "iptables-nft", "family": "ip", "table": "nat", "packets": 0, "bytes": 0}
        rule_id = f"ip/{fields.get('table', 'nat')}/{chain}/{len(self.rules) + 1}"
        made = FirewallRule(chain=chain, rule_id=rule_id, text=text, **(usual | fields))
        self.rules.append(made)
        return made

    def flow(self, l4_proto: int, original: tuple, reply: tuple, **fields: Any) -> None:
        """Add a conntrack entry; tuples are (source, source port, destination, destination port)."""
        sides = dict(zip(("orig_src", "orig_sport", "orig_dst", "orig_dport"), original, strict=True))
        sides |= dict(zip(("reply_src", "reply_sport", "reply_dst", "reply_dport"), reply, strict=True))
        self.flows.append({"l4_proto": l4_proto, **sides, **fields})

    def snapshot(self, **fields: Any) -> Snapshot:
        """The host as it stands."""
        nets = {ns: self._net(ns) for ns in self.spaces}
        by_engine: dict[str, list[Container]] = {}
        for container in self.containers:
            name = container.runtime if container.runtime in ("docker", "podman") else "plain"
            by_engine.setdefault(name, []).append(container)
        engines = {name: Engine(name, "ok", containers=tuple(group)) for name, group in by_engine.items()}
        if "docker" in engines:
            engines["docker"] = replace(engines["docker"], version="26.1", networks=tuple(self.networks))
        usual: dict[str, Any] = {
            "taken_at": 1_700_000_000.0,
            "host": Host("lab", "6.12.0", HOST, HOST_KINDS, sysctls={"net.ipv4.ip_forward": "1"}),
            "firewalls": {HOST: Firewall(HOST, CHAINS, tuple(self.rules))},
            "conntracks": {HOST: conntrack(HOST, self.flows)},
        }
        return Snapshot(namespaces=self.spaces, nets=nets, engines=engines, **(usual | fields))

    def _net(self, ns: int) -> NetState:
        links = self.links[ns]
        ids = {
            link.lower_nsid: link.lower_nsid or HOST for link in links.values() if link.lower_nsid is not None
        }
        return NetState(
            ns, links,
            routes=tuple(self.routes.get(ns, ())), rules=tuple(self.policy.get(ns, ())),
            neighbours=tuple(self.neighbours.get(ns, ())), fdb=tuple(self.fdb.get(ns, ())), nsids=ids,
        )  # fmt: skip


CHAINS = (
    Chain("iptables-nft", "ip", "nat", "POSTROUTING", "postrouting", "nat", 100, "accept"),
    Chain("iptables-nft", "ip", "nat", "PREROUTING", "prerouting", "nat", -100, "accept"),
    Chain("iptables-nft", "ip", "nat", "DOCKER"),
    Chain("iptables-nft", "ip", "filter", "FORWARD", "forward", "filter", 0, "drop"),
)


def address(text: str) -> Address:
    """An address of a link from "192.0.2.1/24"."""
    host, _, length = text.partition("/")
    parsed = ipaddress.ip_address(host)
    scope = "link" if parsed.is_link_local else "host" if parsed.is_loopback else "global"
    return Address(parsed.version, host, int(length), scope)


def conntrack(ns: int, flows: Iterable[Mapping[str, Any]]) -> Conntrack:
    """A conntrack table from flows as HostBuilder.flow takes them."""
    flows = list(flows)
    entries = np.zeros(len(flows), CONNTRACK_DTYPE)
    for number, flow in enumerate(flows):
        usual = {"id": 7000 + number, "status": 0x18E, "timeout": 300, "family": 4, "counted": True}
        for name, value in (usual | flow).items():
            entries[number][name] = packed(value) if name.endswith(("_src", "_dst")) else value
    entries.flags.writeable = False
    return Conntrack(ns, entries, limit=262144, accounting=True, taken_at=1_700_000_000.0)


def packed(text: str) -> np.ndarray:
    """An address as conntrack columns hold it."""
    raw = ipaddress.ip_address(text).packed
    return np.frombuffer(raw if len(raw) == 16 else b"\0" * 10 + b"\xff\xff" + raw, "u1")


def small_builder() -> HostBuilder:
    """A host with two NAT networks and an internal one, eight containers in all four models, and faults: an
    MTU mismatch (web2), a dead joined namespace (orphan), a FORWARD drop."""
    host = HostBuilder()
    host.link(HOST, "eth0", "physical", ("192.0.2.1/24",))
    docker0 = host.bridge("docker0", ("172.17.0.1/16",))
    app = host.bridge("br-app", ("172.18.0.1/16",))
    db = host.bridge("br-db", ("172.19.0.1/24",))
    _networks(host)
    web1_ns, web2_ns, api_ns, db_ns, old_ns, closed_ns, plain_ns = (
        host.namespace(HOST + 1000 + number, pids=(1001 + number,), command="sh") for number in range(7)
    )
    _wire_all(host, (docker0, app, db), (web1_ns, web2_ns, api_ns, db_ns, plain_ns))
    host.spaces[plain_ns] = replace(host.spaces[plain_ns], names=("blue",), pids=())
    _containers(host, web1_ns, web2_ns, api_ns, db_ns, old_ns, closed_ns, plain_ns)
    _rules(host)
    _flows(host)
    _routes(host, web1_ns)
    return host


def _networks(host: HostBuilder) -> None:
    host.networks += [
        Network("docker", "net-bridge", "bridge", "bridge", "", HOST, "docker0", ("172.17.0.0/16",), ("172.17.0.1",)),
        Network("docker", "net-app", "app", "bridge", "", HOST, "br-app", ("172.18.0.0/16",), ("172.18.0.1",)),
        Network(
            "docker", "net-db", "db", "bridge", "", HOST, "br-db", ("172.19.0.0/24",), ("172.19.0.1",), internal=True
        ),
        Network("docker", "net-host", "host", "host", ns=HOST),
        Network("docker", "net-none", "none", "null"),
    ]  # fmt: skip


def _wire_all(host: HostBuilder, bridges: tuple[Link, ...], spaces: tuple[int, ...]) -> None:
    docker0, app, db = bridges
    web1, web2, api, database, plain = spaces
    host.wire(web1, app, "veth-web1", ("172.18.0.2/16",))
    host.wire(web2, app, "veth-web2", ("172.18.0.3/16",), mtu=1400)
    host.wire(api, app, "veth-api", ("172.18.0.4/16",))
    host.wire(api, db, "veth-apidb", ("172.19.0.4/24",), name="eth1")
    host.wire(database, db, "veth-db", ("172.19.0.2/24",))
    host.wire(plain, docker0, "veth-blue", ("172.17.0.9/16",))


def _containers(host: HostBuilder, *spaces: int) -> None:
    web1, web2, api, database, old, closed, plain = spaces
    first = host.container(
        "docker", "web1", web1, network_mode="app", ports=(PublishedPort("tcp", "", 8080, 80),),
        endpoints=(Endpoint("app", "172.18.0.2/16", gateway="172.18.0.1"),), labels={"tier": "front"},
    )  # fmt: skip
    host.container(
        "docker", "web2", web2, network_mode="app", ports=(PublishedPort("tcp", "127.0.0.1", 8081, 80),),
        endpoints=(Endpoint("app", "172.18.0.3/16"),),
    )  # fmt: skip
    host.container(
        "docker", "api", api, network_mode="app",
        endpoints=(Endpoint("app", "172.18.0.4/16"), Endpoint("db", "172.19.0.4/24")),
    )  # fmt: skip
    host.container(
        "docker", "db", database, network_mode="db", endpoints=(Endpoint("db", "172.19.0.2/24"),)
    )  # fmt: skip
    host.container("docker", "sidecar", web1, network_mode=f"container:{first.id}")
    host.container("docker", "orphan", old, network_mode="container:" + "ff" * 32)
    host.container("docker", "vault", closed, network_mode="none", endpoints=(Endpoint("none"),))
    host.container("docker", "monitor", HOST, network_mode="host", endpoints=(Endpoint("host"),))
    host.container("netns", "blue", plain, id="blue", pid=None, image="", namespaces={"net": plain})


def _rules(host: HostBuilder) -> None:
    host.rule(
        "POSTROUTING", "-A POSTROUTING -s 172.18.0.0/16 ! -o br-app -j MASQUERADE",
        src="172.18.0.0/16", oif="!br-app", verdict="masquerade", packets=1200, bytes=96_000,
    )  # fmt: skip
    host.rule(
        "POSTROUTING", "-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE",
        src="172.17.0.0/16", oif="!docker0", verdict="masquerade", packets=4, bytes=240,
    )  # fmt: skip
    host.rule(
        "DOCKER", "-A DOCKER ! -i br-app -p tcp --dport 8080 -j DNAT --to-destination 172.18.0.2:80",
        iif="!br-app", l4_proto="tcp", dport="8080", verdict="dnat", to_address="172.18.0.2", to_port="80",
        packets=310, bytes=18_600,
    )  # fmt: skip
    host.rule(
        "DOCKER", "-A DOCKER -d 127.0.0.1/32 -p tcp --dport 8081 -j DNAT --to-destination 172.18.0.3:80",
        dst="127.0.0.1/32", l4_proto="tcp", dport="8081", verdict="dnat", to_address="172.18.0.3", to_port="80",
    )  # fmt: skip
    host.rule(
        "FORWARD", "-A FORWARD -s 172.18.0.3/32 -p udp --dport 53 -j DROP",
        table="filter", src="172.18.0.3/32", l4_proto="udp", dport="53", verdict="drop", packets=17, bytes=1200,
    )  # fmt: skip


def _flows(host: HostBuilder) -> None:
    host.flow(
        6, ("172.18.0.2", 41822, "198.51.100.7", 443), ("198.51.100.7", 443, "192.0.2.1", 41822),
        tcp_state=3, packets=[1200, 900], bytes=[96_000, 1_400_000], timeout=431_990,
    )  # fmt: skip
    host.flow(
        6, ("198.51.100.9", 50000, "192.0.2.1", 8080), ("172.18.0.2", 80, "198.51.100.9", 50000),
        tcp_state=3, packets=[30, 28], bytes=[4000, 90_000], timeout=431_000,
    )  # fmt: skip
    host.flow(
        17, ("172.18.0.4", 33333, "192.0.2.53", 53), ("192.0.2.53", 53, "192.0.2.1", 33333),
        packets=[1, 1], bytes=[70, 120], timeout=25,
    )  # fmt: skip


def _routes(host: HostBuilder, web1: int) -> None:
    links = host.links[HOST]
    by_name = {link.name: link.ifindex for link in links.values()}
    host.routes[HOST] = [
        Route(4, "default", nexthops=(NextHop("192.0.2.254", by_name["eth0"]),), protocol="static"),
        Route(4, "192.0.2.0/24", nexthops=(NextHop("", by_name["eth0"]),), protocol="kernel", scope="link"),
        Route(
            4, "172.18.0.0/16", nexthops=(NextHop("", by_name["br-app"]),), protocol="kernel", scope="link"
        ),
        Route(4, "192.0.2.1", "local", (NextHop("", by_name["eth0"]),), table="local", scope="host"),
        Route(4, "10.66.0.0/16", "blackhole"),
    ]
    host.policy[HOST] = [PolicyRule(4, 0, table="local"), PolicyRule(4, 32766)]
    host.routes[web1] = [Route(4, "default", nexthops=(NextHop("172.18.0.1", 2),))]


def small_host(**fields: Any) -> Snapshot:
    """The host of `small_builder`."""
    return small_builder().snapshot(**fields)


def empty_host() -> Snapshot:
    """A host with its NIC and nothing virtual on it."""
    host = HostBuilder()
    host.link(HOST, "eth0", "physical", ("192.0.2.1/24",))
    return host.snapshot()


def hostile_host() -> Snapshot:
    """A host where every name from outside holds markup, escape sequences, newlines and bidi overrides."""
    host = HostBuilder()
    bridge = host.bridge("br-[b]\x1b[1m")
    host.networks.append(Network("docker", HOSTILE_NAME, HOSTILE_NAME, "bridge", "", HOST, bridge.name))
    ns = host.namespace(
        HOST + 1, names=(HOSTILE_NAME, "\u202ertl", "n" * 255), pids=(4,), command=HOSTILE_NAME
    )
    host.wire(ns, bridge, "v\n\x07[/]", ("10.0.0.2/24",), alias=HOSTILE_NAME)
    host.container(
        "docker", HOSTILE_NAME, ns, labels={HOSTILE_NAME: HOSTILE_NAME}, image=HOSTILE_NAME,
        endpoints=(Endpoint(HOSTILE_NAME, "10.0.0.2/24"),), ports=(PublishedPort("tcp", "", 80, 80),),
    )  # fmt: skip
    host.container("docker", "n" * 255, ns, command=HOSTILE_NAME)
    host.rule("DOCKER", HOSTILE_NAME, comment=HOSTILE_NAME, verdict="dnat", to_address="10.0.0.2", dport="80")
    return host.snapshot()


def many_namespaces(count: int = 200) -> Snapshot:
    """A host with that many plain namespaces, each with a veth to one bridge."""
    host = HostBuilder()
    host.link(HOST, "eth0", "physical", ("192.0.2.1/24",))
    bridge = host.bridge("br-many", ("10.10.0.1/16",))
    for number in range(count):
        name = f"ns{number:03d}"
        ns = host.namespace(HOST + 10 + number, names=(name,))
        host.wire(ns, bridge, f"v{number:03d}", (f"10.10.{number // 250}.{number % 250 + 2}/16",))
        host.container("netns", name, ns, id=name, pid=None, image="", namespaces={"net": ns})
    return host.snapshot()


def rates_of(snapshot: Snapshot, bits: float = 8e6) -> Rates:
    """Rates as three readings give them: each link that is up receives `bits` a second times its ifindex and
    sends half of that."""
    keys = [link.key for link in snapshot.links() if link.state == "up"]
    meter = RateMeter()
    for second in range(3):
        rows = np.zeros(len(keys), STATS_DTYPE)
        for row, key in zip(rows, keys, strict=True):
            received = int(bits / 8 * LinkKey(*key).ifindex * second)
            row["ns"], row["ifindex"] = key
            row["rx_bytes"], row["tx_bytes"] = received, received // 2
            row["rx_packets"], row["tx_packets"] = received // 1000, received // 2000
        meter.feed(LinkStats(float(second), rows))
    return meter.rates

"""Make random hosts: bridges, containers, a router, servers, rules and faults."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from tests.kernel.reach_fuzz import faults, rules

WAN4, WAN6 = "192.0.2.10", "2001:db8::10"
FAR4, FAR6 = "203.0.113.80", "2001:db8:80::80"
OUTSIDE, HOST = "outside", "host"


@dataclass(frozen=True, slots=True)
class Server:
    """A server that answers on a port of an address ("" for any) in a namespace."""

    place: str
    protocol: str
    port: int
    address: str = ""


@dataclass(frozen=True, slots=True)
class Probe:
    """An attempt to reach a port of an address from a namespace; ICMP without a port."""

    source: str
    address: str
    protocol: str
    port: int = 0

    def __str__(self) -> str:
        return f"{self.source} -> {self.address} {self.protocol} {self.port or ''}".rstrip()


@dataclass(slots=True)
class Container:
    """A container: its links with bridge and addresses."""

    name: str
    links: list[tuple[str, str, str]] = field(default_factory=list)  # bridge, IPv4, IPv6

    @property
    def addresses(self) -> list[str]:
        """Return its addresses."""
        return [one for _, *own in self.links for one in own if one]


@dataclass(slots=True)
class Case:
    """A host as commands for sh(1), with what runs on it."""

    seed: int
    number: int
    bridges: list[tuple[str, str]] = field(default_factory=list)  # name, kind
    containers: list[Container] = field(default_factory=list)
    published: list[tuple[int, str, str, int]] = field(default_factory=list)  # port, protocol, to, port
    commands: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    servers: list[Server] = field(default_factory=list)
    probes: list[Probe] = field(default_factory=list)


def inside(name: str, command: str) -> str:
    """Return a command that runs in a namespace."""
    return command if name == HOST else f"nsenter --net=/run/netns/{name} {command}"


def make(seed: int, number: int) -> Case:
    """Make a case of a random number."""
    rng = random.Random(f"{seed}/{number}")
    case = Case(seed, number)
    _base(case)
    for place in range(rng.randint(1, 3)):
        _bridge(case, rng, place)
    for place in range(rng.randint(2, 6)):
        _container(case, rng, place)
    if rng.random() < 0.25:
        _nested(case, rng)
    if rng.random() < 0.25:
        _macvlan(case, rng)
    _servers(case, rng)
    rules.add(case, rng)
    for _ in range(rng.choice((0, 0, 1, 1, 1, 2, 3))):
        faults.add(case, rng)
    case.probes = list(dict.fromkeys(_probe(case, rng) for _ in range(10)))[:8]
    return case


_QUIET = (
    "for key in net/ipv6/conf/default/accept_dad=0 net/ipv6/conf/all/accept_dad=0 "
    "net/ipv6/conf/default/router_solicitations=0 net/ipv6/conf/default/autoconf=0; "
    "do {} sysctl -qw $key; done"
)


def _namespace(case: Case, name: str) -> None:
    enter = f"nsenter --net=/run/netns/{name}"
    case.commands += [f"ip netns add {name}", _QUIET.format(enter), f"ip -n {name} link set lo up"]


def _base(case: Case) -> None:
    case.commands += [_QUIET.format(""), "ip link set lo up"]
    _namespace(case, OUTSIDE)
    case.commands += [
        "ip link add eth0 type veth peer name wan0 netns outside",
        f"ip addr add {WAN4}/24 dev eth0",
        f"ip -6 addr add {WAN6}/64 dev eth0 nodad",
        "ip link set eth0 up",
        "ip -n outside addr add 192.0.2.1/24 dev wan0",
        "ip -n outside -6 addr add 2001:db8::1/64 dev wan0 nodad",
        f"ip -n outside addr add {FAR4}/32 dev lo",
        f"ip -n outside -6 addr add {FAR6}/128 dev lo",
        "ip -n outside link set wan0 up",
        "ip route add default via 192.0.2.1",
        "ip -6 route add default via 2001:db8::1",
        "sysctl -qw net/ipv4/ip_forward=1 net/ipv6/conf/all/forwarding=1",
    ]


def _bridge(case: Case, rng: random.Random, place: int) -> None:
    name, kind = f"br{place}", rng.choice(("nat", "nat", "routed", "internal"))
    case.bridges.append((name, kind))
    case.commands += [
        f"ip link add {name} type bridge",
        f"ip addr add 10.2{place}.0.1/24 dev {name}",
        f"ip -6 addr add fd00:2{place}::1/64 dev {name} nodad",
        f"ip link set {name} up",
    ]
    if kind == "routed":
        case.commands += [
            f"ip -n outside route add 10.2{place}.0.0/24 via {WAN4}",
            f"ip -n outside -6 route add fd00:2{place}::/64 via {WAN6}",
        ]


def _container(case: Case, rng: random.Random, place: int) -> None:
    one = Container(f"c{place}")
    _namespace(case, one.name)
    case.containers.append(one)
    count = 2 if rng.random() < 0.3 and len(case.bridges) > 1 else 1
    for number, (bridge, _) in enumerate(rng.sample(case.bridges, count)):
        net = bridge.removeprefix("br")
        families = rng.choice((4, 46, 46, 46, 6))
        ipv4 = f"10.2{net}.0.{10 + place}" if families != 6 else ""
        ipv6 = f"fd00:2{net}::{10 + place}" if families != 4 else ""
        one.links.append((bridge, ipv4, ipv6))
        _attach(case, one.name, number, bridge, ipv4, ipv6)
        if number == 0:
            _defaults(case, one.name, ipv4 and f"10.2{net}.0.1", ipv6 and f"fd00:2{net}::1")


def _attach(case: Case, name: str, number: int, bridge: str, ipv4: str, ipv6: str) -> None:
    port = f"v{name}{number}"
    case.commands += [
        f"ip link add {port} type veth peer name eth{number} netns {name}",
        f"ip link set {port} master {bridge} up",
    ]
    _address(case, name, f"eth{number}", ipv4, ipv6)


def _address(case: Case, name: str, link: str, ipv4: str, ipv6: str) -> None:
    case.commands += [f"ip -n {name} addr add {ipv4}/24 dev {link}"] if ipv4 else []
    case.commands += [f"ip -n {name} -6 addr add {ipv6}/64 dev {link} nodad"] if ipv6 else []
    case.commands.append(f"ip -n {name} link set {link} up")


def _defaults(case: Case, name: str, ipv4: str, ipv6: str) -> None:
    case.commands += [f"ip -n {name} route add default via {ipv4}"] if ipv4 else []
    case.commands += [f"ip -n {name} -6 route add default via {ipv6}"] if ipv6 else []


def _nested(case: Case, rng: random.Random) -> None:
    """Add a bridge on a bridge, with a container."""
    outer = rng.choice(case.bridges)[0]
    net = outer.removeprefix("br")
    case.commands += [
        "ip link add nested type bridge",
        "ip link set nested up",
        "ip link add up0 type veth peer name up1",
        f"ip link set up0 master {outer} up",
        "ip link set up1 master nested up",
    ]
    one = Container("deep", [(outer, f"10.2{net}.0.40", f"fd00:2{net}::40")])
    _namespace(case, one.name)
    case.containers.append(one)
    _attach(case, one.name, 0, "nested", *one.links[0][1:])
    _defaults(case, one.name, f"10.2{net}.0.1", f"fd00:2{net}::1")


def _macvlan(case: Case, rng: random.Random) -> None:
    """Add a container with a macvlan on the uplink."""
    one = Container("mac", [("", "192.0.2.40", "2001:db8::40")])
    _namespace(case, one.name)
    case.containers.append(one)
    mode = rng.choice(("bridge", "bridge", "private", "vepa"))
    case.commands.append(f"ip link add mv0 link eth0 netns {one.name} type macvlan mode {mode}")
    case.commands.append(f"ip -n {one.name} link set mv0 name eth0")
    _address(case, one.name, "eth0", *one.links[0][1:])
    _defaults(case, one.name, "192.0.2.1", "2001:db8::1")


def _servers(case: Case, rng: random.Random) -> None:
    case.servers += [Server(HOST, "tcp", 22), Server(HOST, "udp", 123)]
    case.servers += [Server(OUTSIDE, "tcp", 443), Server(OUTSIDE, "udp", 53)]
    for one in case.containers:
        for protocol, port in (("tcp", 80), ("udp", 53)):
            where = rng.choice(("", "", "", "", "loopback", "own", "none"))
            address = {"loopback": "127.0.0.1", "own": rng.choice(one.addresses)}.get(where, "")
            if where != "none":
                case.servers.append(Server(one.name, protocol, port, address))


def _probe(case: Case, rng: random.Random) -> Probe:
    source = rng.choice([*(one.name for one in case.containers), HOST, OUTSIDE])
    if case.published and rng.random() < 0.35:
        port, protocol, target, _ = rng.choice(case.published)
        host = [WAN6] if ":" in target else [WAN4, WAN4, *_gateways(case, 4), "127.0.0.1"]
        address = rng.choice(host)
        if address == "127.0.0.1":
            source = HOST
        return Probe(source, address, protocol, port)
    kind = rng.choice(("container", "container", "container", "host", "outside"))
    protocol = rng.choice(("tcp", "tcp", "udp", "icmp"))
    if kind == "container":
        target = rng.choice(case.containers)
        address, ports = rng.choice(target.addresses), {"tcp": 80, "udp": 53}
    elif kind == "host":
        own = [WAN4, WAN6, *_gateways(case, 4), *_gateways(case, 6)]
        address, ports = rng.choice(own), {"tcp": 22, "udp": 123}
    else:
        address, ports = rng.choice((FAR4, FAR4, FAR6, "192.0.2.1")), {"tcp": 443, "udp": 53}
    return Probe(source, address, protocol, ports.get(protocol, 0))


def _gateways(case: Case, family: int) -> list[str]:
    nets = [bridge.removeprefix("br") for bridge, _ in case.bridges]
    return [f"10.2{net}.0.1" if family == 4 else f"fd00:2{net}::1" for net in nets]

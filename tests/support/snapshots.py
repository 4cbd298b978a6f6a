"""Hand-built hosts for tests of pure code and of the screen."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from core.model import (
    STATS_DTYPE,
    BridgePort,
    Endpoint,
    FdbEntry,
    Link,
    LinkKey,
    LinkStats,
    Neighbour,
    Network,
    NextHop,
    PolicyRule,
    PublishedPort,
    Route,
    Snapshot,
)
from core.model.link import ALL_ZERO
from core.rates import RateMeter, Rates
from tests.support.host_builder import HOST, HostBuilder

HOSTILE_NAME = "[red]x[/]\x1b[31m\n\u202eevil"


def small_builder() -> HostBuilder:
    """Build a host with two NAT networks, an internal one, and eight containers.

    They have all four models, and faults: an MTU mismatch (web2), a dead joined namespace (orphan), a FORWARD
    drop."""
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
    _routes(host, web1_ns, web2_ns, api_ns)
    host.routes[plain_ns] = [Route(4, "default", nexthops=(NextHop("172.17.0.1", 2),))]
    return host


def _networks(host: HostBuilder) -> None:
    host.networks += [
        bridged("bridge", "docker0", "172.17.0.0/16", "172.17.0.1"),
        bridged("app", "br-app", "172.18.0.0/16", "172.18.0.1"),
        bridged("db", "br-db", "172.19.0.0/24", "172.19.0.1", internal=True),
        Network("docker", "net-host", "host", "host", ns=HOST),
        Network("docker", "net-none", "none", "null"),
    ]  # fmt: skip


def bridged(name: str, bridge: str, subnet: str, gateway: str, internal: bool = False) -> Network:
    """A Docker network on a bridge of the host, as Docker reports it."""
    return Network(
        "docker", f"net-{name}", name, "bridge", "", HOST, bridge, (subnet,), (gateway,), internal=internal
    )  # fmt: skip


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
        dst="127.0.0.1/32", l4_proto="tcp", dport="8081", verdict="dnat",
        to_address="172.18.0.3", to_port="80",
    )  # fmt: skip
    host.rule(
        "PREROUTING", "-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER",
        verdict="jump", target="DOCKER", understood=False,
    )  # fmt: skip
    host.rule(
        "FORWARD", "-A FORWARD -j DOCKER-FORWARD", table="filter", verdict="jump", target="DOCKER-FORWARD"
    )
    host.rule(
        "FORWARD", "-A FORWARD -s 172.18.0.3/32 -p udp --dport 53 -j DROP",
        table="filter", src="172.18.0.3/32", l4_proto="udp", dport="53", verdict="drop",
        packets=17, bytes=1200,
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


def _routes(host: HostBuilder, *on_app: int) -> None:
    links = host.links[HOST]
    by_name = {link.name: link.ifindex for link in links.values()}
    host.routes[HOST] = [
        Route(4, "default", nexthops=(NextHop("192.0.2.254", by_name["eth0"]),), protocol="static"),
        Route(4, "192.0.2.0/24", nexthops=(NextHop("", by_name["eth0"]),), protocol="kernel", scope="link"),
        Route(
            4, "172.18.0.0/16", nexthops=(NextHop("", by_name["br-app"]),), protocol="kernel", scope="link"
        ),
        *(
            Route(4, subnet, nexthops=(NextHop("", by_name[link]),), protocol="kernel", scope="link")
            for subnet, link in (("172.17.0.0/16", "docker0"), ("172.19.0.0/24", "br-db"))
        ),
        Route(4, "192.0.2.1", "local", (NextHop("", by_name["eth0"]),), table="local", scope="host"),
        Route(4, "10.66.0.0/16", "blackhole"),
    ]
    host.policy[HOST] = [PolicyRule(4, 0, table="local"), PolicyRule(4, 32766)]
    for ns in on_app:
        host.routes[ns] = [Route(4, "default", nexthops=(NextHop("172.18.0.1", 2),))]


def small_host(**fields: Any) -> Snapshot:
    """Return the host of `small_builder`."""
    return small_builder().snapshot(**fields)


def overlay_host(**fields: Any) -> Snapshot:
    """Return the small host with an overlay of two other hosts."""
    host = small_builder()
    tag = "vnet:net=blue kind=overlay subnet=10.128.0.0/20 gateway=10.128.0.1 vni=42 range=10.128.0.64/26"
    blue = host.bridge("br-blue", ("10.128.0.1/20",), alias=tag, mtu=1450)
    tunnel = host.link(
        HOST, "vx42", "vxlan", master=blue.ifindex, port=BridgePort("forwarding"), mtu=1450,
        alias="vnet:tunnel=blue", details={"vni": 42, "local": "192.0.2.1", "port": 4789, "learning": True},
    )  # fmt: skip
    for number, remote in enumerate(("192.0.2.7", "192.0.2.8")):
        mac = f"02:00:00:00:08:{number:02x}"
        host.fdb[HOST] += [
            FdbEntry(ALL_ZERO, tunnel.ifindex, None, state="permanent", flags=("self",), dst=remote),
            FdbEntry(mac, tunnel.ifindex, None, flags=("self",), dst=remote),
        ]
        address = f"10.128.0.{130 + number}"
        host.neighbours[HOST].append(Neighbour(4, address, mac, blue.ifindex, "reachable"))
    return host.snapshot(**fields)


def empty_host() -> Snapshot:
    """Return a host with its NIC and nothing virtual."""
    host = HostBuilder()
    host.link(HOST, "eth0", "physical", ("192.0.2.1/24",))
    return host.snapshot()


def hostile_host() -> Snapshot:
    """Return a host whose names contain markup, escapes, newlines and bidi overrides."""
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
    """Return a host with that many named namespaces, each with a veth to one bridge."""
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
    """Return the rates of three readings.

    Each link that is up receives `bits` a second times its ifindex, and sends half of that."""
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

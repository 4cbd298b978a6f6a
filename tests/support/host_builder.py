"""Build snapshots of hosts for tests, without reading the machine."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from core.model import (
    CONNTRACK_DTYPE,
    NAMESPACE_KINDS,
    Address,
    BridgePort,
    BridgeSettings,
    Chain,
    Conntrack,
    Container,
    Engine,
    FdbEntry,
    Firewall,
    FirewallRule,
    Host,
    Link,
    Namespace,
    Neighbour,
    NetState,
    Network,
    PolicyRule,
    Route,
    Snapshot,
)

HOST = 4026531840
HOST_KINDS = {
    kind: HOST if kind == "net" else 4026531830 + place for place, kind in enumerate(NAMESPACE_KINDS)
}


@dataclass
class HostBuilder:
    """Builds a host: add links, containers and rules, then call `snapshot()`."""

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
        """Attach a namespace to a bridge by a veth pair; return the port.

        `fields` are of the inner end."""
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
        """Add a container; its namespaces but `ns` are its own, or as `namespaces` says."""
        number = len(self.containers) + 1
        own = {kind: 4026540000 + number * 10 + place for place, kind in enumerate(NAMESPACE_KINDS)}
        own["user"] = HOST_KINDS["user"]
        spaces = fields.pop("namespaces", {} if ns is None else own | {"net": ns})
        usual = {"id": f"{number:02d}" * 32, "pid": 1000 + number, "image": "busybox:local"}
        made = Container(runtime, name=name, namespaces=spaces, **(usual | fields))
        self.containers.append(made)
        return made

    def rule(self, chain: str, text: str, **fields: Any) -> FirewallRule:
        """Add an iptables-nft rule to a table of the host, by default nat."""
        usual = {"backend": "iptables-nft", "family": "ip", "table": "nat", "packets": 0, "bytes": 0}
        rule_id = f"ip/{fields.get('table', 'nat')}/{chain}/{len(self.rules) + 1}"
        made = FirewallRule(chain=chain, rule_id=rule_id, text=text, **(usual | fields))
        self.rules.append(made)
        return made

    def flow(self, l4_proto: int, original: tuple, reply: tuple, **fields: Any) -> None:
        """Add a conntrack entry; tuples are (src, sport, dst, dport)."""
        sides = dict(zip(("orig_src", "orig_sport", "orig_dst", "orig_dport"), original, strict=True))
        sides |= dict(zip(("reply_src", "reply_sport", "reply_dst", "reply_dport"), reply, strict=True))
        self.flows.append({"l4_proto": l4_proto, **sides, **fields})

    def snapshot(self, **fields: Any) -> Snapshot:
        """Return the snapshot."""
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
        return Snapshot(namespaces=dict(self.spaces), nets=nets, engines=engines, **(usual | fields))

    def _net(self, ns: int) -> NetState:
        links = dict(self.links[ns])
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
    Chain("iptables-nft", "ip", "filter", "FORWARD", "forward", "filter", 0, "accept"),
    Chain("iptables-nft", "ip", "filter", "DOCKER-FORWARD"),
)


def address(text: str) -> Address:
    """Parse an address such as "192.0.2.1/24"."""
    host, _, length = text.partition("/")
    parsed = ipaddress.ip_address(host)
    scope = "link" if parsed.is_link_local else "host" if parsed.is_loopback else "global"
    return Address(parsed.version, host, int(length), scope)


def conntrack(ns: int, flows: Iterable[Mapping[str, Any]]) -> Conntrack:
    """Build a conntrack table from flows as in HostBuilder.flow."""
    flows = list(flows)
    entries = np.zeros(len(flows), CONNTRACK_DTYPE)
    for number, flow in enumerate(flows):
        usual = {"id": 7000 + number, "status": 0x18E, "timeout": 300, "family": 4, "counted": True}
        for name, value in (usual | flow).items():
            entries[number][name] = packed(value) if name.endswith(("_src", "_dst")) else value
    entries.flags.writeable = False
    return Conntrack(ns, entries, limit=262144, accounting=True, taken_at=1_700_000_000.0)


def packed(text: str) -> np.ndarray:
    """Convert an address to its 16 bytes."""
    raw = ipaddress.ip_address(text).packed
    return np.frombuffer(raw if len(raw) == 16 else b"\0" * 10 + b"\xff\xff" + raw, "u1")

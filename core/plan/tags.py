"""What is ours on a host, found by the tags in links' aliases (core.tags) and the comments of our rules.

A network's bridge carries "vnet:net=NAME kind=nat subnet=... gateway=...", the host's end of an attachment
"vnet:of=RUNTIME:ID net=NAME link=eth0 address=...", the loopback link of a namespace that was made here
"vnet:name=NAME", once for each of its names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from core.model import FirewallRule, Link, Snapshot
from core.tags import TABLE, Words, escape, tag, unescape, words_of

# IFALIASZ of linux/if.h, less the closing zero; what nft(8) allows for a rule's comment.
ALIAS_BYTES = 255
COMMENT_BYTES = 128


@dataclass(frozen=True, slots=True)
class OurNetwork:
    """A network of ours; `gateways` in the order of `subnets`; `uplink` the port of a NIC-bridged one."""

    name: str
    kind: str
    bridge: str
    subnets: tuple[str, ...] = ()
    gateways: tuple[str, ...] = ()
    nat66: bool = False
    uplink: str = ""
    mtu: int = 1500

    def tag(self) -> str:
        """What its bridge's alias says."""
        words = [("net", self.name), ("kind", self.kind)]
        for subnet, gateway in zip(self.subnets, self.gateways, strict=True):
            words += [("subnet", subnet), ("gateway", gateway)]
        words += [("nat66", "yes")] if self.nat66 else []
        words += [("uplink", self.uplink)] if self.uplink else []
        return tag(words)


@dataclass(frozen=True, slots=True)
class OurMember:
    """An attachment of ours: the container's uid, the network, the host's end `port`, the name of the `link`
    inside and its addresses with prefix length."""

    container: str
    network: str
    port: str
    link: str
    addresses: tuple[str, ...] = ()

    def tag(self) -> str:
        """What the alias of the host's end says."""
        words = [("of", self.container), ("net", self.network), ("link", self.link)]
        return tag([*words, *(("address", address) for address in self.addresses)])


@dataclass(frozen=True, slots=True)
class OurPort:
    """A published port, or range ("8000-8010"), of ours in one address family; `address` is the container's,
    `host_ip` "" means every address of the host."""

    container: str
    l4_proto: str
    host_ip: str
    host_ports: str
    address: str
    container_ports: str

    @property
    def port_id(self) -> str:
        """What a person calls it: "tcp/8080", "tcp/192.0.2.1:8080", "udp/[2001:db8::1]:53"."""
        return port_id(self.l4_proto, self.host_ip, self.host_ports)

    def comment(self) -> str:
        """What its rule's comment says."""
        return f"{TABLE} publish {self.port_id} {self.container_ports} {escape(self.container)}"


@dataclass(frozen=True, slots=True)
class Ours:
    """All that is ours on the host. `joined` holds pairs of network names, each in alphabetical order;
    `containers` maps each name made here to the inode of its namespace; `table` tells whether our nft table
    is there."""

    networks: Mapping[str, OurNetwork] = field(default_factory=dict)
    members: tuple[OurMember, ...] = ()
    ports: tuple[OurPort, ...] = ()
    joined: frozenset[tuple[str, str]] = frozenset()
    containers: Mapping[str, int] = field(default_factory=dict)
    table: bool = False


def port_id(l4_proto: str, host_ip: str, host_ports: str) -> str:
    """See OurPort.port_id."""
    host = f"[{host_ip}]" if ":" in host_ip else host_ip
    return f"{l4_proto}/{host}:{host_ports}" if host else f"{l4_proto}/{host_ports}"


def pair(one: str, other: str) -> tuple[str, str]:
    """Two network names in the order that Ours.joined keeps."""
    return (one, other) if one < other else (other, one)


def ours(snapshot: Snapshot, host: int) -> Ours:
    """What is ours, seen from the namespace `host`."""
    net = snapshot.nets.get(host)
    tagged = [(link, words) for link in net.links.values() if (words := words_of(link.alias))] if net else []
    firewall = snapshot.firewalls.get(host)
    rules = [rule for rule in firewall.rules if rule.table == TABLE] if firewall else []
    return Ours(
        networks={network.name: network for network in _networks(tagged)},
        members=tuple(_members(tagged)),
        ports=tuple(_ports(rules)),
        joined=frozenset(_joined(rules)),
        containers=dict(_containers(snapshot)),
        table=bool(firewall and any(chain.table == TABLE for chain in firewall.chains)),
    )


def _networks(tagged: list[tuple[Link, Words]]) -> Iterator[OurNetwork]:
    for link, words in tagged:
        if link.kind == "bridge" and "net" in words:
            subnets = words.get("subnet", ())
            yield OurNetwork(
                words["net"][0],
                words.get("kind", ("",))[0],
                link.name,
                subnets,
                words.get("gateway", ())[: len(subnets)],
                "nat66" in words,
                words.get("uplink", ("",))[0],
                link.mtu,
            )


def _members(tagged: list[tuple[Link, Words]]) -> Iterator[OurMember]:
    for link, words in tagged:
        if "of" in words and "net" in words:
            inner = words.get("link", ("",))[0]
            yield OurMember(words["of"][0], words["net"][0], link.name, inner, words.get("address", ()))


def _containers(snapshot: Snapshot) -> Iterator[tuple[str, int]]:
    for ns, net in snapshot.nets.items():
        space = snapshot.namespaces.get(ns)
        for link in net.links.values():
            if link.kind == "loopback" and (words := words_of(link.alias)):
                names = words.get("name", ())
                yield from ((name, ns) for name in names if space is None or name in space.names)


def _ports(rules: list[FirewallRule]) -> Iterator[OurPort]:
    for rule in rules:
        words = rule.comment.split(" ")
        if words[:2] == [TABLE, "publish"] and len(words) == 5:
            l4_proto, _, where = words[2].partition("/")
            host, _, host_ports = where.rpartition(":")
            address = rule.to_address or next((one.to_address for one in rule.translations), "")
            yield OurPort(unescape(words[4]), l4_proto, host.strip("[]"), host_ports, address, words[3])


def _joined(rules: list[FirewallRule]) -> Iterator[tuple[str, str]]:
    for rule in rules:
        words = rule.comment.split(" ")
        if words[:2] == [TABLE, "join"] and len(words) == 4:
            yield pair(unescape(words[2]), unescape(words[3]))

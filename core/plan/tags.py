"""Find vnet's networks, attachments and ports by aliases and rule comments.

Aliases of links (core.text): a network's bridge has "vnet:net=NAME kind=nat subnet=... gateway=...", an
overlay's tunnel "vnet:tunnel=NAME", the host's end of an attachment "vnet:of=RUNTIME:ID net=NAME link=eth0
address=...", the loopback link of a namespace that vnet made "vnet:name=NAME", with one `name` for each of
its names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from core.model import FirewallRule, Link, Snapshot
from core.text import TABLE, TagValues, end_text, escape, format_tag, parse_tag, unescape

# IFALIASZ of linux/if.h without the closing zero, and the limit of nft(8) for a rule's comment.
ALIAS_BYTES = 255
COMMENT_BYTES = 128


@dataclass(frozen=True, slots=True)
class VnetNetwork:
    """A network that vnet made.

    `gateways` are in the order of `subnets`, `uplink` is the port if NIC-bridged. Of an overlay: `vni`, and
    `ranges` are the parts of `subnets` that this host assigns, in the same order. With `evpn` FRRouting tells
    its hosts of each other.
    """

    name: str
    kind: str
    bridge: str
    subnets: tuple[str, ...] = ()
    gateways: tuple[str, ...] = ()
    nat66: bool = False
    uplink: str = ""
    mtu: int = 1500
    vni: int = 0
    ranges: tuple[str, ...] = ()
    evpn: bool = False

    @property
    def is_translated(self) -> bool:
        """Return whether its containers reach the outside by source NAT."""
        return self.kind in ("nat", "overlay")

    def tag(self) -> str:
        """Return the alias of its bridge."""
        values = [("net", self.name), ("kind", self.kind)]
        for subnet, gateway in zip(self.subnets, self.gateways, strict=True):
            values += [("subnet", subnet), ("gateway", gateway)]
        values += [("nat66", "yes")] if self.nat66 else []
        values += [("uplink", self.uplink)] if self.uplink else []
        values += [("vni", str(self.vni))] if self.vni else []
        values += [("evpn", "yes")] if self.evpn else []
        return format_tag([*values, *(("range", one) for one in self.ranges)])

    def tunnel_tag(self) -> str:
        """Return the alias of its tunnel link."""
        return format_tag([("tunnel", self.name)])


@dataclass(frozen=True, slots=True)
class VnetMember:
    """An attachment that vnet made.

    `container` is a uid, `port` the host's end, `link` the name of the link in the container; `addresses`
    have a prefix length.
    """

    container: str
    network: str
    port: str
    link: str
    addresses: tuple[str, ...] = ()

    def tag(self) -> str:
        """Return the alias of the host's end."""
        values = [("of", self.container), ("net", self.network), ("link", self.link)]
        return format_tag([*values, *(("address", address) for address in self.addresses)])


@dataclass(frozen=True, slots=True)
class VnetPort:
    """A port, or range ("8000-8010"), that vnet published, in one address family.

    `address` is the container's; `host_ip` "" is every address of the host.
    """

    container: str
    l4_proto: str
    host_ip: str
    host_ports: str
    address: str
    container_ports: str

    @property
    def port_id(self) -> str:
        """Return the short form: "tcp/8080", "tcp/192.0.2.1:8080", "udp/[2001:db8::1]:53"."""
        return port_id(self.l4_proto, self.host_ip, self.host_ports)

    def comment(self) -> str:
        """Return the comment of its rule."""
        return f"{TABLE} publish {self.port_id} {self.container_ports} {escape(self.container)}"


@dataclass(frozen=True, slots=True)
class VnetState:
    """Everything that vnet made on the host.

    `joined`: pairs of network names, each in alphabetical order. `containers`: name of a namespace to its
    inode. `table`: whether vnet's nftables table exists.
    """

    networks: Mapping[str, VnetNetwork] = field(default_factory=dict)
    members: tuple[VnetMember, ...] = ()
    ports: tuple[VnetPort, ...] = ()
    joined: frozenset[tuple[str, str]] = frozenset()
    containers: Mapping[str, int] = field(default_factory=dict)
    table: bool = False


def port_id(l4_proto: str, host_ip: str, host_ports: str) -> str:
    """Return VnetPort.port_id for these values."""
    return f"{l4_proto}/{end_text(host_ip, host_ports) if host_ip else host_ports}"


def pair(one: str, other: str) -> tuple[str, str]:
    """Return two network names in the order of `VnetState.joined`."""
    return (one, other) if one < other else (other, one)


def vnet_state(snapshot: Snapshot, host: int) -> VnetState:
    """Find everything that vnet made, by links and rules of the namespace `host`."""
    net = snapshot.nets.get(host)
    tagged = (
        [(link, values) for link in net.links.values() if (values := parse_tag(link.alias))] if net else []
    )
    firewall = snapshot.firewalls.get(host)
    rules = [rule for rule in firewall.rules if rule.table == TABLE] if firewall else []
    return VnetState(
        networks={network.name: network for network in _networks(tagged)},
        members=tuple(_members(tagged)),
        ports=tuple(_ports(rules)),
        joined=frozenset(_joined(rules)),
        containers=dict(_containers(snapshot)),
        table=bool(firewall and any(chain.table == TABLE for chain in firewall.chains)),
    )


def _networks(tagged: list[tuple[Link, TagValues]]) -> Iterator[VnetNetwork]:
    for link, values in tagged:
        if link.kind == "bridge" and "net" in values:
            subnets = values.get("subnet", ())
            yield VnetNetwork(
                values["net"][0],
                values.get("kind", ("",))[0],
                link.name,
                subnets,
                values.get("gateway", ())[: len(subnets)],
                "nat66" in values,
                values.get("uplink", ("",))[0],
                link.mtu,
                _number(values.get("vni", ("",))[0]),
                values.get("range", ()),
                "evpn" in values,
            )


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 8 else 0


def _members(tagged: list[tuple[Link, TagValues]]) -> Iterator[VnetMember]:
    for link, values in tagged:
        if "of" in values and "net" in values:
            inner = values.get("link", ("",))[0]
            yield VnetMember(values["of"][0], values["net"][0], link.name, inner, values.get("address", ()))


def _containers(snapshot: Snapshot) -> Iterator[tuple[str, int]]:
    for ns, net in snapshot.nets.items():
        space = snapshot.namespaces.get(ns)
        for link in net.links.values():
            if link.kind == "loopback" and (values := parse_tag(link.alias)):
                names = values.get("name", ())
                yield from ((name, ns) for name in names if space is None or name in space.names)


def _ports(rules: list[FirewallRule]) -> Iterator[VnetPort]:
    for rule in rules:
        values = rule.comment.split(" ")
        if values[:2] == [TABLE, "publish"] and len(values) == 5:
            l4_proto, _, port_part = values[2].partition("/")
            host, _, host_ports = port_part.rpartition(":")
            address = rule.to_address or next((one.to_address for one in rule.translations), "")
            yield VnetPort(unescape(values[4]), l4_proto, host.strip("[]"), host_ports, address, values[3])


def _joined(rules: list[FirewallRule]) -> Iterator[tuple[str, str]]:
    for rule in rules:
        values = rule.comment.split(" ")
        if values[:2] == [TABLE, "join"] and len(values) == 4:
            yield pair(unescape(values[2]), unescape(values[3]))

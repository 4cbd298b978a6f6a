"""Find vnet's networks, attachments and ports by aliases and rule comments.

Aliases of links (core.text): a network's bridge has "vnet:net=NAME kind=nat subnet=... gateway=...", an
overlay's tunnel "vnet:tunnel=NAME", the host's end of an attachment "vnet:of=RUNTIME:ID net=NAME link=eth0
address=...", the loopback link of a namespace that vnet made "vnet:name=NAME", with one `name` for each of
its names. The tag of an OVS bridge is its external id "vnet", because its link is new after each restart of
Open vSwitch.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from core.model import FirewallRule, Link, Snapshot, StormLimits
from core.text import TABLE, TagValues, end_text, escape, format_tag, parse_tag, unescape

# IFALIASZ of linux/if.h without the closing zero, and the limit of nft(8) for a rule's comment.
ALIAS_BYTES = 255
COMMENT_BYTES = 128


@dataclass(frozen=True, slots=True)
class VnetNetwork:
    """A network that vnet made.

    `gateways` are in the order of `subnets`, `uplink` is the port if NIC-bridged. Of an overlay: `vni`, and
    `ranges` are the parts of `subnets` that this host assigns, in the same order; with `etcd` there are none,
    as it leases addresses of the whole subnets. With `evpn` its hosts find each other by FRRouting.
    `datapath` is an OVS bridge's ("" for "system"). `guard`: the limits of its storm guard as text
    (StormLimits), "" for none.
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
    datapath: str = ""
    guard: str = ""
    etcd: bool = False

    @property
    def is_translated(self) -> bool:
        """Return whether its containers reach the outside by source NAT."""
        return self.kind in ("nat", "overlay", "ovs")

    def tag(self) -> str:
        """Return the alias of its bridge."""
        values = [("net", self.name), ("kind", self.kind)]
        for subnet, gateway in zip(self.subnets, self.gateways, strict=True):
            values += [("subnet", subnet), ("gateway", gateway)]
        values += [("nat66", "yes")] if self.nat66 else []
        values += [("uplink", self.uplink)] if self.uplink else []
        values += [("guard", self.guard)] if self.guard else []
        values += [("vni", str(self.vni))] if self.vni else []
        values += [("evpn", "yes")] if self.evpn else []
        values += [("etcd", "yes")] if self.etcd else []
        return format_tag([*values, *(("range", one) for one in self.ranges)])

    def tunnel_tag(self) -> str:
        """Return the alias of its tunnel link."""
        return format_tag([("tunnel", self.name)])


@dataclass(frozen=True, slots=True)
class VnetMember:
    """An attachment that vnet made.

    `container` is a uid, `port` the host's end, `link` the name of the link in the container; `addresses`
    have a prefix length; `vlan` is 0 for none.
    """

    container: str
    network: str
    port: str
    link: str
    addresses: tuple[str, ...] = ()
    vlan: int = 0

    def tag(self) -> str:
        """Return the alias of the host's end."""
        values = [("of", self.container), ("net", self.network), ("link", self.link)]
        values += [("vlan", str(self.vlan))] if self.vlan else []
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
    bridges = [(link, values) for link, values in tagged if link.kind == "bridge"]
    bridges += _ovs_bridges(snapshot, host)
    firewall = snapshot.firewalls.get(host)
    rules = [rule for rule in firewall.rules if rule.table == TABLE] if firewall else []
    return VnetState(
        networks={network.name: network for network in _networks(bridges, snapshot)},
        members=tuple(_members(tagged)),
        ports=tuple(_ports(rules)),
        joined=frozenset(_joined(rules)),
        containers=dict(_containers(snapshot)),
        table=bool(firewall and any(chain.table == TABLE for chain in firewall.chains)),
    )


def _ovs_bridges(snapshot: Snapshot, host: int) -> Iterator[tuple[Link, TagValues]]:
    """Yield the links and tags of OVS bridges; the index is 0 if the link is missing.

    Who may change the database of Open vSwitch isn't always root: a malformed tag is none.
    """
    net = snapshot.nets.get(host)
    links = {link.name: link for link in net.links.values()} if net else {}
    for bridge in snapshot.ovs:
        values = parse_tag(bridge.external_ids.get(TABLE, ""))
        if values and values.get("kind") == ("ovs",) and _is_sound(bridge.name, values):
            yield links.get(bridge.name) or Link(host, 0, bridge.name, "ovs-port"), values


_SOUND_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\Z")


def _is_sound(bridge: str, values: TagValues) -> bool:
    """Return whether names and addresses can be written into firewall rules."""
    subnets, gateways = values.get("subnet", ()), values.get("gateway", ())
    try:
        inside = [ipaddress.ip_network(one) for one in subnets]
        addresses = [ipaddress.ip_address(one) for one in gateways]
    except ValueError:
        return False
    named = all(_SOUND_NAME.match(one) for one in (bridge, *values.get("net", ())))
    return named and len(inside) == len(addresses)


def _networks(tagged: list[tuple[Link, TagValues]], snapshot: Snapshot) -> Iterator[VnetNetwork]:
    datapaths = {bridge.name: bridge.datapath for bridge in snapshot.ovs}
    for link, values in tagged:
        if "net" in values:
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
                datapaths.get(link.name, "").replace("system", ""),
                _limits(values.get("guard", ("",))[0]),
                "etcd" in values,
            )


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 8 else 0


def _limits(text: str) -> str:
    """Return the limits of a storm guard, "" for a tag that can't be read."""
    try:
        return str(StormLimits.parse(text)) if text else ""
    except ValueError:
        return ""


def _members(tagged: list[tuple[Link, TagValues]]) -> Iterator[VnetMember]:
    for link, values in tagged:
        if "of" in values and "net" in values:
            inner, vlan = values.get("link", ("",))[0], _number(values.get("vlan", ("",))[0])
            yield VnetMember(
                values["of"][0], values["net"][0], link.name, inner, values.get("address", ()),
                vlan,
            )  # fmt: skip


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

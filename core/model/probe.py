"""Probes of the path to a target, and the record of what the kernel did with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Literal

from core.model.firewall import Firewall, FirewallRule
from core.model.refs import LinkKey, Problem
from core.model.snapshot import Namespace
from core.text import end_text

Protocol = Literal["tcp", "udp", "icmp"]
Outcome = Literal["answered", "refused", "unreachable", "no answer"]


@dataclass(frozen=True, slots=True)
class PacketTuple:
    """Addresses and ports of one packet; `protocol` is "tcp", "udp" or "icmp".

    ICMP echo has its id as `sport` and its sequence number as `dport`, in both directions."""

    protocol: str
    src: str
    sport: int
    dst: str
    dport: int

    @property
    def reverse(self) -> PacketTuple:
        """The tuple of the answer."""
        if self.protocol == "icmp":
            return replace(self, src=self.dst, dst=self.src)
        return replace(self, src=self.dst, sport=self.dport, dst=self.src, dport=self.sport)

    def __str__(self) -> str:
        if self.protocol == "icmp":
            return f"icmp {self.src} -> {self.dst}"
        return f"{self.protocol} {end_text(self.src, self.sport)} -> {end_text(self.dst, self.dport)}"


@dataclass(frozen=True, slots=True)
class DropEvent:
    """One packet that the kernel dropped, as the tracepoint skb:kfree_skb reports it.

    `reason` is the kernel's name for it ("NETFILTER_DROP"), `function` the one that dropped it; `ifindex` is
    that of the packet's link in namespace `ns`, 0 if it has none. `at` is Unix time in seconds."""

    at: float
    reason: str
    function: str = ""
    ns: int = 0
    ifindex: int = 0
    addresses: PacketTuple | None = None


# Called with the tuple of a probe before it is sent; the context lasts until the probe has ended, and the
# sequence then holds the drops that were seen.
DropObserver = Callable[[PacketTuple], AbstractContextManager[Sequence[DropEvent]]]


@dataclass(frozen=True, slots=True)
class FunctionFilter:
    """The packets whose kernel functions are wanted: of these tuples, or of a probe.

    For a probe `protocol` is the number of its protocol, `mark` its mark (four bytes), `acknowledged` TCP's
    acknowledgement number in the answer, and `port` the destination port of an answer by UDP."""

    tuples: tuple[PacketTuple, ...] = ()
    protocol: int = 0
    mark: bytes = bytes(4)
    acknowledged: bytes = bytes(4)
    port: int = 0


@dataclass(frozen=True, slots=True)
class FunctionCall:
    """A call of a kernel function with a packet.

    `at` is Unix time in seconds; `ifindex` is that of the packet's device in namespace `ns`, 0 if it has none
    yet. `headers` are its first bytes from the IP header on, as far as they are in one piece."""

    at: float
    function: str
    ns: int = 0
    ifindex: int = 0
    headers: bytes = b""


# Called before the packets are sent or looked for; the context yields what reads the calls so far.
FunctionObserver = Callable[[FunctionFilter], AbstractContextManager[Callable[[], Sequence[FunctionCall]]]]


@dataclass(frozen=True, slots=True)
class ProbeRequest:
    """What to send, and where to look for it.

    The packet is sent in `namespace` to the address `target`, from `source` if given. `port` is that of TCP
    and UDP. `timeout` is in seconds, at most 10. `through` are the namespaces in which the packet is looked
    for, in the order of the path; `destination` is the target's namespace, if it is on this host. `links`
    limits the sightings to these links. `trace` records the firewall rules that the packet passes. `size` is
    the length of an ICMP or UDP packet from the IP header on, then not to be fragmented; 0: a small one.
    `functions` observes the kernel functions that it passes."""

    namespace: Namespace
    target: str
    protocol: Protocol = "icmp"
    port: int = 0
    source: str = ""
    timeout: float = 1.5
    trace: bool = True
    through: tuple[Namespace, ...] = ()
    destination: Namespace | None = None
    links: tuple[LinkKey, ...] = ()
    observer: DropObserver | None = None
    size: int = 0
    functions: FunctionObserver | None = None

    @property
    def namespaces(self) -> tuple[Namespace, ...]:
        """The namespaces of the path, each once: the sender's first, the target's last."""
        last = (self.destination,) if self.destination else ()
        return tuple({one.inode: one for one in (self.namespace, *self.through, *last)}.values())


@dataclass(frozen=True, slots=True)
class IcmpError:
    """An ICMP error about the probe, or an error of the sending host itself.

    `type` and `code` are those of ICMP or ICMPv6 (RFC 792, RFC 4443), -1 for an error that no ICMP message
    reported; `name` is their meaning ("port unreachable"), or that of the errno; `sender` is the address that
    sent it, "" for this host; `mtu` that of "fragmentation needed", else 0."""

    name: str
    type: int = -1
    code: int = -1
    sender: str = ""
    mtu: int = 0


Role = Literal["request", "answer", "error"]


@dataclass(frozen=True, slots=True)
class Sighting:
    """A packet of the probe, seen on one link.

    `role` is "request", "answer" or "error" (an ICMP error about the request). `direction` is "in" (received
    by the link) or "out" (sent); `at` is the kernel's time stamp in seconds (Unix time). `addresses` are
    those of the packet on this link, of an error only its addresses. `vlan` is 0 without a tag, `vni` -1
    outside VXLAN; then all but MACs and link belong to the inner packet. `flags` are those of TCP as
    Wireshark writes them ("SYN, ACK"); `info` names an ICMP message; `length` is in bytes, from
    the IP header on. `times` counts the sightings of that role on the link in that direction, from 1 on: more
    than one are packets that were sent again, or a loop."""

    link: LinkKey
    at: float
    direction: Literal["in", "out"]
    role: Role
    addresses: PacketTuple
    src_mac: str = ""
    dst_mac: str = ""
    vlan: int = 0
    vni: int = -1
    ttl: int = 0
    length: int = 0
    flags: str = ""
    info: str = ""
    times: int = 1

    def changes(self, before: Sighting) -> tuple[str, ...]:
        """Return the names of the fields that differ: "src", "dport", "ttl", "src_mac"."""
        ends = [one for one in ("src", "sport", "dst", "dport")
                if getattr(self.addresses, one) != getattr(before.addresses, one)]  # fmt: skip
        headers = ("src_mac", "dst_mac", "vlan", "vni", "ttl", "length")
        return (*ends, *(one for one in headers if getattr(self, one) != getattr(before, one)))


@dataclass(frozen=True, slots=True)
class TraceStep:
    """One step of nftables' trace (`nft monitor trace`) in the namespace `ns`.

    `kind` is "rule", "policy" or "return" (the end of a chain); `role` is that of the packet. `handle` is
    the rule's as `nft -a` lists it and `position` its place in the chain, from 1 on (0: unknown, as after a
    deletion). `verdict` is "accept", "drop", "continue", "return", "jump", "goto", "queue", "stolen" or
    "repeat"; `target` the chain of a jump.
    A rule that rejects has the verdict "drop"."""

    ns: int
    role: Role
    family: str
    table: str
    chain: str
    kind: Literal["rule", "policy", "return"]
    verdict: str
    handle: int = 0
    position: int = 0
    target: str = ""
    iif: int = 0
    oif: int = 0

    @property
    def rule_id(self) -> str:
        """The id that nftables' readers give the rule, "" for a policy."""
        return f"nft/{self.family}/{self.table}/{self.handle}" if self.handle else ""


def rule_of(step: TraceStep, firewall: Firewall) -> FirewallRule | None:
    """Return the rule of a step among those read in its namespace.

    iptables-save prints no handles, so its rules are found by their position in the chain."""
    in_chain = [
        rule
        for rule in firewall.rules
        if (rule.family, rule.table, rule.chain) == (step.family, step.table, step.chain)
        and rule.backend != "iptables-legacy"
    ]
    if step.kind == "policy" or not step.handle:
        return None
    by_id = next((rule for rule in in_chain if rule.rule_id == step.rule_id), None)
    if by_id or not 0 < step.position <= len(in_chain):
        return by_id
    candidate = in_chain[step.position - 1]
    return candidate if candidate.backend == "iptables-nft" else None


@dataclass(frozen=True, slots=True)
class Tracked:
    """The conntrack entry of the probe in one namespace, with its NAT."""

    ns: int
    original: PacketTuple
    reply: PacketTuple

    @property
    def is_translated(self) -> bool:
        """Whether addresses or ports are changed."""
        return self.original.reverse != self.reply


@dataclass(frozen=True, slots=True)
class UnresolvedNeighbour:
    """A next hop of the probe that doesn't answer ARP or NDP.

    `state` is "incomplete" or "failed" (ip-neighbour(8))."""

    ns: int
    ifindex: int
    address: str
    state: str


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What became of a probe.

    `error` is the reason of "refused" by ICMP and of "unreachable"; `sender` the address that answered,
    refused or reported the error. `rtt` is in seconds, None without an answer. `arrived` says whether the
    request reached the target's namespace, None if that isn't on this host or wasn't watched. `sightings` are
    in the order of time, `steps` in the order of each namespace. `problems` are what couldn't be recorded.
    `functions` are the calls of kernel functions with the request, the answer, or an ICMP error."""

    outcome: Outcome
    addresses: PacketTuple
    rtt: float | None = None
    sender: str = ""
    error: IcmpError | None = None
    arrived: bool | None = None
    steps: tuple[TraceStep, ...] = ()
    sightings: tuple[Sighting, ...] = ()
    tracked: tuple[Tracked, ...] = ()
    neighbours: tuple[UnresolvedNeighbour, ...] = ()
    drops: tuple[DropEvent, ...] = ()
    problems: tuple[Problem, ...] = ()
    functions: tuple[tuple[Role, FunctionCall], ...] = ()

    @property
    def dropped_by(self) -> TraceStep | None:
        """The step that dropped the request, or else the answer; None without one."""
        dropping = [step for step in self.steps if step.verdict == "drop"]
        return min(dropping, key=lambda step: step.role != "request", default=None)


@dataclass(frozen=True, slots=True)
class MtuStep:
    """One limit of the path: a router that reported the MTU of its next link.

    `sender` is "" for the sending host itself."""

    mtu: int
    sender: str = ""


@dataclass(frozen=True, slots=True)
class PathMtu:
    """The MTU of a path.

    `mtu` is None if nothing arrives, whatever its size; `steps` are the limits that were reported, in the
    order of the path. `silent` says that larger packets vanish without an ICMP error (a black hole): then
    `last_hop` is the last router that still received one, "" if none answers, and `last_seen` the last place
    on this host where one was seen. `complete` is False if time ran out; `mtu` is then the largest size that
    arrived. `error` is one that ended the measurement."""

    mtu: int | None
    steps: tuple[MtuStep, ...] = ()
    silent: bool = False
    last_hop: str = ""
    last_seen: Sighting | None = None
    complete: bool = True
    error: IcmpError | None = None


@dataclass(frozen=True, slots=True)
class Hop:
    """One hop by its TTL.

    `address` is the router's, "" if it doesn't answer, and `rtt` the round trip time in seconds. `is_target`
    marks the hop that answered or refused; `error` is one that ends the path."""

    ttl: int
    address: str = ""
    rtt: float | None = None
    is_target: bool = False
    error: IcmpError | None = None


FlowDirection = Literal["original", "reply"]


@dataclass(frozen=True, slots=True)
class FlowTraceRequest:
    """An existing flow, and where to look for its packets.

    `original` is its tuple as its conntrack entry in the namespace `ns` has it. `tuples` are all that its
    packets may have, before, between and after translation, by direction; the second port of ICMP is 0.
    `seconds` is the longest time to look. `functions` observes the kernel functions that they pass."""

    ns: int
    original: PacketTuple
    reply: PacketTuple
    tuples: Mapping[PacketTuple, FlowDirection]
    namespaces: tuple[Namespace, ...]
    seconds: float = 5.0
    functions: FunctionObserver | None = None


@dataclass(frozen=True, slots=True)
class TracedPacket:
    """One packet of a flow at each link that it passed, in the order of time."""

    direction: FlowDirection
    sightings: tuple[Sighting, ...]
    functions: tuple[FunctionCall, ...] = ()


@dataclass(frozen=True, slots=True)
class FlowTrace:
    """Traced packets of a flow: of each direction the one seen at most links.

    `counts` has the packets that were seen by direction, in `seconds` seconds. `closed` says that one of them
    had FIN or RST, `gone` that the conntrack entry disappeared meanwhile. `problems` are the namespaces in
    which it couldn't look."""

    request: FlowTraceRequest
    packets: tuple[TracedPacket, ...] = ()
    counts: Mapping[FlowDirection, int] = field(default_factory=dict)
    seconds: float = 0.0
    closed: bool = False
    gone: bool = False
    problems: tuple[Problem, ...] = ()

"""Send a packet to the owner of an address, across bridges, or out of this host."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from core.model import FirewallRule, Link, LinkKey, Neighbour, link_ref
from core.reach import fixes, link_fixes, silence
from core.reach.answer import Hop
from core.reach.hooks import HookedPacket, Stopped
from core.reach.packet import Hook, Packet, parse_address
from core.reach.segment import Attachment
from core.reach.texts import evidence_of
from core.reach.underlay import into_tunnel
from core.text import quoted

# The hooks of a frame on a bridge, by whether it enters and leaves by a port.
_BRIDGE_HOOKS = {
    (True, True): ("prerouting", "forward", "postrouting"),
    (True, False): ("prerouting", "input"),
    (False, True): ("output", "postrouting"),
    (False, False): (),
}
_WITH_INPUT, _WITH_OUTPUT = ("prerouting", "input", "forward"), ("forward", "output", "postrouting")


@dataclass(slots=True)
class SegmentPacket(HookedPacket):
    """A packet that is sent by a link of a namespace.

    `links` are all links that it passed; `left` is the one by which it left this host, None if it didn't:
    that is `edge`, or one that leads to nothing visible.
    """

    links: list[Link] = field(default_factory=list)
    left: Link | None = None
    edge: LinkKey | None = None
    back_from: Link | None = None  # the port by which a frame came that br_netfilter sends back
    port: Link | None = None  # the bridge port by which it entered the namespace, if it did so by a bridge

    def _receive(self, link: Link) -> None:
        """Go on in the namespace of the link that it arrives at."""
        raise NotImplementedError

    def _leave_host(self, link: Link, owner: Attachment) -> None:
        """End at the uplink."""
        raise NotImplementedError

    def _transmit(self, link: Link, address: str) -> None:
        """Send the packet by a link to the owner of an address on its segment."""
        if (down := self.index.segments.down(link)) is not None:
            self.hops.append(down)
            raise Stopped
        if silence.sends_nothing(link):
            self.hops.append(silence.hop(self.index.topology, link, address))
            raise Stopped
        near = self.index.may_answer(address)
        found = self.index.segments.attachments(link, near)
        owners = [
            one for one in found if one.link.ns in near and not one.outside and self._answers(one, address)
        ]
        usable = [one for one in owners if one.obstacle is None]
        outside = [one for one in found if one.outside]
        entry = self._neighbour(link, address)
        if usable:
            self._to_owner(link, address, usable, entry)
        elif owners:
            self._obstacle(owners[0])
        elif outside and (switched := next((one for one in outside if self._is_switched(one)), None)):
            self._obstacle(switched)
            self._cross(link, switched)
            self._add("bridge", f"may leave by a tunnel of {switched.link.name}", "unknown")
            raise Stopped
        elif outside:
            self._outside(link, address, outside, entry)
        else:
            self._unanswered(link, address, entry)

    def _is_switched(self, attachment: Attachment) -> bool:
        """Return whether frames pass Open vSwitch on the way to an attachment."""
        topology = self.index.topology
        return any(topology.ovs_bridge(one.bridge) is not None for one in attachment.crossings)

    def _answers(self, attachment: Attachment, address: str) -> bool:
        """Return whether the namespace of an attachment answers ARP or ND for an address."""
        tables = self.index.tables(attachment.link.ns)
        if tables is None:
            return False
        if tables.is_local(address):
            return silence.answers(attachment.link, address)
        return tables.has_proxy(attachment.link, ":" in address)

    def _asker(self, link: Link, address: str) -> str:
        """Return the source address of an ARP request."""
        tables = self.index.tables(self.ns)
        own = tables is not None and tables.is_local(self.packet.src)
        return self.packet.src if own or tables is None else tables.address_on(link, address)

    def _ignores(self, attachment: Attachment, asker: str, address: str) -> bool:
        """Return whether a namespace drops an ARP request for its source (arp_process)."""
        tables = self.index.tables(attachment.link.ns)
        if tables is None or not asker or ":" in address:
            return False
        return bool(tables.source_fault(Packet(asker, address), attachment.link))

    def _obstacle(self, attachment: Attachment) -> None:
        if attachment.obstacle is not None:
            self.hops.append(attachment.obstacle)
            raise Stopped

    def _neighbour(self, link: Link, address: str) -> Neighbour | None:
        net = self.index.topology.snapshot.nets[self.ns]
        own = (one for one in net.neighbours if one.ifindex == link.ifindex and not one.proxy)
        return next((one for one in own if one.address == address), None)

    def _to_owner(self, link: Link, address: str, owners: list[Attachment], entry: Neighbour | None) -> None:
        # A namespace answers ARP on all its links unless rp_filter drops the request; the first answer wins.
        asker = self._asker(link, address)
        owner = min(owners, key=lambda one: (self._ignores(one, asker, address), len(one.crossings)))
        if link_fixes.lost_bridge(self.index.topology, owner.link) is not None:
            self._loose(owner.link)
        if entry is not None and entry.state == "permanent" and entry.mac != owner.link.mac:
            fix = link_fixes.delete_neighbour(self.ns, entry)
            raise self._stop(
                "neighbour", f"a permanent entry has a wrong MAC for {address}: {entry.mac}",
                f"{address} dev {link.name} lladdr {entry.mac} PERMANENT", ref=link_ref(link.key), fix=fix,
                subject=f"wrong neighbour entry for {address} {self._where}",
            )  # fmt: skip
        if others := [one for one in owners if one.link.ns != owner.link.ns]:
            names = sorted({self.index.topology.label(one.link.ns) for one in owners})
            text = f"{' and '.join(names)} answer for {address}: the same address twice"
            raise self._stop(
                "neighbour", text, ref=link_ref(others[-1].link.key),
                fix=link_fixes.delete_duplicate(self.index.topology, others[-1].link.ns, address),
                subject=f"{' and '.join(names)} have the address {address}",
            )  # fmt: skip
        near = self.index.having_mac(owner.link.mac)
        twin = silence.same_mac(self.index.topology, owner, self.index.segments.attachments(link, near))
        if wrong := twin or self.index.segments.misdirected(owner, owner.link.mac):
            self.hops.append(wrong)
            raise Stopped
        if ":" in address and (entry is None or entry.state in ("failed", "incomplete")):
            self._discover(link, owner, address)
        state = f"neighbour {entry.state}" if entry else "no neighbour entry yet"
        text = f"to {address} at {owner.link.mac}, {self.index.topology.label(owner.link.ns)}"
        evidence = f"{address} dev {link.name}" + (f" lladdr {entry.mac}" if entry else "") + f" ({state})"
        self._add("neighbour", text, "pass", evidence, ref=link_ref(link.key))
        self._cross(link, owner)
        if link.key == self.edge:
            self._leave_host(link, owner)
            return
        last = owner.crossings[-1] if owner.crossings else None
        self.port = last.entry if last is not None and last.exit is None else None
        if owner.link.ns != self.ns:
            self.packet = replace(self.packet, mark=0)  # skb_scrub_packet
        self.ns = owner.link.ns
        self._receive(owner.link)

    def _discover(self, link: Link, owner: Attachment, address: str) -> None:
        """Stop if a rule drops the messages of neighbour discovery (RFC 4861)."""
        found = self.index.segments.attachments(owner.link, {link.ns})
        back = next((one for one in found if one.link.key == link.key), None)
        own = next((one.address for one in link.addresses if one.address == self.packet.src), "fe80::1")
        states = frozenset(("untracked",))
        asking = Packet(own, f"ff02::1:ff{_last_bits(address)}", "icmpv6", states=states,
                        icmp="nd-neighbor-solicit")  # fmt: skip
        answer = Packet(address, own, "icmpv6", states=states, icmp="nd-neighbor-advert")
        before = (self.packet, self.ns, list(self.hops), list(self.links), self.tracked[:], self.rerouted)
        self.what = "neighbour discovery"
        self._message(asking, link, owner)
        if back is not None and back.obstacle is None:
            self._message(answer, owner.link, back)
        self.packet, self.ns, self.hops, self.links, self.tracked, self.rerouted = before
        self.what = ""

    def _message(self, message: Packet, link: Link, to: Attachment) -> None:
        """Pass a message of neighbour discovery from a link to one on its segment."""
        self.packet, self.ns = message, link.ns
        for name in ("output", "postrouting"):
            self.packet = self._filter(Hook(name, (), (link.name,), False), with_nat=False)
        self._cross(link, to)
        self.ns = to.link.ns
        for name in ("prerouting", "input"):
            is_local = not message.dst.startswith("ff02:")
            self.packet = self._filter(Hook(name, (to.link.name,), (), is_local), with_nat=False)

    def _unanswered(self, link: Link, address: str, entry: Neighbour | None) -> None:
        """Stop because no one on the segment has the address."""
        topology = self.index.topology
        found = self.index.segments.attachments(link)
        if found and all(one.obstacle for one in found):
            self._obstacle(found[0])
        if (port := link_fixes.loose_port(topology, link, address)) is not None:
            self._loose(port)
        if (quiet := silence.find(topology, found, address)) is not None:
            self.hops.append(quiet)
            raise Stopped
        if (hop := link_fixes.elsewhere(topology, link, address)) is not None:
            self.hops.append(hop)
            raise Stopped
        is_gateway = address != self.packet.dst
        if not is_gateway and self.dnat is not None and self.dnat[0] == self.ns:
            self._stale_dnat(address, self.dnat[1])
        fault = fixes.missing_owner(topology, self.ns, link, address, is_gateway)
        what = f"the gateway {address}" if is_gateway else address
        raise self._stop(
            "neighbour", f"{what} doesn't exist on the segment of {link.name}",
            *((f"{address} dev {link.name} {entry.state.upper()}",) if entry else ()),
            ref=fault.ref or link_ref(link.key), fix=fault.fix, subject=fault.subject,
        )  # fmt: skip

    def _loose(self, port: Link) -> None:
        """Stop at a veth that isn't on its bridge."""
        topology = self.index.topology
        name = topology.label(link_fixes.inner_ns(topology, port))
        raise self._stop(
            "bridge", f"{port.name}, which leads to {name}, is a port of no bridge",
            f"ip link show {port.name}", ref=link_ref(port.key), fix=link_fixes.attach_port(topology, port),
            subject=f"{port.name} is on no bridge",
        )  # fmt: skip

    def _stale_dnat(self, address: str, rule: FirewallRule) -> None:
        """Stop at a rule that forwards to an address that doesn't exist any more."""
        raise self._stop(
            "nat", f"a rule of {rule.table} {rule.chain} forwards to {address}, which doesn't exist",
            evidence_of(rule), ref=self.index.rule_ref(self.ns, rule), fix=fixes.delete_rule(self.ns, rule),
            subject=f"port {rule.dport or 'forwarding'} leads to {address}, which doesn't exist",
        )  # fmt: skip

    def _outside(self, link: Link, address: str, outside: list[Attachment], entry: Neighbour | None) -> None:
        """Let the packet leave this host."""
        exit_ = self._exit(outside, entry)
        self._obstacle(exit_)
        if entry is not None and entry.state == "failed":
            fault = fixes.missing_owner(
                self.index.topology, self.ns, link, address, address != self.packet.dst
            )
            raise self._stop(
                "neighbour", f"{address} doesn't answer on {link.name}", f"{address} dev {link.name} FAILED",
                ref=link_ref(link.key), fix=fault.fix, subject=f"{address} doesn't answer",
            )  # fmt: skip
        self._cross(link, exit_)
        self.left = exit_.link
        if exit_.link.kind == "vxlan":
            self.hops.append(hop := into_tunnel(self.index, exit_.link, address, entry))
            if hop.verdict == "stop":
                raise Stopped
            return
        self._add(
            "uplink", f"leaves this host by {exit_.link.name} to {address}", "pass",
            f"{exit_.link.name}: {exit_.link.kind}, MTU {exit_.link.mtu}", ref=link_ref(exit_.link.key),
        )  # fmt: skip

    def _exit(self, outside: list[Attachment], entry: Neighbour | None) -> Attachment:
        """Return the way out of the host: the port that has the MAC, or any open one."""
        for one in outside if entry is not None and entry.mac else ():
            crossing = one.crossings[-1] if one.crossings else None
            known = self.index.segments.fdb(crossing.bridge, entry.mac) if crossing and entry else []
            if any(each.port == one.link.ifindex for each in known):
                return one
        return next((one for one in outside if one.obstacle is None), outside[0])

    def _arrive(self, port: Link) -> bool:
        """Go on where a frame arrives that enters a bridge by a port from outside.

        Return False if the destination isn't on that segment.
        """
        near = self.index.may_answer(self.packet.dst)
        found = self.index.segments.arrivals(port, near)
        owners = [one for one in found if one.link.ns in near and self._answers(one, self.packet.dst)]
        if not owners:
            return False
        owner = next((one for one in owners if one.obstacle is None), owners[0])
        self._obstacle(owner)
        self._cross(port, owner)
        self.ns = owner.link.ns
        self._receive(owner.link)
        return True

    def _cross(self, link: Link, attachment: Attachment) -> None:
        """Pass the links and bridges up to an attachment."""
        self.links += attachment.links
        for one in _receiving(attachment):
            self._filter_link(one)
        if (hop := link_fixes.mtu_hop(self.index.topology, link, attachment.links)) is not None:
            self.hops.append(hop)
        for crossing in attachment.crossings:
            self._cross_bridge(crossing.bridge, crossing.entry, crossing.exit)

    def _filter_link(self, link: Link) -> None:
        """Pass the netdev chains of a link that receives the packet."""
        evaluator = self.index.evaluator(link.ns)
        if evaluator is not None and evaluator.has_link_chains:
            here, self.ns = self.ns, link.ns
            hook = Hook("ingress", (link.name,), sets=evaluator.firewall.sets)
            self._decide(evaluator.evaluate_link(self.packet, hook, link.name), hook)
            self.ns = here

    def _cross_bridge(self, bridge: Link, entry: Link | None, exit_: Link | None) -> None:
        names = " to ".join(one.name for one in (entry, exit_) if one is not None)
        place = self.index.topology.label(bridge.ns)
        if self.index.topology.ovs_bridge(bridge) is not None:
            self._switch(bridge, names, place)
            return
        self.hops.append(Hop("bridge", place, f"bridge {bridge.name}: {names}", ref=link_ref(bridge.key)))
        here, self.ns = self.ns, bridge.ns
        evaluator = self.index.evaluator(bridge.ns)
        if evaluator is not None:
            hooks = _BRIDGE_HOOKS[entry is not None, exit_ is not None]
            if entry is None and self.back_from is not None:
                entry, hooks = self.back_from, ("forward",)
            self.back_from = None
            iifs, oifs = ((one.name, bridge.name) if one else () for one in (entry, exit_))
            for name in hooks:
                if name == "postrouting" and entry is not None and self._calls_iptables(bridge):
                    self._filter_bridged(bridge)
                at = Hook(
                    name, iifs if name in _WITH_INPUT else (), oifs if name in _WITH_OUTPUT else (),
                    sets=evaluator.firewall.sets,
                )  # fmt: skip
                packet = self._in_bridge_input(bridge) if name == "input" else self.packet
                self._decide(evaluator.evaluate_bridge(packet, at), at)
        self.ns = here

    def _switch(self, bridge: Link, names: str, place: str) -> None:
        """Cross a bridge of Open vSwitch, which may have any flows."""
        found = self.index.topology.ovs_bridge(bridge)
        if found is not None and found.normal:
            self.hops.append(
                Hop("bridge", place, f"Open vSwitch {bridge.name}: {names}", ref=link_ref(bridge.key))
            )
            return
        text = f"{bridge.name} is a bridge of Open vSwitch, and its flows decide"
        command = f"vnet-tui show ovs --flows {quoted(bridge.name)}"
        self.hops.append(
            Hop(
                "bridge", place, f"{text}: {names}", "unknown", (command,), link_ref(bridge.key), subject=text
            )
        )

    def _in_bridge_input(self, bridge: Link) -> Packet:
        """Return the packet as the input hook of a bridge sees it, translated."""
        if not self._calls_iptables(bridge) or self.packet.icmp:
            return self.packet
        before = (self.packet, list(self.hops), self.dnat, self.addressed, self.notrack)
        self.packet = self._entered(self.packet)
        try:
            packet = self._filter(Hook("prerouting", (bridge.name,), (), self._is_local(self.packet.dst)))
        except Stopped:
            packet = before[0]  # as its prerouting hook drops it, too
        self.packet, self.hops, self.dnat, self.addressed, self.notrack = before
        return packet

    def _is_local(self, address: str) -> bool:
        tables = self.index.tables(self.ns)
        return tables is not None and tables.is_local(address)

    def _filter_bridged(self, bridge: Link) -> None:
        """Pass a bridged packet through the chains of IP, as br_netfilter does."""
        before = self.packet = self.packet if self.packet.icmp else self._entered(self.packet)
        for name in ("prerouting", "forward", "postrouting"):
            iifs = (bridge.name,) if name != "postrouting" else ()
            oifs = (bridge.name,) if name != "prerouting" else ()
            is_local = name == "prerouting" and self._is_local(self.packet.dst)
            self.packet = self._filter(Hook(name, iifs, oifs, is_local, True))
            if self.packet.dst != before.dst:
                self._add("nat", f"{name}: a bridged packet gets another destination", "unknown")
                raise Stopped
        self._note_tracked(before)

    def _calls_iptables(self, bridge: Link) -> bool:
        ipv6 = self.packet.is_ipv6
        settings = bridge.bridge
        if settings and (settings.nf_call_ip6tables if ipv6 else settings.nf_call_iptables):
            return True
        host = self.index.topology.snapshot.host
        return bridge.ns == self.index.topology.host and host.sysctls.get(fixes.BR_NETFILTER[ipv6]) == "1"


def _receiving(attachment: Attachment) -> Iterator[Link]:
    """Yield the links on the way to an attachment that receive its frames."""
    sending = {one.exit.key for one in attachment.crossings if one.exit is not None}
    before = attachment.links[0]
    for one in attachment.links[1:]:
        is_lower = before.kind in ("macvlan", "macvtap", "vlan") and before.lower == one.ifindex
        if one.key not in sending and not is_lower:
            yield one
        before = one


def _last_bits(address: str) -> str:
    """Return the end of an address's solicited-node multicast address."""
    bits = int(parse_address(address)) & 0xFFFFFF
    return f"{bits >> 16:02x}:{bits & 0xFFFF:x}"

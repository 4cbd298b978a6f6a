"""Send a packet to the owner of an address, across bridges, or out of this host."""

from __future__ import annotations

from dataclasses import dataclass, field

from core.model import FirewallRule, Link, LinkKey, Neighbour, link_ref
from core.reach import fixes, link_fixes, silence
from core.reach.answer import Hop
from core.reach.firewall import Evaluator
from core.reach.hooks import HookedPacket, Stopped, Tracked
from core.reach.packet import Hook
from core.reach.segment import Attachment
from core.reach.texts import evidence_of

_BRIDGE_SYSCTLS = {False: "net.bridge.bridge-nf-call-iptables", True: "net.bridge.bridge-nf-call-ip6tables"}


@dataclass(slots=True)
class SegmentPacket(HookedPacket):
    """A packet that is sent by a link of a namespace.

    `links` are all links that it passed; `left` is the one by which it left this host, None if it didn't:
    that is `edge`, or one that leads to nothing visible.
    """

    links: list[Link] = field(default_factory=list)
    left: Link | None = None
    edge: LinkKey | None = None

    def _receive(self, link: Link) -> None:
        """Go on in the namespace of the link that it arrives at."""
        raise NotImplementedError

    def _leave_host(self, link: Link, owner: Attachment) -> None:
        """End at the uplink."""
        raise NotImplementedError

    def _transmit(self, link: Link, address: str) -> None:
        """Send the packet by a link to the owner of an address on its segment."""
        found = self.index.segments.attachments(link)
        if not link.admin_up and found:
            self._obstacle(found[0])
        if silence.sends_nothing(link):
            self.hops.append(silence.hop(self.index.topology, link, address))
            raise Stopped
        owners = [one for one in found if not one.outside and self._answers(one, address)]
        usable = [one for one in owners if one.obstacle is None]
        outside = [one for one in found if one.outside]
        entry = self._neighbour(link, address)
        if usable:
            self._to_owner(link, address, usable, entry)
        elif owners:
            self._obstacle(owners[0])
        elif outside:
            self._outside(link, address, outside, entry)
        else:
            self._unanswered(link, address, found, entry)

    def _answers(self, attachment: Attachment, address: str) -> bool:
        """Return whether the namespace of an attachment answers ARP or ND for an address."""
        tables = self.index.tables(attachment.link.ns)
        if tables is None:
            return False
        if tables.is_local(address):
            return silence.answers(attachment.link, address)
        return tables.has_proxy(attachment.link, ":" in address)

    def _obstacle(self, attachment: Attachment) -> None:
        if attachment.obstacle is not None:
            self.hops.append(attachment.obstacle)
            raise Stopped

    def _neighbour(self, link: Link, address: str) -> Neighbour | None:
        net = self.index.topology.snapshot.nets[self.ns]
        own = (one for one in net.neighbours if one.ifindex == link.ifindex and not one.proxy)
        return next((one for one in own if one.address == address), None)

    def _to_owner(self, link: Link, address: str, owners: list[Attachment], entry: Neighbour | None) -> None:
        owner = owners[0]
        if link_fixes.lost_bridge(self.index.topology, owner.link) is not None:
            self._loose(owner.link)
        if entry is not None and entry.state == "permanent" and entry.mac != owner.link.mac:
            fix = link_fixes.delete_neighbour(self.ns, entry)
            raise self._stop(
                "neighbour", f"a permanent entry has a wrong MAC for {address}: {entry.mac}",
                f"{address} dev {link.name} lladdr {entry.mac} PERMANENT", ref=link_ref(link.key), fix=fix,
                subject=f"wrong neighbour entry for {address} {self._where}",
            )  # fmt: skip
        if others := [one for one in owners if one.link.mac != owner.link.mac]:
            names = sorted({self.index.topology.label(one.link.ns) for one in owners})
            text = f"{' and '.join(names)} answer for {address}: the same address twice"
            raise self._stop(
                "neighbour", text, ref=link_ref(others[-1].link.key),
                fix=link_fixes.delete_duplicate(self.index.topology, others[-1].link.ns, address),
                subject=f"{' and '.join(names)} have the address {address}",
            )  # fmt: skip
        twin = silence.same_mac(self.index.topology, owner, self.index.segments.attachments(link))
        if wrong := twin or self.index.segments.misdirected(owner, owner.link.mac):
            self.hops.append(wrong)
            raise Stopped
        state = f"neighbour {entry.state}" if entry else "no neighbour entry yet"
        text = f"to {address} at {owner.link.mac}, {self.index.topology.label(owner.link.ns)}"
        evidence = f"{address} dev {link.name}" + (f" lladdr {entry.mac}" if entry else "") + f" ({state})"
        self._add("neighbour", text, "pass", evidence, ref=link_ref(link.key))
        self._cross(link, owner)
        if link.key == self.edge:
            self._leave_host(link, owner)
            return
        self.ns = owner.link.ns
        self._receive(owner.link)

    def _unanswered(
        self, link: Link, address: str, found: tuple[Attachment, ...], entry: Neighbour | None
    ) -> None:
        """Stop because no one on the segment has the address."""
        topology = self.index.topology
        if found and all(one.obstacle for one in found):
            self._obstacle(found[0])
        if (port := link_fixes.loose_port(topology, link, address)) is not None:
            self._loose(port)
        if (quiet := silence.find(topology, self.index.segments.attachments(link), address)) is not None:
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
        exit_ = next((one for one in outside if one.obstacle is None), outside[0])
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
        self._add(
            "uplink", f"leaves this host by {exit_.link.name} to {address}", "pass",
            f"{exit_.link.name}: {exit_.link.kind}, MTU {exit_.link.mtu}", ref=link_ref(exit_.link.key),
        )  # fmt: skip

    def _cross(self, link: Link, attachment: Attachment) -> None:
        """Pass the links and bridges up to an attachment."""
        self.links += attachment.links
        for one in attachment.links[1:]:
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
        self.hops.append(Hop("bridge", place, f"bridge {bridge.name}: {names}", ref=link_ref(bridge.key)))
        here, self.ns = self.ns, bridge.ns
        evaluator = self.index.evaluator(bridge.ns)
        if evaluator is not None and entry is not None:
            hook = "forward" if exit_ else "input"
            iifs, oifs = (entry.name, bridge.name), (exit_.name, bridge.name) if exit_ else ()
            for name in ("prerouting", hook):
                at = Hook(name, iifs, oifs if name == "forward" else (), sets=evaluator.firewall.sets)
                self._decide(evaluator.evaluate_bridge(self.packet, at), at)
            if exit_ is not None and self._calls_iptables(bridge):
                self._filter_bridged(evaluator, bridge, entry, exit_)
        self.ns = here

    def _filter_bridged(self, evaluator: Evaluator, bridge: Link, entry: Link, exit_: Link) -> None:
        """Pass a bridged packet through the chains of IP, as br_netfilter does."""
        packet = self._with_state(self.packet)
        for name in ("prerouting", "forward", "postrouting"):
            iifs = (bridge.name,) if name != "postrouting" else ()
            oifs = (bridge.name,) if name != "prerouting" else ()
            hook = Hook(name, iifs, oifs, False, True, evaluator.firewall.sets)
            decision = evaluator.evaluate(packet, hook)
            self._decide(decision, hook, bridged=True)
        if not packet.is_reply:
            self.tracked.append(Tracked(bridge.ns, packet, packet))

    def _calls_iptables(self, bridge: Link) -> bool:
        ipv6 = self.packet.is_ipv6
        settings = bridge.bridge
        if settings and (settings.nf_call_ip6tables if ipv6 else settings.nf_call_iptables):
            return True
        host = self.index.topology.snapshot.host
        return bridge.ns == self.index.topology.host and host.sysctls.get(_BRIDGE_SYSCTLS[ipv6]) == "1"

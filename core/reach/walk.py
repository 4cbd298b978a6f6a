"""Follow one packet through the namespaces of a snapshot, hop by hop.

The order of the decisions is the kernel's: ip_rcv, PREROUTING, routing with the check of the source, INPUT or
FORWARD, POSTROUTING, neighbour, link (net/ipv4/ip_input.c, ip_forward.c, ip_output.c).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from core.model import FirewallRule, Link, LinkKey, Neighbour, link_ref, namespace_ref
from core.reach import fixes
from core.reach.answer import Hop
from core.reach.firewall import Evaluator
from core.reach.hooks import HookedPacket, Stopped, Tracked
from core.reach.listener import check_listener
from core.reach.packet import Hook, Packet
from core.reach.routing import Lookup, RoutingTables
from core.reach.segment import Attachment
from core.reach.texts import evidence_of, route_text, rule_text

_MOST_HOPS = 128
_BRIDGE_SYSCTLS = {False: "net.bridge.bridge-nf-call-iptables", True: "net.bridge.bridge-nf-call-ip6tables"}


@dataclass(slots=True)
class Walk(HookedPacket):
    """Follow one packet; `hops` and `tracked` grow with it.

    After `run`, `ns` and `packet` are where it ended; `arrived` is True if a socket gets it, `left` the link
    by which it left the host (None if it didn't): the link `edge`, or one that leads to nothing visible.
    `links` are all links that it passed.
    """

    links: list[Link] = field(default_factory=list)
    arrived: bool = False
    left: Link | None = None
    untranslated: Hop | None = None
    edge: LinkKey | None = None

    def run(self, iif: Link | None = None) -> bool:
        """Follow the packet from a socket of `ns`, or from its link `iif`."""
        try:
            if iif is None:
                self._send_locally()
            else:
                self._receive(iif)
        except Stopped:
            return False
        return self.arrived or self.left is not None

    # ---- from a socket

    def _send_locally(self) -> None:
        tables = self._tables()
        lookup = tables.lookup(self.packet)
        if not self.packet.src:
            self.packet = replace(self.packet, src=tables.source_for(lookup, self.packet.dst))
        lookup = tables.lookup(self.packet)
        self._check_route(lookup, tables)
        if not self.packet.src:
            raise self._stop(
                "route", "it has no address to send from",
                ref=namespace_ref(self.ns), subject=f"{self._place} has no address",
            )  # fmt: skip
        self._conntrack_full()
        link = self._link_of(lookup)
        before = self._with_state(self.packet)
        self.packet = before
        translated = self._filter(Hook("output", (), (link.name,), lookup.is_local))
        if translated.dst != before.dst:
            self.packet = translated
            lookup = tables.lookup(translated)
            self._check_route(lookup, tables)
            link = self._link_of(lookup)
        self.packet = translated
        if lookup.is_local:
            self._note_tracked(before)
            self._deliver(link)
            return
        self._describe_route(lookup)
        self._leave(link, lookup, before)

    def _tables(self) -> RoutingTables:
        tables = self.index.tables(self.ns)
        if tables is None:
            self._add(
                "route", "its links couldn't be read", "unknown", subject=f"{self._place} can't be read"
            )
            raise Stopped
        return tables

    def _check_route(self, lookup: Lookup, tables: RoutingTables) -> None:
        """Stop if there is no route."""
        dst = self.packet.dst
        if lookup.end:
            evidence = route_text(tables.net, lookup.route) if lookup.route else rule_text(lookup)
            fix = fixes.delete_end(self.ns, lookup)
            what = "route" if lookup.route else "rule"
            raise self._stop(
                "route", f"a {lookup.end} {what} discards packets to {dst}", evidence,
                ref=namespace_ref(self.ns), fix=fix, subject=f"{lookup.end} {what} for {dst}",
            )  # fmt: skip
        if lookup.route is not None:
            return
        topology = self.index.topology
        if (down := fixes.down_link(tables.net)) is not None:
            fix = fixes.set_up(topology, down, self.packet.is_ipv6)
            subject = f"{down.name} of {self._place} is down"
            raise self._stop(
                "link", f"no route to {dst}: {down.name} is down", f"{down.name}: state DOWN",
                ref=link_ref(down.key), fix=fix, subject=subject,
            )  # fmt: skip
        default = fixes.default_route(topology, self.ns, self.packet.is_ipv6)
        subject = f"{self._place} has no route to {dst}"
        text = f"no route to {dst}"
        raise self._stop("route", text, ref=namespace_ref(self.ns), fix=default, subject=subject)

    def _link_of(self, lookup: Lookup) -> Link:
        net = self._net
        if lookup.is_local:
            loopback = next((one for one in net.links.values() if one.kind == "loopback"), None)
            if loopback is not None:
                return loopback
        link = net.links.get(lookup.hop.ifindex or 0) if lookup.hop else None
        if link is None:
            self._add("route", "the link of the route isn't known", "unknown")
            raise Stopped
        return link

    def _describe_route(self, lookup: Lookup) -> None:
        assert lookup.route is not None
        rule = lookup.rule
        evidence = [route_text(self._net, lookup.route)]
        if rule is not None and rule.table != "main":
            evidence.append(rule_text(lookup))
        hop = lookup.hop
        via = f"via {hop.gateway}" if hop and hop.gateway else "directly"
        link = self._link_of(lookup)
        verdict = "unknown" if lookup.unsure else "pass"
        text = f"route to {self.packet.dst}: {via} by {link.name}"
        self._add("route", text, verdict, *evidence, ref=link_ref(link.key))

    # ---- from a link

    def _receive(self, link: Link) -> None:
        if len(self.hops) > _MOST_HOPS:
            raise self._stop("route", "a routing loop", subject="a routing loop")
        tables = self._tables()
        self._conntrack_full()
        before = self._with_state(self.packet)
        self.packet = before
        local = tables.is_local(before.dst)
        self.packet = self._filter(Hook("prerouting", (link.name,), (), local))
        lookup = tables.lookup(self.packet, iif=link.name)
        if fault := tables.source_fault(self.packet, link):
            self._source_stop(fault, link, tables)
        if lookup.is_local:
            self._note_tracked(before)
            self._deliver(link)
            return
        self._forward(link, lookup, tables, before)

    def _source_stop(self, fault: str, link: Link, tables: RoutingTables) -> None:
        src = self.packet.src
        if fault == "own address":
            raise self._stop(
                "rp_filter", f"it drops packets from {src} at {link.name}: that is an address of its own",
                f"ip addr show to {src}", ref=namespace_ref(self.ns),
                fix=fixes.delete_duplicate(self.index.topology, self.ns, src),
                subject=f"{src} is also an address of {self._place}",
            )  # fmt: skip
        fix = fixes.loosen_rp_filter(self.ns, link, tables.net)
        raise self._stop(
            "rp_filter", f"rp_filter drops packets from {src} at {link.name}: the way back isn't that link",
            f"net.ipv4.conf.{link.name}.rp_filter = {tables.rp_filter(link)}",
            ref=link_ref(link.key), fix=fix, subject=f"rp_filter of {link.name}",
        )  # fmt: skip

    def _forward(self, link: Link, lookup: Lookup, tables: RoutingTables, before: Packet) -> None:
        ipv6 = self.packet.is_ipv6
        forwards = tables.forwards(link, ipv6)
        if forwards is False:
            key = fixes.forwarding_key(tables, link, ipv6)
            fix = fixes.set_forwarding(self.ns, key)
            family = "IPv6" if ipv6 else "IPv4"
            at = "" if key.endswith(("ip_forward", "all.forwarding")) else f" for {link.name}"
            raise self._stop(
                "forwarding", f"{family} forwarding is off{at}", f"{key} = 0", ref=namespace_ref(self.ns),
                fix=fix, subject=f"{family} forwarding is off{at} in {self._place}",
            )  # fmt: skip
        self._check_route(lookup, tables)
        out = self._link_of(lookup)
        self._describe_route(lookup)
        self.packet = self._filter(Hook("forward", (link.name,), (out.name,), False))
        self._leave(out, lookup, before, link)

    # ---- out of a namespace

    def _leave(self, link: Link, lookup: Lookup, before: Packet, iif: Link | None = None) -> None:
        """Pass POSTROUTING, and send the packet to the next hop."""
        hook = Hook("postrouting", (iif.name,) if iif else (), (link.name,), False)
        unchanged = self.packet
        self.packet = self._filter(hook)
        if self.packet.src == unchanged.src and iif is not None:
            self._check_translation(link)
        self._note_tracked(before)
        hop = lookup.hop
        self._transmit(link, (hop.gateway if hop else "") or self.packet.dst)

    def _check_translation(self, link: Link) -> None:
        """Remember that a private address leaves by the default route without NAT."""
        found = self.index.topology.uplink(self.ns)
        if found and found[0].key == link.key and not self.packet.is_reply:
            hop = fixes.untranslated(self.index.topology, self.ns, self.packet, link)
            self.untranslated = self.untranslated or hop

    def _transmit(self, link: Link, address: str) -> None:
        """Send the packet by a link to the owner of an address on its segment."""
        found = self.index.segments.attachments(link)
        if not link.admin_up and found:
            self._obstacle(found[0])
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

    def _leave_host(self, link: Link, owner: Attachment) -> None:
        """End at the uplink; a router that can be seen must know the way back."""
        tables = self.index.tables(owner.link.ns)
        if self.untranslated is not None and tables is not None:
            back = tables.lookup(Packet(self.packet.dst, self.packet.src))
            if back.route is None or back.end:
                self.hops.append(replace(self.untranslated, verdict="stop"))
                raise Stopped
        self.left = link
        text = f"leaves this host by {link.name} to {self.index.topology.label(owner.link.ns)}"
        self._add("uplink", text, "pass", f"{link.name}: MTU {link.mtu}", ref=link_ref(link.key))

    def _answers(self, attachment: Attachment, address: str) -> bool:
        """Return whether the namespace of an attachment answers ARP or ND for an address."""
        tables = self.index.tables(attachment.link.ns)
        if tables is None:
            return False
        if tables.is_local(address):
            ipv6 = ":" in address
            # IPv6 answers only for addresses of the link itself.
            return not ipv6 or any(one.address == address for one in attachment.link.addresses)
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
        if entry is not None and entry.state == "permanent" and entry.mac != owner.link.mac:
            fix = fixes.delete_neighbour(self.ns, entry)
            raise self._stop(
                "neighbour", f"a permanent entry has a wrong MAC for {address}: {entry.mac}",
                f"{address} dev {link.name} lladdr {entry.mac} PERMANENT", ref=link_ref(link.key), fix=fix,
                subject=f"wrong neighbour entry for {address} in {self._place}",
            )  # fmt: skip
        if others := [one for one in owners if one.link.mac != owner.link.mac]:
            names = sorted({self.index.topology.label(one.link.ns) for one in owners})
            text = f"{' and '.join(names)} answer for {address}: the same address twice"
            raise self._stop(
                "neighbour", text, ref=link_ref(others[-1].link.key),
                fix=fixes.delete_duplicate(self.index.topology, others[-1].link.ns, address),
                subject=f"{' and '.join(names)} have the address {address}",
            )  # fmt: skip
        if wrong := self.index.segments.misdirected(owner, owner.link.mac):
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
        if (port := fixes.loose_port(topology, link, address)) is not None:
            raise self._stop(
                "bridge", f"{port.name}, which leads to {topology.label(fixes.inner_ns(topology, port))}, "
                "is a port of no bridge",
                f"ip link show {port.name}", ref=link_ref(port.key), fix=fixes.attach_port(topology, port),
                subject=f"{port.name} is on no bridge",
            )  # fmt: skip
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
        if (hop := fixes.mtu_hop(self.index.topology, link, attachment.links)) is not None:
            self.hops.append(hop)
        for crossing in attachment.crossings:
            self._cross_bridge(crossing.bridge, crossing.entry, crossing.exit)

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

    # ---- to a socket

    def _deliver(self, link: Link) -> None:
        """Pass INPUT, and check that a process listens."""
        self._filter(Hook("input", (link.name,), (), True))
        hop = check_listener(self.index.topology, self.ns, self.packet)
        self.hops.append(hop)
        if hop.verdict == "stop":
            raise Stopped
        self.arrived = True

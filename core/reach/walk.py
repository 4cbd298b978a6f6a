"""Follow one packet through the namespaces of a snapshot, hop by hop.

The order of the decisions is the kernel's: ip_rcv, PREROUTING, routing with the check of the source, INPUT or
FORWARD, POSTROUTING, neighbour, link (net/ipv4/ip_input.c, ip_forward.c, ip_output.c).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from core.model import FirewallRule, Link, link_ref, namespace_ref
from core.model.fix import Fix, FixLink
from core.reach import fixes, link_fixes
from core.reach.answer import Hop
from core.reach.hooks import Stopped
from core.reach.listener import check_listener
from core.reach.packet import Hook, Packet
from core.reach.routing import Lookup, RoutingTables
from core.reach.segment import Attachment
from core.reach.texts import evidence_of, route_text, rule_text
from core.reach.transmit import SegmentPacket

_MOST_HOPS = 128


@dataclass(slots=True)
class Walk(SegmentPacket):
    """Follow one packet; `hops` and `tracked` grow with it.

    After `run`, `ns` and `packet` are where it ended; `arrived` is True if a socket gets it, `left` the link
    by which it left the host (None if it didn't): the link `edge`, or one that leads to nothing visible.
    `links` are all links that it passed.
    """

    arrived: bool = False
    untranslated: Hop | None = None

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
                ref=namespace_ref(self.ns), subject=f"{self._who} has no address",
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
            self._check_loopback(link)
            self._note_tracked(before)
            self._deliver(link)
            return
        self._describe_route(lookup)
        self._leave(link, lookup, before)

    def _check_loopback(self, link: Link) -> None:
        """Stop if the loopback link is down."""
        if link.kind == "loopback" and not link.admin_up:
            text = f"the loopback link {link.name} of {self._who} is down"
            fix = Fix(f"set {link.name} up", (FixLink(link.key, "up", "up"),))
            evidence = f"{link.name}: state DOWN"
            raise self._stop("link", text, evidence, ref=link_ref(link.key), fix=fix)

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
            rule = lookup.rule
            if lookup.route and rule is not None and rule.table not in ("main", "local", "default"):
                evidence, what = f"{rule_text(lookup)}; {evidence}", f"route of table {rule.table}"
            raise self._stop(
                "route", f"a {lookup.end} {what} discards packets to {dst}", evidence,
                ref=namespace_ref(self.ns), fix=fix, subject=f"{lookup.end} {what} for {dst}",
            )  # fmt: skip
        if lookup.route is not None and lookup.route.kind == "broadcast":
            raise self._stop(
                "route", f"{dst} is a broadcast address here", route_text(tables.net, lookup.route),
                ref=namespace_ref(self.ns), fix=link_fixes.align_prefix(self.index.topology, self.ns, dst),
                subject=f"{dst} is the broadcast address of a prefix of {self._who}",
            )  # fmt: skip
        if lookup.route is not None:
            return
        topology = self.index.topology
        if (down := link_fixes.down_link(tables.net)) is not None:
            fix = link_fixes.set_up(topology, down, self.packet.is_ipv6)
            subject = f"{down.name} of {self._who} is down"
            raise self._stop(
                "link", f"no route to {dst}: {down.name} is down", f"{down.name}: state DOWN",
                ref=link_ref(down.key), fix=fix, subject=subject,
            )  # fmt: skip
        default = fixes.default_route(topology, self.ns, self.packet.is_ipv6)
        subject = f"{self._who} has no route to {dst}"
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
                fix=link_fixes.delete_duplicate(self.index.topology, self.ns, src),
                subject=f"{src} is also an address of {self._who}",
            )  # fmt: skip
        fix = fixes.loosen_rp_filter(self.ns, link, tables.net)
        raise self._stop(
            "rp_filter", f"rp_filter drops packets from {src} at {link.name}: the way back isn't that link",
            f"net.ipv4.conf.{link.name}.rp_filter = {tables.rp_filter(link)}",
            ref=link_ref(link.key), fix=fix,
            subject=f"rp_filter of {link.name} {self._where} drops packets from {src}",
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
                fix=fix, subject=f"{family} forwarding is off{at} {self._where}",
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
            if hop is not None and self.notrack is not None:
                hop = self._not_tracked(self.notrack)
            self.untranslated = self.untranslated or hop

    def _not_tracked(self, rule: FirewallRule) -> Hop:
        """Return a hop for a packet that isn't translated because it isn't tracked."""
        text = f"a notrack rule of {rule.table} {rule.chain} {self._where} keeps it from being translated"
        ref = self.index.rule_ref(self.ns, rule) or namespace_ref(self.ns)
        fix = fixes.delete_rule(self.ns, rule)
        return Hop("nat", self._place, text, "warn", (evidence_of(rule),), ref, fix, text)

    def _leave_host(self, link: Link, owner: Attachment) -> None:
        """End at the uplink; a router that can be seen must know the way back."""
        tables = self.index.tables(owner.link.ns)
        if self.untranslated is not None and tables is not None:
            back = tables.lookup(Packet(self.packet.dst, self.packet.src))
            if back.route is None or back.end:
                self.hops.append(replace(self.untranslated, verdict="stop"))
                raise Stopped
        self._check_new_source(link)
        self.left = link
        text = f"leaves this host by {link.name} to {self.index.topology.label(owner.link.ns)}"
        self._add("uplink", text, "pass", f"{link.name}: MTU {link.mtu}", ref=link_ref(link.key))

    def _check_new_source(self, link: Link) -> None:
        """Stop if a rule translates the source to an address that no one answers for."""
        own, source = self._tables(), self.packet.src
        if (
            self.snat is None
            or self.packet.is_reply
            or own.is_local(source)
            or own.has_proxy(link, ":" in source)
        ):
            return
        if link_fixes.is_on_link(link, source):
            rule = self.snat
            raise self._stop(
                "nat", f"a rule of {rule.table} {rule.chain} translates the source to {source}, "
                "which isn't an address of the host", evidence_of(rule),
                ref=self.index.rule_ref(self.ns, rule) or namespace_ref(self.ns),
                fix=fixes.delete_rule(self.ns, rule),
                subject=f"a rule translates the source to {source}, which isn't an address of the host",
            )  # fmt: skip

    # ---- to a socket

    def _deliver(self, link: Link) -> None:
        """Pass INPUT, and check that a process listens."""
        self._filter(Hook("input", (link.name,), (), True))
        hop = check_listener(self.index.topology, self.ns, self.packet)
        if hop.verdict == "stop" and (shadow := self._shadowed()) is not None:
            hop = shadow
        self.hops.append(hop)
        if hop.verdict == "stop":
            raise Stopped
        self.arrived = True

"""Follow one packet through the namespaces of a snapshot, hop by hop.

The order of the decisions is the kernel's: ip_rcv, PREROUTING, routing with the check of the source, INPUT or
FORWARD, POSTROUTING, neighbour, link (net/ipv4/ip_input.c, ip_forward.c, ip_output.c).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from core.model import FirewallRule, Link, link_ref, namespace_ref
from core.model.fix import Fix, FixLink, FixPort, FixRoute, FixSysctl
from core.reach import client_ports, fixes, link_fixes
from core.reach.answer import Hop
from core.reach.hooks import Stopped
from core.reach.listener import check_listener
from core.reach.packet import Hook, Packet, parse_address
from core.reach.routing import Lookup, RoutingTables
from core.reach.segment import Attachment
from core.reach.texts import evidence_of
from core.reach.transmit import SegmentPacket

_MOST_HOPS = 128
TTL, _USUAL_TTL = "net.ipv4.ip_default_ttl", "64"


@dataclass(slots=True)
class Walk(SegmentPacket):
    """Follow one packet; `hops` and `tracked` grow with it.

    After `run`, `ns` and `packet` are where it ended; `arrived` is True if a socket gets it, `left` the link
    by which it left the host (None if it didn't): the link `edge`, or one that leads to nothing visible.
    `links` are all links that it passed.
    """

    arrived: bool = False
    untranslated: Hop | None = None
    sent: Packet | None = None  # as its socket sent it
    origin: int | None = None  # the namespace of that socket
    ttl: int = 64
    ttl_from: int = 0  # the namespace whose setting it is

    def run(self, iif: Link | None = None) -> bool:
        """Follow the packet from a socket of `ns`, or from its link `iif`."""
        try:
            if iif is None:
                self._send_locally()
            elif iif.kind != "vxlan" or not self._arrive(iif):
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
        self._check_client_port()
        self.origin = self.ns
        self.ttl, self.ttl_from = int(self._net.sysctls.get(TTL, _USUAL_TTL)), self.ns
        link = self._link_of(lookup)
        before = self.sent = self.packet = self._entered(replace(self.packet, mark=0))
        self.packet = self._filter(Hook("output", (), (link.name,), lookup.is_local))
        if self.packet.dst != before.dst or self.rerouted:
            lookup = tables.lookup(self.packet)
            self._check_route(lookup, tables)
            link = self._link_of(lookup)
        if lookup.is_local:
            self._check_loopback(link)
            self._pass_loopback(link)
            self._deliver(link, before, with_nat=False)
            return
        self._check_localnet(self.packet.src, link)
        self._describe_route(lookup)
        self._leave(link, lookup, before)

    def _pass_loopback(self, link: Link) -> None:
        """Leave by the loopback link and enter by it again, without new translations."""
        self.packet = self._filter(Hook("postrouting", (), (link.name,), True))
        self.packet = self._filter(Hook("prerouting", (link.name,), (), True), with_nat=False)

    def _check_localnet(self, address: str, link: Link) -> None:
        """Stop if a loopback address would be seen on another link."""
        is_loopback = ":" not in address and parse_address(address).is_loopback
        allowed = link.kind == "loopback" or (link.bridge is not None and link.bridge.route_localnet)
        if is_loopback and not allowed:
            key = f"net.ipv4.conf.{link.name.replace('.', '/')}.route_localnet"
            fix = Fix(f"set {key} to 1", (FixSysctl(self.ns, key, "1", "0"),))
            raise self._stop(
                "route", f"{address} isn't routed on {link.name}: route_localnet is off", f"{key} = 0",
                ref=link_ref(link.key), fix=fix,
                subject=f"route_localnet of {link.name} {self._where} is off",
            )  # fmt: skip

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
            evidence = tables.net.route_text(lookup.route) if lookup.route else str(lookup.rule or "")
            fix = fixes.delete_end(self.ns, lookup)
            what = "route" if lookup.route else "rule"
            rule = lookup.rule
            if lookup.route and rule is not None and rule.table not in ("main", "local", "default"):
                evidence, what = f"{rule}; {evidence}", f"route of table {rule.table}"
            raise self._stop(
                "route", f"a {lookup.end} {what} discards packets to {dst}", evidence,
                ref=namespace_ref(self.ns), fix=fix, subject=f"{lookup.end} {what} for {dst}",
            )  # fmt: skip
        if lookup.route is not None and lookup.route.kind == "broadcast":
            raise self._stop(
                "route", f"{dst} is a broadcast address here", tables.net.route_text(lookup.route),
                ref=namespace_ref(self.ns), fix=link_fixes.align_prefix(self.index.topology, self.ns, dst),
                subject=f"{dst} is the broadcast address of a prefix of {self._who}",
            )  # fmt: skip
        if lookup.route is not None:
            return
        topology = self.index.topology
        if (down := link_fixes.down_link(tables.net)) is not None:
            fix = link_fixes.set_up(topology, down)
            subject = f"{down.name} of {self._who} is down"
            raise self._stop(
                "link", f"no route to {dst}: {down.name} is down", f"{down.name}: state DOWN",
                ref=link_ref(down.key), fix=fix, subject=subject,
            )  # fmt: skip
        text, fix = fixes.missing_route(topology, self.ns, dst)
        subject = f"{self._who} {text}"
        raise self._stop("route", text, ref=namespace_ref(self.ns), fix=fix, subject=subject)

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
        evidence = [self._net.route_text(lookup.route)]
        if rule is not None and rule.table != "main":
            evidence.append(str(rule))
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
        before = self.packet = self._entered(self.packet)
        local = tables.is_local(before.dst)
        self.packet = self._filter(Hook("prerouting", (link.name,), (), local))
        self._check_localnet(self.packet.dst, link)
        lookup = tables.lookup(self.packet, iif=link.name)
        if fault := tables.source_fault(self.packet, link):
            self._source_stop(fault, link, tables)
        if lookup.is_local:
            self._deliver(link, before)
            return
        if self.port is not None and self.packet.dst != before.dst and self._calls_iptables(link):
            out = lookup.hop
            if out is not None and out.ifindex == link.ifindex and not out.gateway:
                self._bridge_back(link, lookup, before, self.port)
                return
        self._forward(link, lookup, tables, before)

    def _bridge_back(self, bridge: Link, lookup: Lookup, before: Packet, port: Link) -> None:
        """Forward a packet on its bridge, as br_netfilter does after DNAT.

        See br_nf_pre_routing_finish in the kernel's net/bridge/br_netfilter_hooks.c.
        """
        self._describe_route(lookup)
        found = self.index.segments.attachments(bridge, self.index.may_answer(self.packet.dst))
        owner = next((one for one in found if self._answers(one, self.packet.dst)), None)
        exit_ = owner.crossings[0].exit if owner is not None and owner.crossings else None
        if exit_ is not None and exit_.key == port.key and not (port.port and port.port.hairpin):
            text = f"br_netfilter sends it back to the port {port.name}, whose hairpin mode is off"
            fix = Fix(f"switch hairpin mode on at {port.name}", (FixPort(port.key, "hairpin", True),))
            raise self._stop(
                "bridge", text, f"bridge -d link show dev {port.name}: hairpin off", ref=link_ref(port.key),
                fix=fix, subject=f"hairpin mode of {port.name} is off",
            )  # fmt: skip
        if exit_ is not None and exit_.port and port.port and exit_.port.isolated and port.port.isolated:
            raise self._stop(
                "bridge", f"the ports {port.name} and {exit_.name} are both isolated", ref=link_ref(port.key),
                subject=f"{port.name} is isolated",
            )  # fmt: skip
        self.packet = self._filter(Hook("forward", (bridge.name,), (bridge.name,), False, True))
        self.back_from = port
        self._leave(bridge, lookup, before, bridge)

    def _check_client_port(self) -> None:
        """Stop if the namespace has no port left for a new connection."""
        sysctls = self._net.sysctls
        reserved = sysctls.get(client_ports.RESERVED, "")
        if self.packet.is_reply or not self.packet.dport or client_ports.has_free(sysctls):
            return
        text = f"all ports for connections of {self._who} are reserved"
        fix = Fix(
            f"clear {client_ports.RESERVED}", (FixSysctl(self.ns, client_ports.RESERVED, "", reserved),)
        )
        evidence = [f"{name} = {sysctls[name]}" for name in client_ports.NAMES if name in sysctls]
        raise self._stop("route", text, *evidence, ref=namespace_ref(self.ns), fix=fix, subject=text)

    def _check_ttl(self) -> None:
        """Stop if the packet's TTL ends here."""
        self.ttl -= 1
        if self.ttl > 0 or self.packet.is_ipv6:
            return
        ns = self.ttl_from
        place = self.index.topology.label(ns)
        value = self.index.topology.snapshot.nets[ns].sysctls.get(TTL, "")
        fix = Fix(f"set {TTL} to {_USUAL_TTL}", (FixSysctl(ns, TTL, _USUAL_TTL, value),))
        subject = f"{place} sends packets with TTL {value}"
        raise self._stop(
            "route", "the packet's TTL ends here", f"{TTL} = {value} in {place}", ref=namespace_ref(ns),
            fix=fix, subject=subject,
        )  # fmt: skip

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
        self._check_ttl()
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
        if self.packet.src == unchanged.src:
            self._check_translation(link, lookup, iif is None)
        self._note_tracked(before)
        hop = lookup.hop
        self._transmit(link, (hop.gateway if hop else "") or self.packet.dst)

    def _check_translation(self, link: Link, lookup: Lookup, is_own: bool) -> None:
        """Remember that a private address leaves by the default route without NAT."""
        found = self.index.topology.uplink(self.ns)
        if found and found[0].key == link.key and not self.packet.is_reply:
            hop = fixes.untranslated(self.index.topology, self.ns, self.packet, link)
            if hop is not None and is_own:
                hop = self._wrong_source(hop, lookup)
            elif hop is not None and hop.verdict != "pass" and self.notrack is not None:
                hop = self._not_tracked(self.notrack)
            self.untranslated = self.untranslated or hop

    def _wrong_source(self, hop: Hop, lookup: Lookup) -> Hop:
        """Return a hop for a private address that a route makes the namespace send from."""
        route, src = lookup.route, self.packet.src
        if route is None or route.source != src:
            return hop
        steps = (FixRoute(self.ns, route, False), FixRoute(self.ns, replace(route, source=""), True))
        fix = Fix(f"let the kernel choose the source address for {route.dst}", steps)
        text = f"the route to {route.dst} makes {self._who} send from {src}, which gets no answers"
        return replace(
            hop, kind="route", text=text, evidence=(f"{self._net.route_text(route)} src {src}",),
            ref=namespace_ref(self.ns), fix=fix, subject=text,
        )  # fmt: skip

    def _not_tracked(self, rule: FirewallRule) -> Hop:
        """Return a hop for a packet that isn't translated because it isn't tracked."""
        where = f"{rule.table} {rule.chain} {self._where}"
        text = f"a notrack rule of {where} keeps the packets from being translated"
        ref = self.index.rule_ref(self.ns, rule) or namespace_ref(self.ns)
        fix = fixes.delete_rule(self.ns, rule)
        return Hop("nat", self._place, text, "warn", (evidence_of(rule),), ref, fix, text)

    def _leave_host(self, link: Link, owner: Attachment) -> None:
        """End at the uplink; a router that can be seen must know the way back."""
        tables = self.index.tables(owner.link.ns)
        if self.untranslated is not None and tables is not None:
            back = tables.lookup(Packet(self.packet.dst, self.packet.src))
            if back.route is None or back.end:
                self.hops.append(self._without_answer(self.untranslated, owner.link))
                raise Stopped
        self._check_new_source(link)
        self.left = link
        text = f"leaves this host by {link.name} to {self.index.topology.label(owner.link.ns)}"
        self._add("uplink", text, "pass", f"{link.name}: MTU {link.mtu}", ref=link_ref(link.key))

    def _without_answer(self, untranslated: Hop, router: Link) -> Hop:
        """Return the hop of a packet that a router outside can't answer."""
        if untranslated.verdict != "pass":
            return replace(untranslated, verdict="stop")
        text = f"{self.index.topology.label(router.ns)} has no route back to {self.packet.src}"
        fix = Fix(untranslated.subject.replace("hosts outside need", "give the hosts outside"))
        return replace(untranslated, verdict="stop", text=text, subject=text, fix=fix)

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

    def _deliver(self, link: Link, before: Packet, with_nat: bool = True) -> None:
        """Pass INPUT, and check that a process listens."""
        self.packet = self._filter(Hook("input", (link.name,), (), True), with_nat)
        self._note_tracked(before)
        hop = check_listener(self.index.topology, self.ns, self.packet)
        if hop.verdict == "stop":
            hop = self._shadowed() or (self._limited_dnat() if self.dnat is None else None) or hop
        self.hops.append(hop)
        if hop.verdict == "stop":
            raise Stopped
        self.arrived = True

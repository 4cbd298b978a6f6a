"""Pass a packet through the hooks of a namespace: rules, NAT and conntrack."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field, replace

from core.model import FirewallRule, NatEntry, NetState, Ref, namespace_ref, nat_ref
from core.model.fix import Fix
from core.reach import fixes
from core.reach.answer import Hop
from core.reach.firewall import Decision, Evaluator
from core.reach.packet import Hook, Packet
from core.reach.routing import RoutingTables
from core.reach.segment import Segments
from core.reach.texts import evidence_of, policy_evidence
from core.reach.translate import translated
from core.text import end_text
from core.topology import Topology

CLIENT_PORT = 45678  # within ip_local_port_range


class Stopped(Exception):
    """The packet doesn't get further; the last hop says why."""


class Index:
    """What walks through one topology share: evaluators, routing tables, attachments.

    It is kept with the topology, and must not keep the topology alive: its tables are large.
    """

    def __init__(self, topology: Topology) -> None:
        self._topology = weakref.ref(topology)
        self.segments = Segments(topology)
        self._evaluators: dict[int, Evaluator | None] = {}
        self._tables: dict[int, RoutingTables | None] = {}
        self._entries: dict[tuple[int, str], NatEntry] | None = None
        self._holders: dict[str, set[int]] | None = None
        self._others: set[int] = set()
        self._macs: dict[str, set[int]] | None = None

    @property
    def topology(self) -> Topology:
        """Return the topology, which the caller keeps."""
        found = self._topology()
        assert found is not None
        return found

    def evaluator(self, ns: int) -> Evaluator | None:
        """Return the evaluator of a namespace's rules, None if there are none."""
        if ns not in self._evaluators:
            firewall = self.topology.snapshot.firewalls.get(ns)
            self._evaluators[ns] = Evaluator(firewall) if firewall and firewall.chains else None
        return self._evaluators[ns]

    def tables(self, ns: int) -> RoutingTables | None:
        """Return the routing tables of a namespace, None if it couldn't be read."""
        if ns not in self._tables:
            net = self.topology.snapshot.nets.get(ns)
            self._tables[ns] = RoutingTables(net) if net and net.links else None
        return self._tables[ns]

    def may_answer(self, address: str) -> set[int]:
        """Return the namespaces that may answer ARP or ND for an address: few of many."""
        if self._holders is None:
            self._holders, self._others = {}, set()
            for ns in self.topology.snapshot.nets:
                tables = self.tables(ns)
                if tables is None:
                    continue
                if tables.has_wide_answers():
                    self._others.add(ns)
                for one in tables.local_addresses():
                    self._holders.setdefault(one, set()).add(ns)
        return self._holders.get(address, set()) | self._others

    def having_mac(self, mac: str) -> set[int]:
        """Return the namespaces with a link that has a MAC address."""
        if self._macs is None:
            self._macs = {}
            for link in self.topology.snapshot.links():
                self._macs.setdefault(link.mac, set()).add(link.ns)
        return self._macs.get(mac, set())

    def rule_ref(self, ns: int, rule: FirewallRule) -> Ref | None:
        """Return the ref of the NAT entry that a rule belongs to, None for other rules."""
        if self._entries is None:
            self._entries = {}
            for entry in self.topology.nat:
                for rule_id in entry.rules:
                    self._entries.setdefault((entry.ns, rule_id), entry)
        found = self._entries.get((ns, rule.rule_id))
        return nat_ref(found.ns, found.entry_id) if found else None


@dataclass(slots=True)
class Tracked:
    """A connection tracked in a namespace: its packet before and after NAT."""

    ns: int
    before: Packet
    after: Packet
    zone_rule: FirewallRule | None = None


@dataclass(slots=True)
class HookedPacket:
    """A packet in a namespace (`ns`), with the hops that it has passed."""

    index: Index
    packet: Packet
    ns: int
    tracked: list[Tracked] = field(default_factory=list)
    hops: list[Hop] = field(default_factory=list)
    dnat: tuple[int, FirewallRule] | None = None  # the namespace and rule of the last change of destination
    snat: FirewallRule | None = None
    notrack: FirewallRule | None = None
    what: str = ""  # what is sent, in sentences, if that isn't a packet of the question or its answer
    addressed: Packet | None = None  # as it was before its destination was changed
    answered: Tracked | None = None  # the connection in this namespace that it answers
    rerouted: bool = False  # whether a rule of the last hook makes the kernel look up its route again

    # ---- hops

    @property
    def _place(self) -> str:
        return self.index.topology.label(self.ns)

    @property
    def _who(self) -> str:
        return "the host" if self.ns == self.index.topology.host else self._place

    @property
    def _where(self) -> str:
        topology = self.index.topology
        return "on the host" if self.ns == topology.host else f"in {topology.label(self.ns)}"

    @property
    def _packets(self) -> str:
        """Name what a rule drops."""
        return self.what or ("the answers" if self.packet.is_reply else "the packets")

    def _add(
        self, kind: str, text: str, verdict: str = "pass", *evidence: str, ref: Ref | None = None,
        fix: Fix | None = None, subject: str = "",
    ) -> None:  # fmt: skip
        hop = Hop(kind, self._place, text, verdict, evidence, ref, fix, subject)  # type: ignore[arg-type]
        self.hops.append(hop)

    @property
    def _net(self) -> NetState:
        return self.index.topology.snapshot.nets[self.ns]

    def _stop(
        self, kind: str, text: str, *evidence: str, ref: Ref | None = None, fix: Fix | None = None,
        subject: str = "",
    ) -> Stopped:  # fmt: skip
        self._add(kind, text, "stop", *evidence, ref=ref, fix=fix, subject=subject or text)
        return Stopped()

    # ---- rules and translations

    def _entered(self, packet: Packet) -> Packet:
        """Return a packet that enters a namespace, with its connection's state."""
        packet = replace(packet, zone=0, ct_mark=0, is_bound=False)
        entry = self._entry_of(packet)
        if entry is not None:
            return replace(packet, states=_states(entry), ct_mark=entry.after.ct_mark)
        if not packet.is_reply:
            known = any(one.ns == self.ns and _is_same(one.before, packet) for one in self.tracked)
            return replace(packet, states=frozenset(("new",)), is_bound=known)
        if any(
            one.ns == self.ns and _is_translated(one) and _is_reply(packet, one.before)
            for one in self.tracked
        ):
            self._add("conntrack", "the translated answer passes conntrack a second time", "unknown")
        state = "new" if packet.l4_proto == "udp" else "invalid"
        return replace(packet, states=frozenset((state,)))

    def _entry_of(self, packet: Packet) -> Tracked | None:
        """Return the connection in this namespace that a packet answers."""
        if not packet.is_reply:
            return None
        own = (one for one in self.tracked if one.ns == self.ns)
        return next((one for one in own if _is_reply(packet, one.after)), None)

    def _note_tracked(self, before: Packet) -> None:
        """Track the connection in this namespace, unless its packets aren't tracked."""
        if not self.packet.is_reply and "untracked" not in self.packet.states:
            self.tracked.append(Tracked(self.ns, before, self.packet))

    def _filter(self, hook: Hook, with_nat: bool = True) -> Packet:
        """Evaluate a hook; return the packet, translated by a rule or its connection."""
        evaluator, self.rerouted = self.index.evaluator(self.ns), False
        if evaluator is None:
            return self.packet
        hook = replace(hook, sets=evaluator.firewall.sets)
        answered = self._entry_of(self.packet) if hook.name in ("prerouting", "output") else self.answered
        self.answered = answered

        def translate(rule: FirewallRule | None, packet: Packet) -> Packet:
            if rule is None:
                return self._translate_back(answered, packet, hook, evaluator)
            return self._translate(rule, packet, hook)

        decision = evaluator.evaluate(
            self.packet, hook, translate if with_nat and not self.packet.is_bound else None
        )
        self._decide(decision, hook, hook.bridged)
        self.rerouted = decision.rerouted
        packet = decision.packet or self.packet
        if decision.notrack is not None:
            self.notrack = decision.notrack
            packet = replace(packet, states=frozenset(("untracked",)))
        return packet

    def _translate_back(
        self, entry: Tracked | None, packet: Packet, hook: Hook, evaluator: Evaluator
    ) -> Packet:
        """Undo the translation of a connection in its answer."""
        if entry is None or "untracked" in packet.states:
            return packet
        if packet.zone != entry.after.zone:
            return self._other_zone(entry, packet, hook, evaluator)
        if hook.name in ("prerouting", "output"):
            if entry.before.src != packet.dst:
                self._add("nat", f"destination {packet.dst} is translated back to {entry.before.src}")
            return replace(packet, dst=entry.before.src, dport=entry.before.sport)
        if entry.before.dst != packet.src:
            self._add("nat", f"source {packet.src} is translated back to {entry.before.dst}")
        return replace(packet, src=entry.before.dst, sport=entry.before.dport)

    def _other_zone(self, entry: Tracked, packet: Packet, hook: Hook, evaluator: Evaluator) -> Packet:
        """Return an answer of another conntrack zone; stop if it needs translation."""
        self.answered = None
        if entry.before == entry.after:
            return replace(packet, states=frozenset(("new",)))
        rule = evaluator.zone_rule(self.packet, hook) or entry.zone_rule
        text = f"the answer is in conntrack zone {packet.zone}, the connection in zone {entry.after.zone}"
        subject, fix = text, None
        evidence: tuple[str, ...] = ()
        if rule is not None:
            name = f"a rule of {rule.table} {rule.chain} {self._where}"
            subject = f"{name} puts the answers into another conntrack zone"
            fix, evidence = fixes.delete_rule(self.ns, rule), (evidence_of(rule),)
        raise self._stop("conntrack", text, *evidence, ref=namespace_ref(self.ns), fix=fix, subject=subject)

    def _decide(self, decision: Decision, hook: Hook, bridged: bool = False) -> None:
        """Add the hops of a decision, and stop if it drops the packet."""
        for one in decision.rules:
            if one.verdict == "accept":
                self._add(
                    "firewall", f"{hook.name}: accepted by a rule of {one.table} {one.chain}", "pass",
                    evidence_of(one), ref=self.index.rule_ref(self.ns, one),
                )  # fmt: skip
        chain, rule = decision.chain, decision.rule
        if decision.verdict == "unknown" and rule is not None:
            text = f"{hook.name}: whether a rule of {rule.table} {rule.chain} matches isn't known"
            self._add("firewall", text, "unknown", evidence_of(rule), ref=self.index.rule_ref(self.ns, rule))
        elif decision.verdict in ("drop", "reject") and chain is not None:
            does = "drops" if decision.verdict == "drop" else "rejects"
            via = ", for bridged packets (br_netfilter)" if bridged else ""
            if rule is not None:
                text = f"{hook.name}: a rule of {rule.table} {rule.chain} {does} {self._packets}{via}"
                evidence, ref = evidence_of(rule), self.index.rule_ref(self.ns, rule)
                fix = fixes.pass_rule(self.index.topology, self.ns, rule, hook, self.packet.is_ipv6)
                subject = f"a rule of {rule.table} {rule.chain} {self._where} {does} {self._packets}"
                if bridged and rule.backend == "nft":  # those of iptables are often meant for both
                    fix = fixes.end_br_netfilter(self.index.topology, self.packet.is_ipv6)
                    subject = f"br_netfilter passes {self._packets} to {subject.partition(f' {does} ')[0]}"
            else:
                text = f"{hook.name}: the policy of {chain.table} {chain.name} {does} {self._packets}{via}"
                evidence, ref = policy_evidence(chain), None
                fix = fixes.accept(self.ns, chain, self.packet, hook, self._is_exposed(hook))
                subject = f"the policy of {chain.table} {chain.name} {self._where} {does} {self._packets}"
            raise self._stop(
                "firewall", text, evidence, ref=ref or namespace_ref(self.ns), fix=fix, subject=subject
            )

    def _is_exposed(self, hook: Hook) -> bool:
        """Return whether accepting all packets of the links would open more than needed.

        Those that leave by the uplink, or stay on their network, are accepted by their links.
        """
        uplink = self.index.topology.uplink(self.ns)
        leaves = uplink is not None and uplink[0].name in hook.oifs
        stays = not set(hook.iifs).isdisjoint(hook.oifs)
        return not (leaves or stays)

    def _translate(self, rule: FirewallRule, packet: Packet, hook: Hook) -> Packet:
        ref = self.index.rule_ref(self.ns, rule)
        new = translated(rule, packet, self.index.tables(self.ns), hook)
        if new is None:
            self._add(
                "nat",
                f"{hook.name}: a rule translates the packet to an unknown address",
                "unknown",
                evidence_of(rule),
                ref=ref,
            )
            raise Stopped
        if rule.verdict in ("dnat", "redirect"):
            self.dnat, self.addressed = (self.ns, rule), packet
        elif rule.verdict == "snat":
            self.snat = rule
        kind = "dnat" if self.dnat == (self.ns, rule) else "snat"
        new = replace(new, states=new.states | {kind})
        ends = ((packet.dst, packet.dport, new.dst, new.dport), (packet.src, 0, new.src, 0))
        for kind, (old, old_port, address, port) in zip(("destination", "source"), ends, strict=True):
            if (old, old_port) != (address, port):
                change = f"{end_text(old, old_port or None)} becomes {end_text(address, port or None)}"
                self._add("nat", f"{hook.name}: {kind} {change}", "pass", evidence_of(rule), ref=ref)
        return new

    def _shadowed(self) -> Hop | None:
        """Return the hop of a DNAT rule before another one that was meant for this packet."""
        if self.dnat is None or self.addressed is None:
            return None
        ns, rule = self.dnat
        evaluator = self.index.evaluator(ns)
        later = evaluator.later_nat(rule, self.addressed) if evaluator else None
        if later is None:
            return None
        port, address = self.addressed.dport, self.packet.dst
        text = f"a rule of {rule.table} {rule.chain} forwards port {port} to {address} first"
        subject = f"a rule before the one for {later.to_address} forwards port {port} to {address}"
        ref = self.index.rule_ref(ns, rule) or namespace_ref(ns)
        evidence = (evidence_of(rule), evidence_of(later))
        place = self.index.topology.label(ns)
        return Hop("nat", place, text, "stop", evidence, ref, fixes.delete_rule(ns, rule), subject)

    def _limited_dnat(self) -> Hop | None:
        """Return the hop of a DNAT rule for the packet's port on a loopback address."""
        evaluator, packet = self.index.evaluator(self.ns), self.packet
        if evaluator is None or packet.is_ipv6:
            return None
        rule = evaluator.loopback_dnat(packet)
        if rule is None:
            return None
        text = f"a rule of {rule.table} {rule.chain} forwards port {packet.dport} on {rule.dst} only"
        subject = f"port {packet.dport} is published on {rule.dst} only"
        ref = self.index.rule_ref(self.ns, rule) or namespace_ref(self.ns)
        fix = Fix(f"publish port {packet.dport} on all addresses, or on {packet.dst}")
        return Hop("nat", self._place, text, "stop", (evidence_of(rule),), ref, fix, subject)

    def _conntrack_full(self) -> None:
        table = self.index.topology.snapshot.conntracks.get(self.ns)
        if (
            table is not None
            and table.limit
            and len(table.entries) >= table.limit
            and not self.packet.is_reply
        ):
            raise self._stop(
                "conntrack", f"the conntrack table is full: {len(table.entries):,} of {table.limit:,}",
                ref=namespace_ref(self.ns), fix=fixes.raise_limit(self.ns, table.limit),
                subject=f"the conntrack table of {self._place} is full",
            )  # fmt: skip


def _is_reply(packet: Packet, after: Packet) -> bool:
    return (packet.src, packet.dst, packet.sport, packet.dport, packet.l4_proto) == (
        after.dst, after.src, after.dport, after.sport, after.l4_proto,
    )  # fmt: skip


def _is_translated(entry: Tracked) -> bool:
    return not _is_same(entry.before, entry.after)


def _is_same(one: Packet, other: Packet) -> bool:
    return (one.src, one.dst, one.sport, one.dport) == (other.src, other.dst, other.sport, other.dport)


def _states(entry: Tracked) -> frozenset[str]:
    """Return the states of an answer of a connection."""
    before, after = entry.before, entry.after
    states = {"established"}
    states |= {"dnat"} if (before.dst, before.dport) != (after.dst, after.dport) else set()
    states |= {"snat"} if before.src != after.src else set()
    return frozenset(states)

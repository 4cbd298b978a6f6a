"""Find the links that frames of a link arrive at: veth pairs, bridges, macvlan.

Each attachment has the first obstacle on the way to it, so that a blocked port is named instead of the ends
that it separates. See the kernel's net/bridge/br_input.c and br_forward.c.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field, replace
from operator import itemgetter

from core.model import FdbEntry, Link, LinkKey, PortVlan, link_ref
from core.model.fix import Fix, FixBridge, FixFdb, FixPort, FixVlan
from core.reach import link_fixes
from core.reach.answer import Hop, Verdict
from core.text import quoted
from core.topology import Topology

_MOST_BRIDGES = 8
_MACVLAN = ("macvlan", "macvtap")
_UNTAGGED = 0


@dataclass(frozen=True, slots=True)
class Crossing:
    """One bridge that frames cross, by two ports; None is the bridge's own link."""

    bridge: Link
    entry: Link | None
    exit: Link | None


@dataclass(frozen=True, slots=True)
class Attachment:
    """A link at which frames arrive; `outside` is True if they leave this host by it.

    `links` are all links on the way, in order; `obstacle` the hop that stops frames, None if nothing does.
    """

    link: Link
    outside: bool = False
    links: tuple[Link, ...] = ()
    crossings: tuple[Crossing, ...] = ()
    obstacle: Hop | None = None
    vlan: int = _UNTAGGED

    def blocked(self, obstacle: Hop | None) -> Attachment:
        """Return the attachment with an obstacle, unless it has one."""
        return self if self.obstacle or obstacle is None else replace(self, obstacle=obstacle)


@dataclass(slots=True)
class _Ports:
    """Ports of a bridge with their places; `plain` lead to one link, by its namespace."""

    plain: dict[int, list[tuple[int, Link]]] = field(default_factory=dict)
    others: list[tuple[int, Link]] = field(default_factory=list)


class Segments:
    """Find attachments, cached by the link that sends."""

    def __init__(self, topology: Topology) -> None:
        self._weak_topology = weakref.ref(topology)  # see core.reach.hooks.Index
        self._found: dict[tuple[LinkKey, Set[int] | None], tuple[Attachment, ...]] = {}
        self._children: dict[LinkKey, list[Link]] | None = None
        self._ports: dict[LinkKey, _Ports] = {}
        self._wanted: Set[int] | None = None

    @property
    def _topology(self) -> Topology:
        found = self._weak_topology()
        assert found is not None
        return found

    def attachments(self, link: Link, wanted: Set[int] | None = None) -> tuple[Attachment, ...]:
        """Return where the broadcast frames of a link arrive.

        With `wanted`, attachments in other namespaces may be missing, unless they are outside: most frames
        are for one of the hundreds of ports that a bridge may have.
        """
        key = (link.key, None if wanted is None else frozenset(wanted))
        if key not in self._found:
            self._wanted = wanted
            start = Attachment(link, links=(link,)).blocked(self.down(link))
            self._found[key] = tuple(self._send(start))
        return self._found[key]

    def arrivals(self, port: Link, wanted: Set[int]) -> tuple[Attachment, ...]:
        """Return where frames arrive that enter by a link from outside of this host.

        Attachments in other namespaces than those that are wanted may be missing.
        """
        self._wanted = wanted
        return tuple(self._arrive(Attachment(port, links=(port,)).blocked(self.down(port))))

    def _send(self, at: Attachment) -> Iterator[Attachment]:
        """Yield where frames arrive that leave by the link of `at`."""
        link = at.link
        if link.kind == "bridge":
            vlan = _own_vlan(link)
            yield from self._flood(replace(at, vlan=vlan), link, None)
        elif self._topology.ovs_bridge(link) is not None:
            yield from self._switch(at, link, None)
        elif link.kind in _MACVLAN:
            yield from self._macvlan(at)
        elif link.kind == "vlan":
            lower = self._lower(link)
            if lower is not None:
                yield from self._send(self._through(replace(at, vlan=_tag(link)), lower))
        elif (peer := self._topology.peer(link)) is not None:
            yield from self._arrive(self._through(at, peer))
        else:
            yield replace(at, outside=True)

    def _through(self, at: Attachment, link: Link) -> Attachment:
        obstacle = at.obstacle or self.down(link)
        return Attachment(link, at.outside, (*at.links, link), at.crossings, obstacle, at.vlan)

    def _arrive(self, at: Attachment) -> Iterator[Attachment]:
        """Yield where frames end that arrive at a link: a bridge, or the link itself."""
        link = at.link
        bridge = self._topology.master_of(link)
        if bridge is not None:
            yield from self._arrive_at_port(at, bridge)
            return
        for child in self._children_of(link):
            if _tag(child) == at.vlan:
                yield self._through(replace(at, vlan=_UNTAGGED), child)
        if at.vlan == _UNTAGGED:
            yield at

    def _arrive_at_port(self, at: Attachment, bridge: Link) -> Iterator[Attachment]:
        is_enslaved = bridge.kind == "bridge" and at.link.port is not None
        if not is_enslaved and self._topology.ovs_bridge(bridge) is None:
            yield replace(at, outside=True)  # a port of a bond, whose way isn't known
            return
        visited = {crossing.bridge.key for crossing in at.crossings}
        if len(visited) < _MOST_BRIDGES and bridge.key not in visited:
            yield from (self._enter if is_enslaved else self._switch)(at, bridge, at.link)

    def _enter(self, at: Attachment, bridge: Link, port: Link) -> Iterator[Attachment]:
        obstacle = self.down(bridge) or self._port_state(port, bridge) or self._locked(port, bridge, at)
        vlan, fault = self._entry_vlan(port, bridge, at.vlan)
        yield from self._flood(replace(at, vlan=vlan).blocked(obstacle or fault), bridge, port)

    def _flood(self, at: Attachment, bridge: Link, entry: Link | None) -> Iterator[Attachment]:
        """Yield where a frame arrives that a bridge forwards to all other ports."""
        if entry is not None:
            own = replace(
                at, link=bridge, links=(*at.links, bridge),
                crossings=(*at.crossings, Crossing(bridge, entry, None)),
            )  # fmt: skip
            yield from self._arrive_at_bridge(own, bridge)
        for port in self._ports_of(bridge):
            if port.port is None or (entry is not None and port.key == entry.key and not port.port.hairpin):
                continue
            tagged, fault = self._exit_vlan(port, bridge, at.vlan)
            crossing = Crossing(bridge, entry, port)
            obstacle = (
                at.obstacle or self.down(bridge) or self.down(port) or self._port_state(port, bridge)
                or self._isolated(entry, port, bridge) or fault
            )  # fmt: skip
            out = Attachment(port, at.outside, (*at.links, port), (*at.crossings, crossing), obstacle, tagged)
            yield from self._send(out)

    def _switch(self, at: Attachment, own: Link, entry: Link | None) -> Iterator[Attachment]:
        """Yield where a frame may arrive that a bridge of Open vSwitch forwards.

        Unless it is known to switch as usual, its flows decide: `transmit` makes the answer uncertain. The
        frame may also leave by a tunnel, which has no link.
        """
        vlan = self._ovs_tag(entry or own) or at.vlan
        here = replace(at, vlan=vlan, crossings=(*at.crossings, Crossing(own, entry, None)))
        if entry is not None:
            yield from self._arrive_at_switch(replace(here, link=own, links=(*at.links, own)), own)
        for port in self._ports_of(own):
            if entry is not None and port.key == entry.key:
                continue
            tag = self._ovs_tag(port)
            fault = self._other_vlan(port, own, vlan) if tag and vlan != tag else None
            crossings = (*at.crossings, Crossing(own, entry, port))
            obstacle = at.obstacle or self.down(port) or fault
            left = _UNTAGGED if tag else vlan
            out = Attachment(port, at.outside, (*at.links, port), crossings, obstacle, left)
            sent = tuple(self._send(out))
            yield from sent
            if not sent and (peer := self._topology.peer(port)) is not None:  # it takes no tagged frames
                yield self._through(out, peer).blocked(self._other_vlan(port, own, vlan))
        if not self._ends_here(own):
            yield replace(here, link=own, outside=True)

    def _ends_here(self, own: Link) -> bool:
        """Return whether all ways of a bridge of Open vSwitch are known."""
        bridge = self._topology.ovs_bridge(own)
        if bridge is None or not bridge.normal:
            return False
        return all(one.ifindex for port in bridge.ports for one in port.interfaces if not one.error)

    def _arrive_at_switch(self, at: Attachment, own: Link) -> Iterator[Attachment]:
        for child in self._children_of(own):
            if _tag(child) == at.vlan:
                yield self._through(replace(at, vlan=_UNTAGGED), child)
        fault = self._other_vlan(own, own, at.vlan) if at.vlan != self._ovs_tag(own) else None
        yield replace(at, vlan=_UNTAGGED).blocked(self.down(own) or fault)

    def _ovs_tag(self, port: Link) -> int:
        """Return the access VLAN of a port of Open vSwitch, 0 for none."""
        tags = {port.tag for _, port in self._topology.ovs_ports_of(port)}
        return next(iter(tags)) or _UNTAGGED if len(tags) == 1 else _UNTAGGED

    def _other_vlan(self, port: Link, bridge: Link, vlan: int) -> Hop:
        """Return the hop of a port of Open vSwitch that is in another VLAN."""
        own, switch = self._ovs_tag(port), self._topology.ovs_bridge(bridge)
        certain = switch is not None and bool(switch.normal)
        names = [f"VLAN {one}" if one else "no VLAN" for one in (own, vlan)]
        text = f"{port.name} of {bridge.name} is in {names[0]}, the frames are in {names[1]}"
        text += "" if certain else ": only a flow of its own could forward them"
        evidence = (f"ovs-vsctl get port {quoted(port.name)} tag: {own or '[]'}",)
        verdict: Verdict = "stop" if certain else "unknown"
        return Hop("bridge", self._place(port), text, verdict, evidence, link_ref(port.key), subject=text)

    def _ports_of(self, bridge: Link) -> Sequence[Link]:
        """Return the ports of a bridge that may lead to a wanted namespace."""
        ports = self._topology.ports_of(bridge.key)
        if self._wanted is None:
            return ports
        found = self._ports.get(bridge.key)
        if found is None:
            found = self._ports[bridge.key] = _Ports()
            for place in enumerate(ports):
                ns = self._only_namespace(place[1])
                (found.others if ns is None else found.plain.setdefault(ns, [])).append(place)
        near = [place for ns in self._wanted for place in found.plain.get(ns, ())]
        return [port for _, port in sorted([*found.others, *near], key=itemgetter(0))]

    def _only_namespace(self, port: Link) -> int | None:
        """Return the namespace of the only link that a port leads to, if there is one."""
        peer = self._topology.peer(port)
        if peer is None or port.kind != "veth" or self._topology.master_of(peer) or self._children_of(peer):
            return None
        return peer.ns

    def _arrive_at_bridge(self, at: Attachment, bridge: Link) -> Iterator[Attachment]:
        for child in self._children_of(bridge):
            if _tag(child) == at.vlan:
                yield self._through(replace(at, vlan=_UNTAGGED), child)
        own = _own_vlan(bridge)
        if own == at.vlan:
            yield replace(at, vlan=_UNTAGGED)
        elif own and at.vlan:
            yield replace(at, vlan=_UNTAGGED).blocked(self._wrong_vlan(bridge, at.vlan, own, bridge))

    def _macvlan(self, at: Attachment) -> Iterator[Attachment]:
        """Yield the siblings of a macvlan, and where its parent's frames arrive."""
        lower = self._lower(at.link)
        if lower is None:
            yield replace(at, outside=True)
            return
        if at.link.details.get("mode") == "bridge":
            for sibling in self._children_of(lower):
                if sibling.key != at.link.key and sibling.kind in _MACVLAN:
                    yield self._through(at, sibling)
        yield from self._send(self._through(at, lower))

    def _lower(self, link: Link) -> Link | None:
        """Return the lower link of a macvlan or VLAN link."""
        net = self._topology.snapshot.nets.get(link.ns)
        if net is None or link.lower is None:
            return None
        ns = link.ns if link.lower_nsid is None else net.nsids.get(link.lower_nsid)
        return self._topology.snapshot.link((ns, link.lower)) if ns is not None else None

    def _children_of(self, link: Link) -> list[Link]:
        """Return the macvlan and VLAN links on a link."""
        if self._children is None:
            self._children = {}
            for each in self._topology.snapshot.links():
                if each.kind in (*_MACVLAN, "vlan") and (lower := self._lower(each)):
                    self._children.setdefault(lower.key, []).append(each)
        return self._children.get(link.key, [])

    # ---- obstacles

    def _place(self, link: Link) -> str:
        return self._topology.label(link.ns)

    def down(self, link: Link) -> Hop | None:
        """Return the obstacle of a link that is down."""
        if link.admin_up:
            return None
        text = f"{link.name} is down"
        fix = link_fixes.set_up(self._topology, link)
        return Hop(
            "link", self._place(link), f"{text}: it can't send or receive packets", "stop",
            (f"{link.ifindex}: {link.name}: state DOWN",), link_ref(link.key), fix, text,
        )  # fmt: skip

    def _port_state(self, port: Link, bridge: Link) -> Hop | None:
        assert port.port is not None
        if port.port.state == "forwarding" or not port.admin_up or not bridge.admin_up:
            return None
        if port.port.state == "disabled" and not port.carrier:
            return None  # its other end is down, which is an obstacle of its own
        text = f"the port {port.name} of {bridge.name} doesn't forward, its STP state is {port.port.state}"
        state = port.port.state
        subject, fix = f"STP state of {port.name} is {state}", self._forward(port, bridge)
        return self._stop(port, text, subject, fix, f"state {state}")

    def _forward(self, port: Link, bridge: Link) -> Fix:
        """Return the repair of a port that doesn't forward.

        Without STP a loop is a storm: it is only switched off where all ports lead to containers.
        """
        forwards = FixPort(port.key, "state", True)
        if bridge.bridge is None or not bridge.bridge.stp:
            return Fix(f"set the port {port.name} to forwarding", (forwards,))
        if all(self._only_namespace(one) for one in self._topology.ports_of(bridge.key)):
            return Fix(f"switch STP of {bridge.name} off", (FixBridge(bridge.key), forwards))
        seconds = 2 * bridge.bridge.forward_delay
        return Fix(f"wait up to {seconds:.0f} s, or find the loop that STP of {bridge.name} has opened")

    def _stop(self, port: Link, text: str, subject: str, fix: Fix | None = None, shown: str = "") -> Hop:
        """Return the hop of a port; `shown` is what bridge(8) prints of it."""
        evidence = (f"bridge -d link show dev {port.name}" + (f": {shown}" if shown else ""),)
        return Hop(
            "bridge", self._place(port), text, "stop", evidence, link_ref(port.key), fix, subject,
        )  # fmt: skip

    def _isolated(self, entry: Link | None, port: Link, bridge: Link) -> Hop | None:
        if entry is None or not (entry.port and entry.port.isolated and port.port and port.port.isolated):
            return None
        text = f"the ports {entry.name} and {port.name} of {bridge.name} are both isolated"
        steps = (FixPort(entry.key, "isolated", False),)
        fix = Fix(f"end the isolation of {entry.name}", steps)
        return self._stop(entry, text, f"{entry.name} is isolated", fix, "isolated on")

    def _locked(self, port: Link, bridge: Link, at: Attachment) -> Hop | None:
        if port.port is None or not port.port.locked:
            return None
        mac = at.links[0].mac
        if any(one.port == port.ifindex for one in self.fdb(bridge, mac)):
            return None
        text = f"the port {port.name} of {bridge.name} is locked, and {mac} isn't in its forwarding table"
        fix = Fix(f"unlock the port {port.name}", (FixPort(port.key, "locked", False),))
        return self._stop(port, text, f"{port.name} is locked", fix, "locked on")

    def fdb(self, bridge: Link, mac: str) -> list[FdbEntry]:
        """Return the entries of a bridge's forwarding table for a MAC address."""
        net = self._topology.snapshot.nets.get(bridge.ns)
        return [one for one in (net.fdb if net else ()) if one.mac == mac and one.bridge == bridge.ifindex]

    def misdirected(self, at: Attachment, mac: str) -> Hop | None:
        """Return the bridge that doesn't send frames for a MAC address to where it is."""
        for crossing in at.crossings:
            if crossing.exit is None:
                continue
            fixed = [one for one in self.fdb(crossing.bridge, mac) if _stays(one, crossing.exit)]
            wrong = [one for one in fixed if one.port != crossing.exit.ifindex]
            if wrong and len(wrong) == len(fixed):
                return self._wrong_entry(crossing.bridge, wrong[0])
            port = crossing.exit.port
            if port and not port.flood and not port.learning and not self.fdb(crossing.bridge, mac):
                text = f"the port {crossing.exit.name} neither floods nor learns, and {mac} has no entry"
                steps = (FixPort(crossing.exit.key, "flood", True),)
                subject = f"{crossing.exit.name} doesn't flood"
                fix = Fix(f"switch flooding on at {crossing.exit.name}", steps)
                return self._stop(crossing.exit, text, subject, fix, "learning off flood off")
        return None

    def _wrong_entry(self, bridge: Link, entry: FdbEntry) -> Hop:
        port = self._topology.snapshot.link((bridge.ns, entry.port))
        name = port.name if port else str(entry.port)
        text = f"a {entry.state} entry of {bridge.name} sends frames for {entry.mac} to {name}"
        fix = Fix(f"delete the entry of {entry.mac} at {name}", (FixFdb(bridge.ns, entry),))
        return replace(
            self._stop(port or bridge, text, f"wrong forwarding entry for {entry.mac}", fix),
            evidence=(f"{entry.mac} dev {name} master {bridge.name} {entry.state}",),
        )

    # ---- VLANs

    def _entry_vlan(self, port: Link, bridge: Link, tag: int) -> tuple[int, Hop | None]:
        """Return the VLAN of a frame that enters by a port, and why it is dropped."""
        if bridge.bridge is None or not bridge.bridge.vlan_filtering or port.port is None:
            return tag, None
        pvid = next((one.vid for one in port.port.vlans if one.pvid), 0)
        vlan = tag or pvid
        if vlan and any(one.vid <= vlan <= one.vid_end for one in port.port.vlans):
            return vlan, None
        wanted = bridge.bridge.vlan_default_pvid or 1
        what = f"VLAN {tag}" if tag else "untagged frames"
        text = f"the port {port.name} of {bridge.name} accepts no {what}"
        vlans = PortVlan(tag, tag) if tag else PortVlan(wanted, wanted, True, True)
        fix = Fix(f"add VLAN {vlans.vid} to {port.name}", (FixVlan(port.key, vlans, True),))
        return vlan or wanted, self._stop(port, text, f"{port.name} has no VLAN", fix)

    def _exit_vlan(self, port: Link, bridge: Link, vlan: int) -> tuple[int, Hop | None]:
        """Return the tag of a frame that leaves by a port, and why it is dropped."""
        if bridge.bridge is None or not bridge.bridge.vlan_filtering or port.port is None:
            return vlan, None
        for one in port.port.vlans:
            if one.vid <= vlan <= one.vid_end:
                return (_UNTAGGED if one.untagged else vlan), None
        own = next((one.vid for one in port.port.vlans if one.pvid), 0)
        return _UNTAGGED, self._wrong_vlan(port, vlan, own, bridge)

    def _wrong_vlan(self, port: Link, vlan: int, own: int, bridge: Link) -> Hop:
        has = f"is in VLAN {own}" if own else "is in no VLAN"
        text = f"{port.name} of {bridge.name} {has}, the frames are in VLAN {vlan}"
        new = PortVlan(vlan, vlan, True, True)
        fix = Fix(f"add VLAN {vlan} to {port.name}", (FixVlan(port.key, new, True),))
        return self._stop(port, text, f"{port.name} isn't in VLAN {vlan}", fix)


def _stays(entry: FdbEntry, port: Link) -> bool:
    """Return whether an entry stays when its station sends by a port (br_fdb_update)."""
    learns = port.port is None or port.port.learning
    return entry.state == "permanent" or (
        entry.state == "static" and (not learns or "sticky" in entry.flags or entry.port == port.ifindex)
    )


def _own_vlan(bridge: Link) -> int:
    """Return the VLAN of a bridge's own link, 0 without VLAN filtering."""
    if bridge.bridge is None or not bridge.bridge.vlan_filtering:
        return _UNTAGGED
    return next((one.vid for one in bridge.bridge.vlans if one.pvid), 0)


def _tag(link: Link) -> int:
    """Return the VLAN id of a VLAN link, 0 for a macvlan."""
    if link.kind != "vlan":
        return _UNTAGGED
    return int(link.details.get("id", 0))

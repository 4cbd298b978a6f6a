"""What is accelerated: follows links, addresses and bridges, and has maps and attachments accordingly."""

from __future__ import annotations

import ipaddress
import socket
import sys
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from bpf import hooks, ports
from bpf.attachments import NOTHING_FOREIGN, Attachments, Foreign
from bpf.hooks import Filters, read_filters
from bpf.hostwatch import calls_iptables
from bpf.keepalive import Neighbours
from bpf.link_state import End, EngineNames, Far, Kernel, RouteFacts, Scene, bridges_of
from bpf.loader import Loaded
from bpf.maps import Tables
from bpf.ports import OWNER_KEY, Contents, far_end
from bpf.rule_analysis import Links
from core.model import Link


class Sight:
    """What was seen last; `links` are the host's."""

    def __init__(self) -> None:
        self._kernel = Kernel()
        self.links: Mapping[int, Link] = {}
        self._ends: dict[int, tuple[Link, Far, End]] = {}
        self._filters = Filters()

    def look_at_host(self) -> None:
        """Read the host's own links, and which have filters."""
        self.links = self._kernel.links()
        self._filters = read_filters(self._kernel, self.links)

    def forget(self) -> None:
        """Events were lost: nothing that was seen counts any more."""
        self._ends = {}

    def concerns(self, dirty: Collection[int | None]) -> bool:
        """Whether any of these namespaces is the host, or has an end that is followed."""
        return None in dirty or any(far[0] in dirty for _, far, _ in self._ends.values())

    def route_facts(self) -> RouteFacts:
        """What must be known of the routes beforehand."""
        return self._kernel.route_facts()

    def scene(self, bridges: Collection[int], foreign: Foreign, dirty: Collection[int | None] = ()) -> Scene:
        """The scene for these bridges: far ends are read where they are new or in one of the `dirty`
        namespaces. `foreign` are links with tcx programs of others."""
        wanted = {link.ifindex: link for link in self.links.values() if link.master in bridges}
        kept = {
            ifindex: known
            for ifindex, known in self._ends.items()
            if wanted.get(ifindex) is known[0] and known[1][0] not in dirty
        }
        missing = {
            ifindex: (link, far)
            for ifindex, link in wanted.items()
            if ifindex not in kept and (far := far_end(link))
        }
        found = self._kernel.ends(far for _, far in missing.values())
        kept |= {ifindex: (link, far, found[far]) for ifindex, (link, far) in missing.items() if far in found}
        self._ends = kept
        ends = {far: end for _, far, end in kept.values()}
        programs_in, programs_out = foreign
        filters = Filters(
            self._filters.ingress | programs_in,
            self._filters.egress | programs_out,
            self._filters.unclear | programs_out,
        )
        v4, v6 = calls_iptables()
        return Scene(self.links, ends, filters, v4, v6)

    def close(self) -> None:
        """Look no more."""
        self._kernel.close()


# Which port and MAC stand behind each address of the containers, under one generation of the rules.
#
# A rule may look at the source MAC or the bridge port, which are not in a connection's tuple: where an
# address or a MAC moves to another port, its connections must pass the rules again. And where two ports
# claim one address, the first keeps it: a container must not send in another's connections (the kernel
# decides about the second).

_MOST = 1 << 16  # remembered, gone ones among them
_NOWHERE = (0, b"")  # the place of what was at several
# Seconds from one generation to the next: each costs every connection of all others a packet each way, so a
# container that moves its address again and again must not begin one each time.
REST = 0.25

# Family and address; ifindex of the port and MAC.
Address = tuple[int, bytes]
Place = tuple[int, bytes]


@dataclass(slots=True)
class Bindings:
    """Where each address, and each MAC of a bridge, was seen last, for as long as this generation lasts;
    `waits` are the seconds until what moved meanwhile may be taken in, 0 where nothing waits."""

    addresses: dict[Address, Place] = field(default_factory=dict)
    macs: dict[bytes, int] = field(default_factory=dict)
    waits: float = 0.0
    _rests_until: float = 0.0

    def settle_claims(self, found: Contents) -> None:
        """Take from `found.owners` every claim of an address that another port had before, or that several
        ports make at once; `found.refused` names those ports."""
        claims: dict[Address, list[tuple[bytes, int]]] = {}
        for key in found.owners:
            ifindex, family, address = OWNER_KEY.unpack(key)
            claims.setdefault((family, address), []).append((key, ifindex))
        for address, claimed in claims.items():
            if len(claimed) == 1:
                continue
            first = self.addresses.get(address, _NOWHERE)[0]
            for key, ifindex in claimed:
                if ifindex != first:
                    del found.owners[key]
                    found.refused[found.links[ifindex].name] = _why(address)

    def take(self, found: Contents, now: float) -> bool:
        """Note where addresses and MACs are now; whether a new generation must begin, because one is
        elsewhere than before or too many were seen. Soon after the last one it need not: ports that something
        moved to are taken from `found` instead, so that the kernel alone serves them for that long."""
        moved = self._moved(found)
        may_begin = now >= self._rests_until
        if may_begin and (moved or len(self.addresses) > _MOST):
            self.addresses, self.macs = {}, {}
            self._rests_until = now + REST
            self.waits = 0.0
            self._note(found)
            return True
        _leave_out(found, moved)
        self.waits = self._rests_until - now if moved else 0.0
        self._note(found)
        return False

    def _moved(self, found: Contents) -> set[int]:
        """The ports with an address or a MAC that was elsewhere before. That stays so when it goes back where
        it was: its connections may have passed the rules from elsewhere meanwhile."""
        moved = set()
        for key, mac in found.owners.items():
            ifindex, family, address = OWNER_KEY.unpack(key)
            if self.addresses.get((family, address), (ifindex, mac)) != (ifindex, mac):
                moved.add(ifindex)
                self.addresses[family, address] = _NOWHERE
        for key, value in found.macs.items():
            if self.macs.get(key, _port(value)) != _port(value):
                moved.add(_port(value))
                self.macs[key] = _NOWHERE[0]
        return moved

    def _note(self, found: Contents) -> None:
        for key, mac in found.owners.items():
            ifindex, family, address = OWNER_KEY.unpack(key)
            self.addresses[family, address] = (ifindex, mac)
        self.macs |= {key: _port(value) for key, value in found.macs.items()}


def _leave_out(found: Contents, moved: set[int]) -> None:
    """Nobody is known behind these ports."""
    if not moved:
        return
    found.owners = {key: mac for key, mac in found.owners.items() if OWNER_KEY.unpack(key)[0] not in moved}
    found.macs = {key: value for key, value in found.macs.items() if _port(value) not in moved}
    found.behind = [each for each in found.behind if each[0] not in moved]


def _port(value: bytes) -> int:
    """The ifindex in a value of the map `macs`."""
    return int.from_bytes(value[:4], sys.byteorder)


def _why(address: Address) -> str:
    packed = address[1][: 4 if address[0] == socket.AF_INET else 16]
    return f"its address {ipaddress.ip_address(packed)} is another port's as well: the kernel decides"


_FOREIGN_EVERY = 3  # ticks


class View:
    """The targets by name, and what became of them: `refused` links by name with the reason, `unknown`
    targets; `rule_links` are those that rules must be about to matter. `again` has it look again from any
    thread; `admit_anew` is called where connections must pass the rules once more, `judge_anew` where these
    must be read for other links, both before the maps change."""

    def __init__(
        self,
        loaded: Loaded,
        tables: Tables,
        wanted: list[str],
        again: Callable[[], None],
        neighbours: Neighbours,
        admit_anew: Callable[[], None],
        judge_anew: Callable[[], None],
    ) -> None:
        self.targets = wanted
        self.attachments = Attachments(loaded.program)
        self.refused: dict[str, str] = {}
        self.unknown: tuple[str, ...] = ()
        self.took = self.routes_took = 0.0  # seconds of CPU time: waiting for a core is no reason to rest
        self._tables = tables
        self._sight = Sight()
        self._engines = EngineNames(again)
        self._bindings = Bindings()
        self._neighbours = neighbours
        self._admit_anew, self._judge_anew = admit_anew, judge_anew
        self.rule_links = Links(frozenset(), frozenset(), frozenset())
        self._dirty: set[int | None] = {None}
        self._bridge_rules = False
        self._ticks = 0
        self._foreign = NOTHING_FOREIGN
        self._call = calls_iptables()
        self.look_at_routes()

    @property
    def links(self) -> Mapping[int, Link]:
        """The host's links as seen last."""
        return self._sight.links

    def note(self, dirty: Collection[int | None], everything: bool = False) -> None:
        """Something changed in these namespaces (by id, None: the host), or anywhere."""
        self._dirty |= set(dirty)
        if everything:
            self._sight.forget()

    def look(self) -> None:
        """Read what may have changed, and have the maps and links accordingly."""
        began = time.thread_time()
        dirty, self._dirty = self._dirty, set()
        if not self._sight.concerns(dirty):
            return
        if None in dirty:
            self._sight.look_at_host()
            self._foreign = self._read_foreign()
        bridges, self.unknown = bridges_of(self.targets, self._sight.links, self._engines.networks)
        self._ask_engines()
        scene = self._sight.scene(bridges, self._foreign, dirty)
        found = ports.contents(scene, bridges, not self._bridge_rules)
        ports.leave_pinned(found, self._neighbours.pinned)
        ports.fit(found)
        self._bindings.settle_claims(found)
        if self._bindings.take(found, time.monotonic()):
            self._admit_anew()
        links = ports.rule_links(found, self._sight.links)
        if links != self.rule_links:
            self.rule_links = links
            self._judge_anew()
        if self._tables.fill(found):
            self._tables.ask_again()
        failed = self.attachments.keep(found.links)
        self.refused = found.refused | {found.links[each].name: why for each, why in failed.items()}
        self._tables.behind = found.behind
        self.took = time.thread_time() - began

    def _ask_engines(self) -> None:
        """While there are names that mean no bridge."""
        if self.unknown:
            bridges = sorted(link.ifindex for link in self._sight.links.values() if link.kind == "bridge")
            self._engines.ask((*self.unknown, *bridges))

    def look_at_routes(self) -> None:
        """Find out what the program's own lookup of routes does not tell."""
        began = time.thread_time()
        self._tables.take_routes(self._sight.route_facts())
        self.routes_took = time.thread_time() - began

    def take_bridge_rules(self, there: bool) -> bool:
        """Note whether the bridge family has rules; whether that is new."""
        changed, self._bridge_rules = there != self._bridge_rules, there
        return changed

    def has_changed_silently(self) -> bool:
        """Whether others' tcx programs, or their functions at links' netfilter hooks, changed, of which there
        is no event."""
        self._ticks += 1
        self._ask_engines()
        if self._ticks % _FOREIGN_EVERY:  # a question for each link, which waits for the kernel's RTNL lock
            return False
        before, self._foreign = self._foreign, self._read_foreign()
        return before != self._foreign

    def _read_foreign(self) -> Foreign:
        """The links at whose ingress, and at whose egress, others' programs or functions sit."""
        links = self._sight.links
        programs_in, programs_out = self.attachments.foreign(links)
        hooked_in, hooked_out = hooks.strangers_at_links({each: link.name for each, link in links.items()})
        return programs_in | hooked_in, programs_out | hooked_out

    def notes_new_sysctls(self) -> bool:
        """Note it if br_netfilter's sysctls changed, of which there is no event, and say whether they did:
        bridged frames may have to pass the rules now. Reads two files, and waits for no lock."""
        before, self._call = self._call, calls_iptables()
        if before != self._call:
            self.note({None})
        return before != self._call

    @property
    def waits(self) -> float:
        """Seconds until it must look again because something moved too soon to be taken in, or 0."""
        return self._bindings.waits

    @property
    def is_outdated(self) -> bool:
        """Whether something was noted that was not looked at yet."""
        return bool(self._dirty)

    def close(self) -> None:
        """Take the program off every link."""
        self.attachments.close()
        self._sight.close()

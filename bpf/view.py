"""What is accelerated: follows links, addresses and bridges, and has maps and attachments accordingly."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping

from bpf import hooks, ports, sysctls, targets
from bpf.attachments import NOTHING_FOREIGN, Attachments, Foreign
from bpf.bindings import Bindings
from bpf.judging import Links
from bpf.loader import Loaded
from bpf.neighbours import Neighbours
from bpf.sight import Sight
from bpf.tables import Tables
from core.model import Link

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
        self._engines = targets.EngineNames(again)
        self._bindings = Bindings()
        self._neighbours = neighbours
        self._admit_anew, self._judge_anew = admit_anew, judge_anew
        self.rule_links = Links(frozenset(), frozenset(), frozenset())
        self._dirty: set[int | None] = {None}
        self._bridge_rules = False
        self._ticks = 0
        self._foreign = NOTHING_FOREIGN
        self._call = sysctls.calls_iptables()
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
        bridges, self.unknown = targets.bridges_of(self.targets, self._sight.links, self._engines.networks)
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
        before, self._call = self._call, sysctls.calls_iptables()
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

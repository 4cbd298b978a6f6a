"""Keeps the scene true at little cost: after an event only what it may have changed is read again."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from bpf import sysctls
from bpf.attachments import Foreign
from bpf.classifiers import Filters, read_filters
from bpf.ports import far_end
from bpf.scene import End, Far, Kernel, RouteFacts, Scene
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
        v4, v6 = sysctls.calls_iptables()
        return Scene(self.links, ends, filters, v4, v6)

    def close(self) -> None:
        """Look no more."""
        self._kernel.close()

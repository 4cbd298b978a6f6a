"""At each scrape the collector looks at the host, part by part; one that fails takes no other with it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from core.collect import firewall, links, namespaces, ovs, stats
from core.collect.host import read_host
from core.collect.snapshot import read_engines
from core.metrics import fastpath, rules, tracking
from core.metrics.fastpath import FastPathSource
from core.metrics.sheet import Sheet, unique
from core.metrics.wiring import Wiring
from core.model import LinkStats, Problem, Snapshot
from core.topology import Topology

# Scrapes within so many seconds get the same answer: several scrapers cost no more than one.
_SHARED = 1.0


class HostCollector(Collector):
    """Reads the host when it is collected, one scrape at a time. `say` hears of a part that cannot be read,
    once for as long as that lasts."""

    def __init__(self, say: Callable[[str], None], fast_path: FastPathSource | None = None) -> None:
        self._say, self._fast_path = say, fast_path
        self._lock = threading.Lock()
        self._failures: dict[str, str] = {}
        self._last: list[Metric] = []
        self._read_at = float("-inf")

    def describe(self) -> Iterable[Metric]:
        """Nothing is read before the first scrape."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """Every metric of the host."""
        with self._lock:
            if time.monotonic() - self._read_at >= _SHARED:
                self._last = list(self._scrape())
                self._read_at = time.monotonic()
            return self._last

    def _scrape(self) -> Iterable[Metric]:
        sheet = Sheet()
        sheet.add("vnet_build_info", (_version(),), 1)
        look = Look()
        for part, read in look.parts():
            self._try(sheet, part, read)
        topology = Topology(look.snapshot())
        labels = unique((inode, topology.label(inode)) for inode in look.fields.get("namespaces", {}))
        wiring = Wiring(sheet, topology, look.counters, labels)
        for part, fill in (
            ("link metrics", wiring.links),
            ("bridge metrics", wiring.bridges),
            ("network metrics", wiring.networks),
            ("container metrics", wiring.containers),
            ("nat metrics", lambda: rules.fill_nat(sheet, topology, labels)),
            ("findings", lambda: rules.fill_findings(sheet, topology)),
            ("conntrack", lambda: tracking.fill(sheet, topology.snapshot.namespaces, labels)),
            ("fast path", lambda: fastpath.fill(sheet, self._fast_path() if self._fast_path else None)),
        ):
            self._try(sheet, part, fill)
        return sheet.families()

    def _try(self, sheet: Sheet, part: str, do: Callable[[], object]) -> None:
        """Do one part; whatever stands in its way is a metric, and said."""
        began = time.monotonic()
        try:
            do()
            self._failures.pop(part, None)
            good = True
        except Exception as error:
            self._failed(part, error)
            good = False
        sheet.add("vnet_scrape_part_success", (part,), good)
        sheet.add("vnet_scrape_part_duration_seconds", (part,), time.monotonic() - began)

    def _failed(self, part: str, error: Exception) -> None:
        sentence = f"metrics: {part} could not be read: {error or type(error).__name__}"
        if self._failures.get(part) != sentence:
            self._failures[part] = sentence
            self._say(sentence)


class Look:
    """What is read of the host for one scrape."""

    def __init__(self) -> None:
        self.fields: dict[str, Any] = {}
        self.counters = LinkStats(0.0)
        self._problems: dict[str, tuple[Problem, ...]] = {}

    def parts(self) -> Iterable[tuple[str, Callable[[], object]]]:
        """Each part's name and who reads it, in an order in which each finds what it needs."""
        return (
            ("namespaces", self._namespaces),
            ("links", self._links),
            ("link counters", self._counters),
            ("firewall", self._firewalls),
            ("containers", self._engines),
            ("ovs", self._ovs),
        )

    def snapshot(self) -> Snapshot:
        """All that could be read."""
        return Snapshot(taken_at=time.time(), part_problems=self._problems, **self.fields)

    def _namespaces(self) -> None:
        self.fields["host"] = read_host()
        self.fields["namespaces"], problems = namespaces.read_namespaces(deep=False)
        self._problems["namespaces"] = problems

    @property
    def _found(self) -> Any:
        return self.fields.get("namespaces", {})

    def _links(self) -> None:
        self.fields["nets"] = links.read_nets(self._found.values())

    def _counters(self) -> None:
        self.counters = stats.read_stats(self._found.values())

    def _firewalls(self) -> None:
        self.fields["firewalls"] = firewall.read_firewalls(self._found)

    def _engines(self) -> None:
        self.fields["engines"] = read_engines(self._found)

    def _ovs(self) -> None:
        self.fields["ovs"], self._problems["ovs"] = ovs.read_ovs()


def _version() -> str:
    try:
        return version("vnet-tui")
    except PackageNotFoundError:
        return "unknown"

"""At each scrape the collector looks at the host, part by part; one that fails takes no other with it."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from core.collect import firewall, links, namespaces, ovs
from core.collect.conntrack import read_usage
from core.collect.host import read_host
from core.collect.snapshot import read_engines
from core.diagnose import findings
from core.metrics.samples import FastPathSource, SampleSet, fill_fast_path, unique
from core.model import Container, Link, LinkStats, Namespace, Network, Problem, Snapshot
from core.netlink.netns import NamespaceGone
from core.topology import Topology

# Each counter of STATS_DTYPE by the end of its metric's name.
_LINK_COUNTERS = {
    "receive_bytes_total": "rx_bytes", "transmit_bytes_total": "tx_bytes",
    "receive_packets_total": "rx_packets", "transmit_packets_total": "tx_packets",
    "receive_errors_total": "rx_errors", "transmit_errors_total": "tx_errors",
    "receive_drops_total": "rx_dropped", "transmit_drops_total": "tx_dropped",
    "receive_multicast_packets_total": "multicast",
}  # fmt: skip
_OF_CONTAINERS = tuple(_LINK_COUNTERS)[:4]


class LinkMetrics:
    """Fills a sheet from one look; `labels` are the namespaces' names, by inode."""

    def __init__(
        self, sheet: SampleSet, topology: Topology, stats: LinkStats, labels: Mapping[int, str]
    ) -> None:
        self._sheet, self._topology, self._labels = sheet, topology, labels
        self._counted = {(int(row["ns"]), int(row["ifindex"])): row for row in stats.rows}
        self._names = unique((one.uid, topology.title(one)) for one in topology.containers.values())

    def links(self) -> None:
        """Every link; the host's first, loopback last."""
        host = self._topology.host
        every = sorted(
            self._topology.snapshot.links(),
            key=lambda link: (link.kind == "loopback", link.ns != host, link.ns, link.ifindex),
        )
        for link in self._sheet.bounded("link", every):
            labels = (self._label(link.ns), link.name)
            self._sheet.add("vnet_link_info", (*labels, *self._about(link)), 1)
            self._sheet.add("vnet_link_up", labels, link.admin_up and link.carrier)
            self._sheet.add("vnet_link_mtu_bytes", labels, link.mtu)
            self._count("vnet_link", link, labels, tuple(_LINK_COUNTERS))

    def _label(self, ns: int) -> str:
        return self._labels.get(ns, f"net:[{ns}]")

    def _count(self, prefix: str, link: Link, labels: tuple[str, ...], wanted: tuple[str, ...]) -> None:
        row = self._counted.get((link.ns, link.ifindex))
        if row is None:
            return
        for name in wanted:
            self._sheet.add(f"{prefix}_{name}", labels, int(row[_LINK_COUNTERS[name]]))

    def _about(self, link: Link) -> tuple[str, ...]:
        topology = self._topology
        master, peer = topology.master_of(link), topology.peer(link)
        network, container = topology.network_of(link), topology.container_of(link.ns)
        return (
            link.kind,
            master.name if master else "",
            network.name if network else "",
            self._names[container.uid] if container else "",
            self._label(peer.ns) if peer else "",
            peer.name if peer else "",
        )

    def bridges(self) -> None:
        """Every bridge of the kernel's and of Open vSwitch."""
        topology = self._topology
        bridges = [link for link in topology.snapshot.links() if topology.is_bridge(link)]
        for bridge in self._sheet.bounded("bridge", bridges):
            labels = (self._label(bridge.ns), bridge.name)
            ports = topology.ports_of(bridge.key)
            forwarding = sum(port.port is not None and port.port.state == "forwarding" for port in ports)
            self._sheet.add("vnet_bridge_ports", labels, len(ports))
            self._sheet.add("vnet_bridge_forwarding_ports", labels, forwarding)
            self._sheet.add("vnet_bridge_learned_addresses", labels, self._learned(bridge))

    def _learned(self, bridge: Link) -> int:
        net = self._topology.snapshot.nets[bridge.ns]
        return sum(entry.bridge == bridge.ifindex and entry.state == "learned" for entry in net.fdb)

    def networks(self) -> None:
        """Every network, engines' and kernel's."""
        for network in self._sheet.bounded("network", self._topology.networks):
            labels = self._network_labels(network)
            about = (network.kind, network.driver, network.bridge)
            self._sheet.add("vnet_network_info", (*labels, *about), 1)
            self._sheet.add("vnet_network_containers", labels, len(self._topology.members(network)))

    def _network_labels(self, network: Network) -> tuple[str, ...]:
        return self._label(network.ns or self._topology.host), network.name, network.engine

    def containers(self) -> None:
        """Every container; its traffic where it has links of its own."""
        for container in self._sheet.bounded("container", self._topology.containers.values()):
            labels = (self._names[container.uid], container.runtime)
            self._sheet.add("vnet_container_info", (*labels, *self._place_of(container)), 1)
            self._sheet.add("vnet_container_running", labels, container.state == "running")
            for link in self._topology.links_of(container):
                self._count("vnet_container", link, (*labels, link.name), _OF_CONTAINERS)

    def _place_of(self, container: Container) -> tuple[str, str]:
        card = self._topology.cards.get(container.uid)
        where = self._label(container.netns) if container.netns is not None else ""
        return card.model if card else "unknown", where


# Each counter of ConntrackStats by its metric.
_TABLE_COUNTERS = {
    "found": "found", "invalid": "invalid_packets", "insert": "inserts", "insert_failed": "insert_failures",
    "drop": "drops", "early_drop": "early_drops", "error": "errors", "search_restart": "search_restarts",
    "clash_resolve": "clashes_resolved", "chain_too_long": "chain_too_long",
}  # fmt: skip


def fill_conntrack(sheet: SampleSet, namespaces: Mapping[int, Namespace], labels: Mapping[int, str]) -> None:
    """Every namespace's table. Raises OSError where none could be read."""
    errors: list[OSError] = []
    ordered = sorted(namespaces.values(), key=lambda one: not one.is_host)
    for namespace in sheet.bounded("conntrack table", ordered):
        try:
            _fill_table(sheet, namespace, labels[namespace.inode])
        except NamespaceGone:
            continue
        except OSError as error:
            errors.append(error)
    if errors and len(errors) == len(namespaces):
        raise errors[0]


def _fill_table(sheet: SampleSet, namespace: Namespace, label: str) -> None:
    count, limit, stats = read_usage(namespace)
    sheet.add("vnet_conntrack_entries", (label,), count)
    sheet.add("vnet_conntrack_entries_limit", (label,), limit)
    for name, value in asdict(stats).items() if stats else ():
        sheet.add(f"vnet_conntrack_{_TABLE_COUNTERS[name]}_total", (label,), value)


_FILTER = "filter"


def fill_nat(sheet: SampleSet, topology: Topology, labels: Mapping[int, str]) -> None:
    """How many of each kind there are, and what those counted whose rules count."""
    kinds = Counter((entry.ns, entry.kind) for entry in topology.nat)
    for (ns, kind), count in kinds.items():
        sheet.add("vnet_nat_entries", (labels[ns], kind), count)
    counted = [entry for entry in topology.nat if entry.packets is not None and entry.ns in labels]
    for entry in sheet.bounded("nat", counted):
        where, packets = labels[entry.ns], entry.packets or 0
        if entry.kind == _FILTER:
            about = (where, entry.name, entry.verdict, entry.l4_proto)
            sheet.add("vnet_filter_packets_total", about, packets)
            sheet.add("vnet_filter_bytes_total", about, entry.bytes or 0)
        else:
            sheet.add("vnet_nat_connections_total", (where, entry.kind, entry.name, entry.l4_proto), packets)


def fill_findings(sheet: SampleSet, topology: Topology) -> None:
    """How many things of each kind are wrong, and how many could not be read."""
    for part, count in Counter(one.part for one in topology.snapshot.problems).items():
        sheet.add("vnet_problems", (part,), count)
    for (kind, severity), count in Counter((one.kind, one.severity) for one in findings(topology)).items():
        sheet.add("vnet_findings", (kind, severity), count)


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
        sheet = SampleSet()
        sheet.add("vnet_build_info", (_version(),), 1)
        look = HostReading()
        for part, read in look.parts():
            self._try(sheet, part, read)
        topology = Topology(look.snapshot())
        labels = unique((inode, topology.label(inode)) for inode in look.fields.get("namespaces", {}))
        wiring = LinkMetrics(sheet, topology, look.counters, labels)
        for part, fill in (
            ("link metrics", wiring.links),
            ("bridge metrics", wiring.bridges),
            ("network metrics", wiring.networks),
            ("container metrics", wiring.containers),
            ("nat metrics", lambda: fill_nat(sheet, topology, labels)),
            ("findings", lambda: fill_findings(sheet, topology)),
            ("conntrack", lambda: fill_conntrack(sheet, topology.snapshot.namespaces, labels)),
            ("fast path", lambda: fill_fast_path(sheet, self._fast_path() if self._fast_path else None)),
        ):
            self._try(sheet, part, fill)
        return sheet.families()

    def _try(self, sheet: SampleSet, part: str, do: Callable[[], object]) -> None:
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


class HostReading:
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
        self.counters = links.read_stats(self._found.values())

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

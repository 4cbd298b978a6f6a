"""Read the host part by part at each scrape; a failure affects only its part."""

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
from core.drops import is_drop
from core.metrics.samples import FastPathSource, SampleSet, fill_fast_path, unique_labels
from core.model import Container, Drop, Link, LinkStats, Namespace, Network, Problem, Snapshot
from core.netlink.netns import NamespaceGone
from core.topology import Topology
from core.topology.drops import container_of_drop, link_of_drop

# Fields of STATS_DTYPE by the suffix of their metrics.
_LINK_COUNTERS = {
    "receive_bytes_total": "rx_bytes", "transmit_bytes_total": "tx_bytes",
    "receive_packets_total": "rx_packets", "transmit_packets_total": "tx_packets",
    "receive_errors_total": "rx_errors", "transmit_errors_total": "tx_errors",
    "receive_drops_total": "rx_dropped", "transmit_drops_total": "tx_dropped",
    "receive_multicast_packets_total": "multicast",
}  # fmt: skip
_CONTAINER_COUNTERS = tuple(_LINK_COUNTERS)[:4]


class LinkMetrics:
    """Adds metrics of links, bridges, networks and containers to `samples`.

    `labels` are the names of namespaces by inode.
    """

    def __init__(
        self, samples: SampleSet, topology: Topology, stats: LinkStats, labels: Mapping[int, str]
    ) -> None:
        self._samples, self._topology, self._labels = samples, topology, labels
        self._counters = {(int(row["ns"]), int(row["ifindex"])): row for row in stats.rows}
        self._container_names = unique_labels(
            (one.uid, topology.title(one)) for one in topology.containers.values()
        )

    def links(self) -> None:
        """Add every link, the host's first, loopback last."""
        host = self._topology.host
        links = sorted(
            self._topology.snapshot.links(),
            key=lambda link: (link.kind == "loopback", link.ns != host, link.ns, link.ifindex),
        )
        for link in self._samples.bounded("link", links):
            labels = (self._label(link.ns), link.name)
            self._samples.add("vnet_link_info", (*labels, *self._link_info(link)), 1)
            self._samples.add("vnet_link_up", labels, link.admin_up and link.carrier)
            self._samples.add("vnet_link_mtu_bytes", labels, link.mtu)
            self._add_counters("vnet_link", link, labels, tuple(_LINK_COUNTERS))

    def _label(self, ns: int) -> str:
        return self._labels.get(ns, f"net:[{ns}]")

    def _add_counters(
        self, prefix: str, link: Link, labels: tuple[str, ...], suffixes: tuple[str, ...]
    ) -> None:
        row = self._counters.get((link.ns, link.ifindex))
        if row is None:
            return
        for name in suffixes:
            self._samples.add(f"{prefix}_{name}", labels, int(row[_LINK_COUNTERS[name]]))

    def _link_info(self, link: Link) -> tuple[str, ...]:
        topology = self._topology
        master, peer = topology.master_of(link), topology.peer(link)
        network, container = topology.network_of(link), topology.container_of(link.ns)
        return (
            link.kind,
            master.name if master else "",
            network.name if network else "",
            self._container_names[container.uid] if container else "",
            self._label(peer.ns) if peer else "",
            peer.name if peer else "",
        )

    def bridges(self) -> None:
        """Add every bridge of the kernel and of Open vSwitch."""
        topology = self._topology
        bridges = [link for link in topology.snapshot.links() if topology.is_bridge(link)]
        for bridge in self._samples.bounded("bridge", bridges):
            labels = (self._label(bridge.ns), bridge.name)
            ports = topology.ports_of(bridge.key)
            forwarding = sum(port.port is not None and port.port.state == "forwarding" for port in ports)
            self._samples.add("vnet_bridge_ports", labels, len(ports))
            self._samples.add("vnet_bridge_forwarding_ports", labels, forwarding)
            self._samples.add("vnet_bridge_learned_addresses", labels, self._learned_addresses(bridge))

    def _learned_addresses(self, bridge: Link) -> int:
        net = self._topology.snapshot.nets[bridge.ns]
        return sum(entry.bridge == bridge.ifindex and entry.state == "learned" for entry in net.fdb)

    def networks(self) -> None:
        """Add every network, of engines and of the kernel."""
        for network in self._samples.bounded("network", self._topology.networks):
            labels = self._network_labels(network)
            info = (network.kind, network.driver, network.bridge)
            self._samples.add("vnet_network_info", (*labels, *info), 1)
            self._samples.add("vnet_network_containers", labels, len(self._topology.members(network)))

    def _network_labels(self, network: Network) -> tuple[str, ...]:
        return self._label(network.ns or self._topology.host), network.name, network.engine

    def containers(self) -> None:
        """Add every container, and its traffic if it has links of its own."""
        for container in self._samples.bounded("container", self._topology.containers.values()):
            labels = (self._container_names[container.uid], container.runtime)
            self._samples.add("vnet_container_info", (*labels, *self._model_and_namespace(container)), 1)
            self._samples.add("vnet_container_running", labels, container.state == "running")
            for link in self._topology.links_of(container):
                self._add_counters("vnet_container", link, (*labels, link.name), _CONTAINER_COUNTERS)

    def _model_and_namespace(self, container: Container) -> tuple[str, str]:
        card = self._topology.cards.get(container.uid)
        namespace = self._label(container.netns) if container.netns is not None else ""
        return card.model if card else "unknown", namespace


# Metrics by fields of ConntrackStats.
_TABLE_COUNTERS = {
    "found": "found", "invalid": "invalid_packets", "insert": "inserts", "insert_failed": "insert_failures",
    "drop": "drops", "early_drop": "early_drops", "error": "errors", "search_restart": "search_restarts",
    "clash_resolve": "clashes_resolved", "chain_too_long": "chain_too_long",
}  # fmt: skip


def fill_conntrack(
    samples: SampleSet, namespaces: Mapping[int, Namespace], labels: Mapping[int, str]
) -> None:
    """Add the table of every namespace. Raises OSError if none can be read."""
    errors: list[OSError] = []
    ordered = sorted(namespaces.values(), key=lambda one: not one.is_host)
    for namespace in samples.bounded("conntrack table", ordered):
        try:
            _fill_table(samples, namespace, labels[namespace.inode])
        except NamespaceGone:
            continue
        except OSError as error:
            errors.append(error)
    if errors and len(errors) == len(namespaces):
        raise errors[0]


def _fill_table(samples: SampleSet, namespace: Namespace, label: str) -> None:
    count, limit, stats = read_usage(namespace)
    samples.add("vnet_conntrack_entries", (label,), count)
    samples.add("vnet_conntrack_entries_limit", (label,), limit)
    for name, value in asdict(stats).items() if stats else ():
        samples.add(f"vnet_conntrack_{_TABLE_COUNTERS[name]}_total", (label,), value)


_FILTER = "filter"


def fill_nat(samples: SampleSet, topology: Topology, labels: Mapping[int, str]) -> None:
    """Add the number of NAT entries by kind, and the counters of their rules."""
    kinds = Counter((entry.ns, entry.kind) for entry in topology.nat)
    for (ns, kind), count in kinds.items():
        samples.add("vnet_nat_entries", (labels[ns], kind), count)
    counted = [entry for entry in topology.nat if entry.packets is not None and entry.ns in labels]
    for entry in samples.bounded("nat", counted):
        namespace, packets = labels[entry.ns], entry.packets or 0
        if entry.kind == _FILTER:
            rule = (namespace, entry.name, entry.verdict, entry.l4_proto)
            samples.add("vnet_filter_packets_total", rule, packets)
            samples.add("vnet_filter_bytes_total", rule, entry.bytes or 0)
        else:
            rule = (namespace, entry.kind, entry.name, entry.l4_proto)
            samples.add("vnet_nat_connections_total", rule, packets)


def fill_findings(samples: SampleSet, topology: Topology) -> None:
    """Add the number of findings and of problems by kind."""
    for part, count in Counter(one.part for one in topology.snapshot.problems).items():
        samples.add("vnet_problems", (part,), count)
    for (kind, severity), count in Counter((one.kind, one.severity) for one in findings(topology)).items():
        samples.add("vnet_findings", (kind, severity), count)


# Called at each scrape; returns counters of dropped packets, and how many weren't counted.
DropSource = Callable[[Topology], tuple[Iterable[Drop], int]]


def fill_drops(
    samples: SampleSet, topology: Topology, labels: Mapping[int, str], source: DropSource | None
) -> None:
    """Add dropped packets of known namespaces, if they are counted."""
    if source is None:
        return
    drops, uncounted = source(topology)
    counts: Counter[tuple[str, str, str, str]] = Counter()
    for drop in drops:
        if drop.ns in labels and is_drop(drop):
            container = container_of_drop(topology, drop)
            link = link_of_drop(topology, drop)
            names = labels[drop.ns], link.name if link else "", container.name if container else ""
            counts[(*names, drop.reason)] += drop.packets
    for key, packets in samples.bounded("drops", counts.items()):
        samples.add("vnet_dropped_packets_total", key, packets)
    samples.add("vnet_dropped_uncounted_packets_total", (), uncounted)


# Scrapes within so many seconds get the same result: several scrapers cost no more than one.
_SHARED_SECONDS = 1.0


class HostCollector(Collector):
    """Reads the host at each scrape, one scrape at a time.

    `log` is called when a part can't be read, once until that changes.
    """

    def __init__(
        self,
        log: Callable[[str], None],
        fast_path: FastPathSource | None = None,
        drops: DropSource | None = None,
    ) -> None:
        self._log, self._fast_path, self._drops = log, fast_path, drops
        self._lock = threading.Lock()
        self._failures: dict[str, str] = {}
        self._last: list[Metric] = []
        self._read_at = float("-inf")

    def describe(self) -> Iterable[Metric]:
        """Return nothing: the registry needn't read the host before the first scrape."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """Return all metrics of the host."""
        with self._lock:
            if time.monotonic() - self._read_at >= _SHARED_SECONDS:
                self._last = list(self._scrape())
                self._read_at = time.monotonic()
            return self._last

    def _scrape(self) -> Iterable[Metric]:
        samples = SampleSet()
        samples.add("vnet_build_info", (_version(),), 1)
        host = HostReader()
        for part, read in host.parts():
            self._try(samples, part, read)
        topology = Topology(host.snapshot())
        labels = unique_labels((inode, topology.label(inode)) for inode in host.fields.get("namespaces", {}))
        link_metrics = LinkMetrics(samples, topology, host.counters, labels)
        for part, fill in (
            ("link metrics", link_metrics.links),
            ("bridge metrics", link_metrics.bridges),
            ("network metrics", link_metrics.networks),
            ("container metrics", link_metrics.containers),
            ("nat metrics", lambda: fill_nat(samples, topology, labels)),
            ("findings", lambda: fill_findings(samples, topology)),
            ("conntrack", lambda: fill_conntrack(samples, topology.snapshot.namespaces, labels)),
            ("fast path", lambda: fill_fast_path(samples, self._fast_path() if self._fast_path else None)),
            ("drops", lambda: fill_drops(samples, topology, labels, self._drops)),
        ):
            self._try(samples, part, fill)
        return samples.families()

    def _try(self, samples: SampleSet, part: str, read: Callable[[], object]) -> None:
        """Read one part; add its success and duration, and log a failure."""
        began = time.monotonic()
        try:
            read()
            self._failures.pop(part, None)
            success = True
        except Exception as error:
            self._log_failure(part, error)
            success = False
        samples.add("vnet_scrape_part_success", (part,), success)
        samples.add("vnet_scrape_part_duration_seconds", (part,), time.monotonic() - began)

    def _log_failure(self, part: str, error: Exception) -> None:
        message = f"can't read {part} for metrics: {error or type(error).__name__}"
        if self._failures.get(part) != message:
            self._failures[part] = message
            self._log(message)


class HostReader:
    """Reads the parts of a snapshot for one scrape."""

    def __init__(self) -> None:
        self.fields: dict[str, Any] = {}
        self.counters = LinkStats(0.0)
        self._problems: dict[str, tuple[Problem, ...]] = {}

    def parts(self) -> Iterable[tuple[str, Callable[[], object]]]:
        """Return the parts with their functions, in the order of their dependencies."""
        return (
            ("namespaces", self._namespaces),
            ("links", self._links),
            ("link counters", self._counters),
            ("firewall", self._firewalls),
            ("containers", self._engines),
            ("ovs", self._ovs),
        )

    def snapshot(self) -> Snapshot:
        """Return a snapshot of the parts read."""
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

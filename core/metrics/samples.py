"""The metrics, and the set of samples of one scrape."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from core.text import safe

Kind = Literal["counter", "gauge", "info"]


@dataclass(frozen=True, slots=True)
class MetricInfo:
    """A metric of Prometheus; an "info" is a gauge of value 1 with informative labels."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()


_LINK = ("namespace", "link")
_BRIDGE = ("namespace", "bridge")
_NETWORK = ("namespace", "network", "engine")
_CONTAINER = ("container", "runtime")
_CONTAINER_LINK = (*_CONTAINER, "link")
_NS = ("namespace",)
_RULE = ("namespace", "kind", "name", "l4_proto")
_FILTER = ("namespace", "name", "verdict", "l4_proto")

METRICS: tuple[MetricInfo, ...] = (
    MetricInfo("vnet_build_info", "info", "The version of vnet-tui.", ("version",)),
    MetricInfo("vnet_link_info", "info",
           "A link's kind, bridge, network, container and peer; labels that don't apply are empty.",
           (*_LINK, "kind", "master", "network", "container", "peer_namespace", "peer")),
    MetricInfo("vnet_link_up", "gauge", "Whether a link is switched on and has a carrier.", _LINK),
    MetricInfo("vnet_link_mtu_bytes", "gauge", "The MTU of a link.", _LINK),
    MetricInfo("vnet_link_receive_bytes_total", "counter", "Bytes that a link has received.", _LINK),
    MetricInfo("vnet_link_transmit_bytes_total", "counter", "Bytes that a link has sent.", _LINK),
    MetricInfo("vnet_link_receive_packets_total", "counter", "Packets that a link has received.", _LINK),
    MetricInfo("vnet_link_transmit_packets_total", "counter", "Packets that a link has sent.", _LINK),
    MetricInfo("vnet_link_receive_errors_total", "counter", "Packets that a link received in error.", _LINK),
    MetricInfo("vnet_link_transmit_errors_total", "counter",
           "Packets that a link failed to send.", _LINK),
    MetricInfo("vnet_link_receive_drops_total", "counter", "Packets received by a link and dropped.", _LINK),
    MetricInfo("vnet_link_transmit_drops_total", "counter",
           "Packets dropped before a link sent them.", _LINK),
    MetricInfo("vnet_link_receive_multicast_packets_total", "counter",
           "Multicast packets that a link has received; many kinds of link don't count them.", _LINK),
    MetricInfo("vnet_bridge_ports", "gauge", "How many ports a bridge has.", _BRIDGE),
    MetricInfo("vnet_bridge_forwarding_ports", "gauge", "How many ports of a bridge forward.", _BRIDGE),
    MetricInfo("vnet_bridge_learned_addresses", "gauge",
           "How many MAC addresses a bridge has learned.", _BRIDGE),
    MetricInfo("vnet_network_info", "info", "A network's kind, driver and bridge.",
           (*_NETWORK, "kind", "driver", "bridge")),
    MetricInfo("vnet_network_containers", "gauge", "How many containers are on a network.", _NETWORK),
    MetricInfo("vnet_container_info", "info", "A container's network model and its network namespace.",
           (*_CONTAINER, "model", "namespace")),
    MetricInfo("vnet_container_running", "gauge", "Whether a container runs.", _CONTAINER),
    MetricInfo("vnet_container_receive_bytes_total", "counter",
           "Bytes that a container has received by one of its links.", _CONTAINER_LINK),
    MetricInfo("vnet_container_transmit_bytes_total", "counter",
           "Bytes that a container has sent by one of its links.", _CONTAINER_LINK),
    MetricInfo("vnet_container_receive_packets_total", "counter",
           "Packets that a container has received by one of its links.", _CONTAINER_LINK),
    MetricInfo("vnet_container_transmit_packets_total", "counter",
           "Packets that a container has sent by one of its links.", _CONTAINER_LINK),
    MetricInfo("vnet_nat_entries", "gauge", "How many NAT entries and forward filters of a kind there are.",
           (*_NS, "kind")),
    MetricInfo("vnet_nat_connections_total", "counter",
           "Connections that a NAT entry applied to, if its rule has a counter.", _RULE),
    MetricInfo("vnet_filter_packets_total", "counter",
           "Packets that matched a forward filter, if its rule has a counter.",
           _FILTER),
    MetricInfo("vnet_filter_bytes_total", "counter",
           "Bytes that matched a forward filter, if its rule has a counter.", _FILTER),
    MetricInfo("vnet_conntrack_entries", "gauge",
           "How many entries a namespace's conntrack table has.", _NS),
    MetricInfo("vnet_conntrack_entries_limit", "gauge",
           "How many entries each table may have (nf_conntrack_max).", _NS),
    MetricInfo("vnet_conntrack_found_total", "counter",
           "Packets that matched an entry while another one was being created.", _NS),
    MetricInfo("vnet_conntrack_invalid_packets_total", "counter", "Packets that fit no connection.", _NS),
    MetricInfo("vnet_conntrack_inserts_total", "counter",
           "Entries inserted by a program, not by traffic.", _NS),
    MetricInfo("vnet_conntrack_insert_failures_total", "counter",
           "Entries not inserted because another one has their addresses and ports.", _NS),
    MetricInfo("vnet_conntrack_drops_total", "counter",
           "Packets dropped because the table was full or memory was short.", _NS),
    MetricInfo("vnet_conntrack_early_drops_total", "counter",
           "Entries removed from a full table to make room for new ones.", _NS),
    MetricInfo("vnet_conntrack_errors_total", "counter", "Packets that could not be tracked.", _NS),
    MetricInfo("vnet_conntrack_search_restarts_total", "counter", "Lookups that had to be restarted.", _NS),
    MetricInfo("vnet_conntrack_clashes_resolved_total", "counter",
           "Races between equal entries that were resolved without loss.", _NS),
    MetricInfo("vnet_conntrack_chain_too_long_total", "counter",
           "Packets dropped because too many entries share a hash bucket.", _NS),
    MetricInfo("vnet_fast_path_active", "gauge",
           "Whether the fast path forwards packets; 0 if it is off or paused."),
    MetricInfo("vnet_fast_path_running", "gauge", "Whether the fast path is on, even if paused."),
    MetricInfo("vnet_fast_path_flows", "gauge", "How many flows the fast path has; each direction counts."),
    MetricInfo("vnet_fast_path_flows_limit", "gauge", "How many flows the fast path can have."),
    MetricInfo("vnet_fast_path_links", "gauge", "How many links the fast path is attached to."),
    MetricInfo("vnet_fast_path_packets_total", "counter", "Packets that the fast path has forwarded."),
    MetricInfo("vnet_fast_path_kernel_packets_total", "counter",
           "Packets that the fast path saw and left to the kernel.", ("reason",)),
    MetricInfo("vnet_fast_path_link_packets_total", "counter",
           "Packets received by a link, by verdict: fast, or why they were left to the kernel.",
           ("link", "verdict")),
    MetricInfo("vnet_dropped_packets_total", "counter",
           "Packets that the kernel dropped, by its reason; container is the one concerned, if known.",
           ("namespace", "link", "container", "reason")),
    MetricInfo("vnet_dropped_uncounted_packets_total", "counter",
           "Dropped packets that the kernel's map had no room for."),
    MetricInfo("vnet_findings", "gauge", "How many findings there are, as in the dashboard.",
           ("kind", "severity")),
    MetricInfo("vnet_problems", "gauge", "How many things could not be read in this scrape.", ("part",)),
    MetricInfo("vnet_left_out", "gauge",
           "How many things of a kind have no series, because the number of series is limited.",
           ("kind",)),
    MetricInfo("vnet_scrape_part_success", "gauge",
           "Whether a part could be read for this scrape.", ("part",)),
    MetricInfo("vnet_scrape_part_duration_seconds", "gauge",
           "How long reading a part took for this scrape.", ("part",)),
)  # fmt: skip


# How many links, networks, containers, NAT entries and so on have series of their own.
MAX_SERIES = 2000
_MAX_LABEL_LENGTH = 128


class SampleSet:
    """The samples of one scrape by metric and labels."""

    def __init__(self, limit: int = MAX_SERIES) -> None:
        self._limit = limit
        self._values: dict[str, dict[tuple[str, ...], float]] = {}

    def add(self, name: str, labels: Iterable[object], value: float) -> None:
        """Add to a counter, or set a gauge."""
        known = self._values.setdefault(name, {})
        key = tuple(clean_label(str(label)) for label in labels)
        known[key] = known.get(key, 0.0) + value if name.endswith("_total") else value

    def bounded[Item](self, kind: str, items: Iterable[Item]) -> list[Item]:
        """Return the first items up to the limit; count the rest as a metric."""
        found = list(items)
        self.add("vnet_left_out", (kind,), max(0, len(found) - self._limit))
        return found[: self._limit]

    def families(self) -> Iterator[Metric]:
        """Yield the metrics that have samples, in the order of METRICS."""
        for metric in METRICS:
            values = self._values.get(metric.name)
            if not values:
                continue
            make = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
            family = make(metric.name, metric.help, labels=metric.labels)
            for labels, value in values.items():
                family.add_metric(labels, value)
            yield family


def clean_label(text: str) -> str:
    """Return external text as a label's value: a short line of printable UTF-8."""
    shown = safe(text)
    return shown if len(shown) <= _MAX_LABEL_LENGTH else f"{shown[: _MAX_LABEL_LENGTH - 1]}…"


def unique_labels[Key: Hashable](labels: Iterable[tuple[Key, str]]) -> dict[Key, str]:
    """Return clean labels by key; the key is appended to labels that aren't unique."""
    cleaned = [(key, clean_label(label)) for key, label in labels]
    counts = Counter(label for _, label in cleaned)
    return {
        key: label if counts[label] == 1 else f"{label[: _MAX_LABEL_LENGTH - 24]} [{key}]"
        for key, label in cleaned
    }


@dataclass(frozen=True, slots=True)
class FastPathNumbers:
    """Numbers of the fast path; None if it doesn't count them.

    `packets` were forwarded since it was attached, `left` were left to the kernel, by reason. `by_link` has
    packets by link and verdict. `forwarding` is False while the fast path is paused.
    """

    flows: int | None = None
    flows_limit: int | None = None
    links: int | None = None
    packets: int | None = None
    left: Mapping[str, int] = field(default_factory=dict)
    by_link: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    forwarding: bool = True


# Called at each scrape, from any thread; returns None if the fast path is off.
FastPathSource = Callable[[], FastPathNumbers | None]


def fill_fast_path(samples: SampleSet, numbers: FastPathNumbers | None) -> None:
    """Add the numbers of the fast path, None if it is off."""
    samples.add("vnet_fast_path_active", (), numbers is not None and numbers.forwarding)
    samples.add("vnet_fast_path_running", (), numbers is not None)
    if numbers is None:
        return
    by_name = {
        "flows": numbers.flows,
        "flows_limit": numbers.flows_limit,
        "links": numbers.links,
        "packets_total": numbers.packets,
    }
    for name, value in by_name.items():
        if value is not None:
            samples.add(f"vnet_fast_path_{name}", (), value)
    for reason, count in numbers.left.items():
        samples.add("vnet_fast_path_kernel_packets_total", (reason,), count)
    for link, verdicts in samples.bounded("fast path link", numbers.by_link.items()):
        for verdict, count in verdicts.items():
            samples.add("vnet_fast_path_link_packets_total", (link, verdict), count)

"""One scrape's values: collected by metric and labels, cleaned and bounded, then given out as families."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from core.text import safe

Kind = Literal["counter", "gauge", "info"]


@dataclass(frozen=True, slots=True)
class MetricInfo:
    """One metric as Prometheus knows it; an "info" is a gauge that is always 1, its labels tell something."""

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
           "What a link is and where it leads to: labels are empty where nothing does.",
           (*_LINK, "kind", "master", "network", "container", "peer_namespace", "peer")),
    MetricInfo("vnet_link_up", "gauge", "Whether a link is switched on and has a carrier.", _LINK),
    MetricInfo("vnet_link_mtu_bytes", "gauge", "The MTU of a link.", _LINK),
    MetricInfo("vnet_link_receive_bytes_total", "counter", "Bytes that a link has received.", _LINK),
    MetricInfo("vnet_link_transmit_bytes_total", "counter", "Bytes that a link has sent.", _LINK),
    MetricInfo("vnet_link_receive_packets_total", "counter", "Packets that a link has received.", _LINK),
    MetricInfo("vnet_link_transmit_packets_total", "counter", "Packets that a link has sent.", _LINK),
    MetricInfo("vnet_link_receive_errors_total", "counter", "Packets that a link received in error.", _LINK),
    MetricInfo("vnet_link_transmit_errors_total", "counter",
           "Packets that a link could not send for an error.", _LINK),
    MetricInfo("vnet_link_receive_drops_total", "counter", "Packets received by a link and dropped.", _LINK),
    MetricInfo("vnet_link_transmit_drops_total", "counter",
           "Packets dropped before a link sent them.", _LINK),
    MetricInfo("vnet_link_receive_multicast_packets_total", "counter",
           "Multicast packets that a link has received; many kinds of link do not count them.", _LINK),
    MetricInfo("vnet_bridge_ports", "gauge", "How many ports a bridge has.", _BRIDGE),
    MetricInfo("vnet_bridge_forwarding_ports", "gauge", "How many ports of a bridge forward.", _BRIDGE),
    MetricInfo("vnet_bridge_learned_addresses", "gauge",
           "How many MAC addresses a bridge has learned.", _BRIDGE),
    MetricInfo("vnet_network_info", "info", "What a network is.", (*_NETWORK, "kind", "driver", "bridge")),
    MetricInfo("vnet_network_containers", "gauge", "How many containers are on a network.", _NETWORK),
    MetricInfo("vnet_container_info", "info", "How a container is connected, and in which network namespace.",
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
    MetricInfo("vnet_nat_entries", "gauge", "How many translations and forward filters of a kind there are.",
           (*_NS, "kind")),
    MetricInfo("vnet_nat_connections_total", "counter",
           "Connections that a translation was chosen for, where its rule counts.", _RULE),
    MetricInfo("vnet_filter_packets_total", "counter",
           "Packets that met a forward filter, where its rule counts.",
           _FILTER),
    MetricInfo("vnet_filter_bytes_total", "counter",
           "Bytes that met a forward filter, where its rule counts.", _FILTER),
    MetricInfo("vnet_conntrack_entries", "gauge",
           "How many connections a namespace's conntrack table holds.", _NS),
    MetricInfo("vnet_conntrack_entries_limit", "gauge",
           "How many each table may hold (nf_conntrack_max).", _NS),
    MetricInfo("vnet_conntrack_found_total", "counter",
           "Packets that met a connection while another one was made.", _NS),
    MetricInfo("vnet_conntrack_invalid_packets_total", "counter", "Packets that fitted no connection.", _NS),
    MetricInfo("vnet_conntrack_inserts_total", "counter",
           "Connections put in by a program, not by traffic.", _NS),
    MetricInfo("vnet_conntrack_insert_failures_total", "counter",
           "Connections that could not be taken up, because another one has their addresses and ports.", _NS),
    MetricInfo("vnet_conntrack_drops_total", "counter",
           "Packets lost because the table was full or memory short.", _NS),
    MetricInfo("vnet_conntrack_early_drops_total", "counter",
           "Connections thrown out of a full table for new ones.", _NS),
    MetricInfo("vnet_conntrack_errors_total", "counter", "Packets that could not be tracked.", _NS),
    MetricInfo("vnet_conntrack_search_restarts_total", "counter", "Searches that had to begin again.", _NS),
    MetricInfo("vnet_conntrack_clashes_resolved_total", "counter",
           "Races for one place that ended well.", _NS),
    MetricInfo("vnet_conntrack_chain_too_long_total", "counter",
           "Packets lost because too many connections share a hash bucket.", _NS),
    MetricInfo("vnet_fast_path_active", "gauge",
           "Whether the fast path forwards packets; 0 where it is off."),
    MetricInfo("vnet_fast_path_running", "gauge", "Whether it is turned on, be it paused."),
    MetricInfo("vnet_fast_path_flows", "gauge", "How many flows, a direction each, the fast path holds."),
    MetricInfo("vnet_fast_path_flows_limit", "gauge", "How many flows the fast path can hold."),
    MetricInfo("vnet_fast_path_links", "gauge", "How many links the fast path is attached to."),
    MetricInfo("vnet_fast_path_packets_total", "counter", "Packets that the fast path has forwarded."),
    MetricInfo("vnet_fast_path_kernel_packets_total", "counter",
           "Packets that the fast path saw and left to the kernel.", ("reason",)),
    MetricInfo("vnet_fast_path_link_packets_total", "counter",
           "Packets that came in by a link, by what became of them: fast, or why the kernel got them.",
           ("link", "verdict")),
    MetricInfo("vnet_findings", "gauge", "How many things are wrong, as the dashboard's findings tell.",
           ("kind", "severity")),
    MetricInfo("vnet_problems", "gauge", "How many things could not be read in this scrape.", ("part",)),
    MetricInfo("vnet_left_out", "gauge",
           "How many things of a kind are left out here, to keep the number of series bounded.",
           ("kind",)),
    MetricInfo("vnet_scrape_part_success", "gauge",
           "Whether a part could be read for this scrape.", ("part",)),
    MetricInfo("vnet_scrape_part_duration_seconds", "gauge",
           "How long reading a part took for this scrape.", ("part",)),
)  # fmt: skip


# Links, networks, containers, translations: of each kind so many at most get series of their own.
MOST = 2000
_LONGEST = 128


class SampleSet:
    """Values by metric and labels. A counter that is added to twice under one set of labels holds the sum."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._values: dict[str, dict[tuple[str, ...], float]] = {}

    def add(self, name: str, labels: Iterable[object], value: float) -> None:
        """Add a value; a gauge's last one counts."""
        known = self._values.setdefault(name, {})
        key = tuple(cleaned(str(label)) for label in labels)
        known[key] = known.get(key, 0.0) + value if name.endswith("_total") else value

    def bounded[Thing](self, kind: str, things: Iterable[Thing]) -> list[Thing]:
        """The first MOST of them; how many are left out is a metric."""
        every = list(things)
        self.add("vnet_left_out", (kind,), max(0, len(every) - self._most))
        return every[: self._most]

    def families(self) -> Iterator[Metric]:
        """The metrics that have values, in the order of METRICS."""
        for metric in METRICS:
            values = self._values.get(metric.name)
            if not values:
                continue
            make = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
            family = make(metric.name, metric.help, labels=metric.labels)
            for labels, value in values.items():
                family.add_metric(labels, value)
            yield family


def cleaned(text: str) -> str:
    """A label's value of what may come from outside: one line of printable UTF-8, not endlessly long."""
    shown = safe(text)
    return shown if len(shown) <= _LONGEST else f"{shown[: _LONGEST - 1]}…"


def unique[Key: Hashable](labels: Iterable[tuple[Key, str]]) -> dict[Key, str]:
    """What each thing is called; those that share a name, as it is shown, are told apart by their key."""
    named = [(key, cleaned(label)) for key, label in labels]
    counts: dict[str, int] = {}
    for _, label in named:
        counts[label] = counts.get(label, 0) + 1
    return {key: label if counts[label] == 1 else f"{label[: _LONGEST - 24]} [{key}]" for key, label in named}


@dataclass(frozen=True, slots=True)
class FastPathNumbers:
    """What the fast path counts: `packets` forwarded since it was attached, `left` the packets
    that it saw and left to the kernel, by the reason in a word or two; `by_link` what became of packets on
    each link. `forwarding` is False while it is paused. None where it does not count that."""

    flows: int | None = None
    flows_limit: int | None = None
    links: int | None = None
    packets: int | None = None
    left: Mapping[str, int] = field(default_factory=dict)
    by_link: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    forwarding: bool = True


# Called at each scrape, from any thread; None where the fast path is off.
FastPathSource = Callable[[], FastPathNumbers | None]


def fill_fast_path(sheet: SampleSet, numbers: FastPathNumbers | None) -> None:
    """Add what there is."""
    sheet.add("vnet_fast_path_active", (), numbers is not None and numbers.forwarding)
    sheet.add("vnet_fast_path_running", (), numbers is not None)
    if numbers is None:
        return
    told = {
        "flows": numbers.flows,
        "flows_limit": numbers.flows_limit,
        "links": numbers.links,
        "packets_total": numbers.packets,
    }
    for name, value in told.items():
        if value is not None:
            sheet.add(f"vnet_fast_path_{name}", (), value)
    for reason, count in numbers.left.items():
        sheet.add("vnet_fast_path_kernel_packets_total", (reason,), count)
    for link, verdicts in sheet.bounded("fast path link", numbers.by_link.items()):
        for verdict, count in verdicts.items():
            sheet.add("vnet_fast_path_link_packets_total", (link, verdict), count)

"""The one table of all metrics: name, kind, labels and help; docs/metrics.md shows it to people."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["counter", "gauge", "info"]


@dataclass(frozen=True, slots=True)
class Metric:
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

METRICS: tuple[Metric, ...] = (
    Metric("vnet_build_info", "info", "The version of vnet-tui.", ("version",)),
    Metric("vnet_link_info", "info",
           "What a link is and where it leads to: labels are empty where nothing does.",
           (*_LINK, "kind", "master", "network", "container", "peer_namespace", "peer")),
    Metric("vnet_link_up", "gauge", "Whether a link is switched on and has a carrier.", _LINK),
    Metric("vnet_link_mtu_bytes", "gauge", "The MTU of a link.", _LINK),
    Metric("vnet_link_receive_bytes_total", "counter", "Bytes that a link has received.", _LINK),
    Metric("vnet_link_transmit_bytes_total", "counter", "Bytes that a link has sent.", _LINK),
    Metric("vnet_link_receive_packets_total", "counter", "Packets that a link has received.", _LINK),
    Metric("vnet_link_transmit_packets_total", "counter", "Packets that a link has sent.", _LINK),
    Metric("vnet_link_receive_errors_total", "counter", "Packets that a link received in error.", _LINK),
    Metric("vnet_link_transmit_errors_total", "counter",
           "Packets that a link could not send for an error.", _LINK),
    Metric("vnet_link_receive_drops_total", "counter", "Packets received by a link and dropped.", _LINK),
    Metric("vnet_link_transmit_drops_total", "counter", "Packets dropped before a link sent them.", _LINK),
    Metric("vnet_link_receive_multicast_packets_total", "counter",
           "Multicast packets that a link has received; many kinds of link do not count them.", _LINK),
    Metric("vnet_bridge_ports", "gauge", "How many ports a bridge has.", _BRIDGE),
    Metric("vnet_bridge_forwarding_ports", "gauge", "How many ports of a bridge forward.", _BRIDGE),
    Metric("vnet_bridge_learned_addresses", "gauge", "How many MAC addresses a bridge has learned.", _BRIDGE),
    Metric("vnet_network_info", "info", "What a network is.", (*_NETWORK, "kind", "driver", "bridge")),
    Metric("vnet_network_containers", "gauge", "How many containers are on a network.", _NETWORK),
    Metric("vnet_container_info", "info", "How a container is connected, and in which network namespace.",
           (*_CONTAINER, "model", "namespace")),
    Metric("vnet_container_running", "gauge", "Whether a container runs.", _CONTAINER),
    Metric("vnet_container_receive_bytes_total", "counter",
           "Bytes that a container has received by one of its links.", _CONTAINER_LINK),
    Metric("vnet_container_transmit_bytes_total", "counter",
           "Bytes that a container has sent by one of its links.", _CONTAINER_LINK),
    Metric("vnet_container_receive_packets_total", "counter",
           "Packets that a container has received by one of its links.", _CONTAINER_LINK),
    Metric("vnet_container_transmit_packets_total", "counter",
           "Packets that a container has sent by one of its links.", _CONTAINER_LINK),
    Metric("vnet_nat_entries", "gauge", "How many translations and forward filters of a kind there are.",
           (*_NS, "kind")),
    Metric("vnet_nat_connections_total", "counter",
           "Connections that a translation was chosen for, where its rule counts.", _RULE),
    Metric("vnet_filter_packets_total", "counter",
           "Packets that met a forward filter, where its rule counts.",
           _FILTER),
    Metric("vnet_filter_bytes_total", "counter",
           "Bytes that met a forward filter, where its rule counts.", _FILTER),
    Metric("vnet_conntrack_entries", "gauge",
           "How many connections a namespace's conntrack table holds.", _NS),
    Metric("vnet_conntrack_entries_limit", "gauge", "How many each table may hold (nf_conntrack_max).", _NS),
    Metric("vnet_conntrack_found_total", "counter",
           "Packets that met a connection while another one was made.", _NS),
    Metric("vnet_conntrack_invalid_packets_total", "counter", "Packets that fitted no connection.", _NS),
    Metric("vnet_conntrack_inserts_total", "counter",
           "Connections put in by a program, not by traffic.", _NS),
    Metric("vnet_conntrack_insert_failures_total", "counter",
           "Connections that could not be taken up, because another one has their addresses and ports.", _NS),
    Metric("vnet_conntrack_drops_total", "counter",
           "Packets lost because the table was full or memory short.", _NS),
    Metric("vnet_conntrack_early_drops_total", "counter",
           "Connections thrown out of a full table for new ones.", _NS),
    Metric("vnet_conntrack_errors_total", "counter", "Packets that could not be tracked.", _NS),
    Metric("vnet_conntrack_search_restarts_total", "counter", "Searches that had to begin again.", _NS),
    Metric("vnet_conntrack_clashes_resolved_total", "counter", "Races for one place that ended well.", _NS),
    Metric("vnet_conntrack_chain_too_long_total", "counter",
           "Packets lost because too many connections share a hash bucket.", _NS),
    Metric("vnet_fast_path_active", "gauge", "Whether the fast path forwards packets; 0 where it is off."),
    Metric("vnet_fast_path_running", "gauge", "Whether it is turned on, be it paused."),
    Metric("vnet_fast_path_flows", "gauge", "How many flows, a direction each, the fast path holds."),
    Metric("vnet_fast_path_flows_limit", "gauge", "How many flows the fast path can hold."),
    Metric("vnet_fast_path_links", "gauge", "How many links the fast path is attached to."),
    Metric("vnet_fast_path_packets_total", "counter", "Packets that the fast path has forwarded."),
    Metric("vnet_fast_path_kernel_packets_total", "counter",
           "Packets that the fast path saw and left to the kernel.", ("reason",)),
    Metric("vnet_fast_path_link_packets_total", "counter",
           "Packets that came in by a link, by what became of them: fast, or why the kernel got them.",
           ("link", "verdict")),
    Metric("vnet_findings", "gauge", "How many things are wrong, as the dashboard's findings tell.",
           ("kind", "severity")),
    Metric("vnet_problems", "gauge", "How many things could not be read in this scrape.", ("part",)),
    Metric("vnet_left_out", "gauge",
           "How many things of a kind are left out here, to keep the number of series bounded.",
           ("kind",)),
    Metric("vnet_scrape_part_success", "gauge", "Whether a part could be read for this scrape.", ("part",)),
    Metric("vnet_scrape_part_duration_seconds", "gauge",
           "How long reading a part took for this scrape.", ("part",)),
)  # fmt: skip

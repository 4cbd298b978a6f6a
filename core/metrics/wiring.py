"""Links, bridges, networks and containers as metrics."""

from __future__ import annotations

from collections.abc import Mapping

from core.metrics.sheet import Sheet, unique
from core.model import Container, Link, LinkStats, Network
from core.topology import Topology

# Each counter of STATS_DTYPE by the end of its metric's name.
_COUNTERS = {
    "receive_bytes_total": "rx_bytes", "transmit_bytes_total": "tx_bytes",
    "receive_packets_total": "rx_packets", "transmit_packets_total": "tx_packets",
    "receive_errors_total": "rx_errors", "transmit_errors_total": "tx_errors",
    "receive_drops_total": "rx_dropped", "transmit_drops_total": "tx_dropped",
    "receive_multicast_packets_total": "multicast",
}  # fmt: skip
_OF_CONTAINERS = tuple(_COUNTERS)[:4]


class Wiring:
    """Fills a sheet from one look; `labels` are the namespaces' names, by inode."""

    def __init__(self, sheet: Sheet, topology: Topology, stats: LinkStats, labels: Mapping[int, str]) -> None:
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
            self._count("vnet_link", link, labels, tuple(_COUNTERS))

    def _label(self, ns: int) -> str:
        return self._labels.get(ns, f"net:[{ns}]")

    def _count(self, prefix: str, link: Link, labels: tuple[str, ...], wanted: tuple[str, ...]) -> None:
        row = self._counted.get((link.ns, link.ifindex))
        if row is None:
            return
        for name in wanted:
            self._sheet.add(f"{prefix}_{name}", labels, int(row[_COUNTERS[name]]))

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

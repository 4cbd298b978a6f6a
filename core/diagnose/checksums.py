"""Find namespaces that receive packets with wrong checksums behind virtual links.

A sender leaves the checksum to its link if that has checksum offload, and a virtual link only notes that it
is missing. The note is lost where a program copies packets (AF_PACKET), in XDP_REDIRECT and in some tunnels:
then the receiver drops them (the kernel's Documentation/networking/checksum-offloads.rst).
"""

from __future__ import annotations

from collections.abc import Iterator

from core.model import ChecksumErrors, Link, link_ref
from core.model.finding import Finding, Severity
from core.topology import Topology

_VIRTUAL = ("veth", "macvlan", "ipvlan", "vlan", "vxlan", "tun")
_LEAST = 0.01  # of all packets: some arrive damaged anywhere
_MANY = 10
_NAMES = {"tcp": "TCP", "udp": "UDP", "icmp": "ICMP"}


def wrong_checksums(topology: Topology) -> Iterator[Finding]:
    """Find wrong checksums; they are known only if they were read (`vnet-tui doctor`)."""
    for ns, found in topology.snapshot.checksum_errors.items():
        links = _receiving(topology, ns)
        for errors in found if links else ():
            if errors.wrong >= _LEAST * errors.received and (errors.recent or errors.wrong >= _MANY):
                yield _finding(topology, links, errors)


def _receiving(topology: Topology, ns: int) -> list[Link]:
    """Return the virtual links by which a namespace receives; on the host, its VXLANs."""
    net = topology.snapshot.nets.get(ns)
    kinds = ("vxlan",) if ns == topology.host else _VIRTUAL
    links = net.links.values() if net else ()
    return [link for link in links if link.kind in kinds and link.admin_up]


def _finding(topology: Topology, links: list[Link], errors: ChecksumErrors) -> Finding:
    link, place = links[0], topology.label(links[0].ns)
    name, names = _NAMES[errors.l4_proto], " or ".join(one.name for one in links)
    count = f"{errors.wrong:,} of {errors.received:,}"
    severity: Severity = "warn"
    if errors.recent:
        sentence = (
            f"{place} drops {name} packets that arrive by {names}: their checksums are wrong ({count})."
        )
    else:
        sentence = f"{place} has dropped {name} packets with wrong checksums ({count}), at the moment none."
        severity = "info"
    evidence = (
        f"InCsumErrors of {name} in {place}: {errors.wrong} (+{errors.recent} in {errors.seconds:g} s)",
    )
    related = tuple(link_ref(one.key) for one in links[1:])
    short = f"wrong {name} checksums"
    advice = _advice(topology)
    return Finding("checksum", link_ref(link.key), short, sentence, severity, related, advice, evidence)


def _advice(topology: Topology) -> str:
    """Return how senders compute checksums themselves."""
    net = topology.snapshot.nets.get(topology.host)
    tunnel = next((one for one in net.links.values() if one.kind == "vxlan"), None) if net else None
    if tunnel is not None:
        return (
            "checksum offload is lost on the way, as by VXLAN on some hosts; on the host that sends them, "
            f"run: ethtool -K {tunnel.name} tx-checksum-ip-generic off"
        )
    return (
        "checksum offload is lost on the way, by a program that copies packets, or by XDP; at the link that "
        "sends them, run: ethtool -K LINK tx off"
    )

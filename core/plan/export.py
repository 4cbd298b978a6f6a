"""Write the networks of this host as a TOML file for `vnet-tui apply`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from core.plan.overlay import remotes_of, tunnel_of
from core.plan.tags import VnetNetwork, vnet_state
from core.topology import Topology

# The label of Docker networks that vnet created.
DOCKER_LABEL = ("vnet", "1")


def export(topology: Topology, etcd: Mapping[str, str] = MappingProxyType({})) -> str:
    """Return the file for vnet's networks on this host.

    `difference` finds nothing to do for it. `etcd` are the URLs of overlays that have one, by name.
    """
    existing = vnet_state(topology.snapshot, topology.host)
    parts = []
    for network in sorted(existing.networks.values(), key=lambda one: one.name):
        values: dict[str, Any] = {
            "kind": network.kind, "subnets": network.subnets, "gateways": network.gateways,
            "mtu": network.mtu, "bridge": network.bridge, "uplink": network.uplink,
            "nat66": network.nat66, "vlan_filtering": _filters(network.bridge, topology),
            "datapath": network.datapath,
            "etcd": etcd.get(network.name, "") if network.etcd else "",
        } | tunnel_values(network, topology)  # fmt: skip
        parts.append(_table(f"[network.{_key(network.name)}]", values))
    parts += _docker_networks(topology)
    for name, ns in sorted(existing.containers.items()):
        parts.append(_table(f"[container.{_key(name)}]", _container(name, ns, topology)))
    for member in existing.members:
        plain = tuple(one.partition("/")[0] for one in member.addresses)
        container = topology.containers.get(member.container)
        label = f"{container.runtime}:{container.name}" if container else member.container
        values = {"container": label, "network": member.network, "addresses": plain, "link": member.link,
                  "vlan": member.vlan}  # fmt: skip
        parts.append(_table("[[attach]]", values))
    for port in {one.port_id: one for one in existing.ports}.values():
        container = topology.containers.get(port.container)
        label = f"{container.runtime}:{container.name}" if container else port.container
        values = {
            "container": label, "host_ports": port.host_ports, "container_ports": port.container_ports,
            "l4_proto": port.l4_proto, "host_ip": port.host_ip,
        }  # fmt: skip
        parts.append(_table("[[publish]]", values))
    pairs = [list(names) for names in sorted(existing.joined)]
    return "\n".join([*([f"joined = {toml_value(pairs)}\n"] if pairs else []), *parts])


def tunnel_values(network: VnetNetwork, topology: Topology) -> dict[str, Any]:
    """Return the keys that only an overlay network has."""
    tunnel = tunnel_of(network, topology) if network.kind == "overlay" else None
    if tunnel is None:
        return {}
    if network.etcd:  # hosts come from there
        return {"vni": network.vni, "local": tunnel.details.get("local", ""), "evpn": network.evpn}
    values = {
        "vni": network.vni, "local": tunnel.details.get("local", ""), "ranges": network.ranges,
        "remotes": remotes_of(tunnel, topology.snapshot.nets[tunnel.ns]), "evpn": network.evpn,
    }  # fmt: skip
    group = topology.snapshot.frr.config.group if network.evpn else None
    if group:
        values |= {"peers": group.peers, "asn": group.asn, "reflector": group.reflector}
    return values


def _filters(bridge: str, topology: Topology) -> bool:
    """Return whether a bridge of the host is VLAN-aware."""
    net = topology.snapshot.nets[topology.host]
    return any(one.bridge.vlan_filtering for one in net.links.values() if one.name == bridge and one.bridge)


def _container(name: str, ns: int, topology: Topology) -> dict[str, Any]:
    if ns == topology.host:
        return {"model": "open"}
    space = topology.snapshot.namespaces.get(ns)
    first = space.names[0] if space and space.names else name
    return {"model": "closed"} if first == name else {"model": "joined", "joined_with": f"netns:{first}"}


def _docker_networks(topology: Topology) -> Iterator[str]:
    engine = topology.snapshot.engines.get("docker")
    for network in engine.networks if engine else ():
        if network.labels.get(DOCKER_LABEL[0]) == DOCKER_LABEL[1]:
            values = {
                "engine": "docker", "kind": "internal" if network.internal else "nat",
                "subnets": network.subnets, "gateways": network.gateways,
            }  # fmt: skip
            yield _table(f"[network.{_key(network.name)}]", values)


def _table(header: str, values: Mapping[str, Any]) -> str:
    """Return one table without empty and false values."""
    lines = [f"{key} = {toml_value(value)}" for key, value in values.items() if value]
    return "\n".join([header, *lines, ""])


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else toml_value(name)


def toml_value(value: Any) -> str:
    """Write a value as TOML.

    It is written like JSON, but without surrogate escapes (JSON's for emoji), and with DEL escaped.
    """
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")

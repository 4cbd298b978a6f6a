"""Plans that have the Docker Engine make, remove, attach and detach."""

from __future__ import annotations

import ipaddress
from dataclasses import replace

from core.model import Container, Endpoint, Network
from core.operations import DockerConnect, DockerCreateNetwork, DockerDisconnect, DockerRemoveNetwork
from core.operations.docker import LABELS
from core.plan import validate
from core.plan.builder import CannotPlan, PlanBuilder, require, when
from core.plan.requests import Attach, CreateNetwork, Detach
from core.text import safe

# The networks that Docker makes itself.
_BUILT_IN = ("bridge", "host", "none")


def find_docker_network(name: str, draft: PlanBuilder) -> Network | None:
    """Docker's network of that name, None where there is none."""
    engine = draft.snapshot.engines.get("docker")
    return next((one for one in engine.networks if one.name == name), None) if engine else None


def create_docker_network(request: CreateNetwork, draft: PlanBuilder) -> str:
    """Have Docker make a bridge network; it chooses what the request leaves open."""
    engine = draft.snapshot.engines.get("docker")
    unfit = request.kind not in ("nat", "internal") or request.nat66 or request.uplink
    require(
        when(engine is None or engine.state != "ok", "the Docker Engine does not answer: is it running?"),
        when(find_docker_network(request.name, draft), f"Docker has a network {request.name} already"),
        when(request.name in draft.ours.networks, f"there is a network {request.name} of vnet's already"),
        when(unfit, "Docker makes NAT and internal networks only: choose the engine vnet"),
        when(request.vlan_filtering, "Docker makes no VLAN-aware bridges: choose the engine vnet"),
        *(validate.subnet(one, draft.prefixes) for one in request.subnets),
        *(validate.address(one, request.subnets) for one in request.gateways),
        when(request.bridge, validate.name(request.bridge, "bridge's name")),
        when(request.bridge in draft.host_names, f"there is a link {request.bridge} already"),
        when(request.mtu, validate.mtu(request.mtu, request.ipv6)),
    )
    given = {":" in one: one for one in request.gateways}
    draft.do(
        DockerCreateNetwork(
            request.name,
            request.subnets,
            tuple(given.get(":" in one, "") for one in request.subnets),
            internal=request.kind == "internal",
            ipv6=request.ipv6 or any(":" in one for one in request.subnets),
            mtu=request.mtu,
            bridge=request.bridge,
        )
    )
    return f"have Docker make the {request.kind} network {request.name}"


def remove_docker_network(network: Network, draft: PlanBuilder) -> str:
    """Have Docker remove a network, its containers detached before."""
    require(
        when(network.name in _BUILT_IN, f"Docker's own network {network.name} cannot be removed"),
        when(
            network.driver != "bridge",
            f"{safe(network.name)} has the driver {safe(network.driver)}: bridge only",
        ),
    )
    for container in _attached(network, draft):
        draft.hit(f"{safe(container.name)} is detached from {safe(network.name)}")
        _disconnect(container, network, draft)
    draft.do(DockerRemoveNetwork(as_operation(network)))
    return f"have Docker remove the network {safe(network.name)}"


def as_operation(network: Network) -> DockerCreateNetwork:
    """The operation that makes a Docker network anew as it is."""
    gateways = {":" in one: one for one in network.gateways}
    return DockerCreateNetwork(
        network.name,
        network.subnets,
        tuple(gateways.get(":" in one, "") for one in network.subnets),
        network.internal,
        any(":" in one for one in network.subnets),
        driver_options=tuple(network.options.items()),
        labels=tuple(network.labels.items()),
        attachable=network.attachable,
        ipv4=network.has_ipv4,
        ip_ranges=network.ip_ranges,
        reserved=network.reserved,
        ipam=network.ipam,
        ipam_options=tuple(network.ipam_options.items()),
    )


def _attached(network: Network, draft: PlanBuilder) -> list[Container]:
    return [
        one
        for one in draft.snapshot.containers()
        if one.runtime == "docker" and any(end.network == network.name for end in one.endpoints)
    ]


def connection(container: Container, network: Network) -> DockerConnect:
    """The operation that attaches a container to a Docker network as it is now."""
    end = _end(container, network)
    # Docker takes chosen addresses only on networks with a subnet of the person's own.
    chosen = network.name not in _BUILT_IN
    ipv4, ipv6 = (one.partition("/")[0] if chosen else "" for one in (end.ipv4, end.ipv6))
    return DockerConnect(
        network.name,
        container.name,
        # One that does not run has no addresses now, but those that somebody chose.
        ipv4 or next((one for one in end.chosen if ":" not in one), ""),
        ipv6 or next((one for one in end.chosen if ":" in one), ""),
        end.aliases,
        insist=False,
        chosen=end.chosen,
        link_local=end.link_local,
        links=end.links,
        driver_options=tuple(end.driver_options.items()),
        gateway_priority=end.gateway_priority,
    )


def _derived_mac(end: Endpoint) -> str:
    """The MAC address that Docker before 28 makes of an IPv4 address."""
    address = ipaddress.ip_interface(end.ipv4 or "0.0.0.0").ip.packed
    return b"\x02\x42".hex(":") + ":" + address.hex(":")


def _disconnect(container: Container, network: Network, draft: PlanBuilder) -> None:
    """Detach it, telling where an undo cannot bring its address back: Docker lets nobody choose addresses on
    its own networks, nor on those whose subnet it chose itself (with the gateway, which others leave out)."""
    key, value = next(iter(LABELS.items()))
    end = _end(container, network)
    open_ones = {one.partition("/")[0] for one in (end.ipv4, end.ipv6) if one} - set(end.chosen)
    by_docker = network.name in _BUILT_IN or (network.gateways and network.labels.get(key) != value)
    if open_ones and by_docker:
        draft.warn(
            f"taken back, {safe(container.name)} may have another address on {safe(network.name)}: where "
            "Docker chose the network's subnet itself, it lets nobody choose addresses"
        )
    if end.mac and end.mac != _derived_mac(end) and not _restores_macs(draft):
        draft.warn(
            f"taken back, {safe(container.name)} has another MAC address on {safe(network.name)}, for Docker "
            "lets nobody choose one there"
        )
    draft.do(DockerDisconnect(connection(container, network)))


def _restores_macs(draft: PlanBuilder) -> bool:
    """Docker before 25 had one chosen MAC address for a container, whenever it came to that network."""
    engine = draft.snapshot.engines.get("docker")
    major = engine.version.partition(".")[0] if engine else ""
    return major.isdigit() and int(major) < 25


def _end(container: Container, network: Network) -> Endpoint:
    return next(end for end in container.endpoints if end.network == network.name)


def attach_by_docker(
    request: Attach, network: Network, draft: PlanBuilder, like: Network | None = None
) -> str:
    """Have Docker attach one of its containers to one of its networks; `like` it is attached to another, as
    far as that can be."""
    container = _docker_container(request.container, network, draft)
    require(
        when(
            container in _attached(network, draft), f"{container.name} is attached to {network.name} already"
        ),
        when(request.link, "Docker names the link itself: give no link name"),
        *(validate.address(one, network.subnets, draft.used) for one in request.addresses),
    )
    given = {":" in one: str(ipaddress.ip_address(one)) for one in request.addresses}
    asked = DockerConnect(network.name, container.name, given.get(False, ""), given.get(True, ""))
    draft.do(_alike(asked, _end(container, like), network, draft) if like else asked)
    return f"have Docker attach {safe(container.name)} to {safe(network.name)}"


def _alike(asked: DockerConnect, end: Endpoint, network: Network, draft: PlanBuilder) -> DockerConnect:
    """Keep of an attachment what means the same on another network, and say what is not kept."""
    name, there, to = safe(asked.container), safe(end.network), safe(network.name)
    aliases = end.aliases if network.name not in _BUILT_IN else ()
    if end.aliases and not aliases:
        draft.warn(f"{name} has no other names on {to}, where Docker has no DNS: {_words(end.aliases)}")
    lost = {
        "address": () if asked.ipv4 or asked.ipv6 else end.chosen,
        "MAC address": (end.mac,) if end.mac_chosen else (),
        "link-local addresses": end.link_local,
        "links": end.links,
        "driver options": tuple(f"{key}={value}" for key, value in end.driver_options.items()),
    }
    for what, values in lost.items():
        if values:
            draft.warn(f"{name} does not keep on {to} the {what} chosen on {there}: {_words(values)}")
    return replace(asked, aliases=aliases, gateway_priority=end.gateway_priority)


def _words(values: tuple[str, ...]) -> str:
    return ", ".join(map(safe, values))


def detach_by_docker(request: Detach, network: Network, draft: PlanBuilder) -> str:
    """Have Docker detach one of its containers from one of its networks."""
    container = _docker_container(request.container, network, draft)
    require(
        when(
            container not in _attached(network, draft),
            f"{safe(container.name)} is not attached to {safe(network.name)}",
        )
    )
    _disconnect(container, network, draft)
    return f"have Docker detach {safe(container.name)} from {safe(network.name)}"


def _docker_container(text: str, network: Network, draft: PlanBuilder) -> Container:
    container = draft.container(text)
    if container.runtime != "docker":
        raise CannotPlan(
            [f"{safe(container.name)} is not Docker's: only Docker's containers go on {safe(network.name)}"]
        )
    return container

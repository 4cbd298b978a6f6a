"""Plan changes of Docker networks, made by the Docker Engine."""

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


def find_docker_network(name: str, builder: PlanBuilder) -> Network | None:
    """Find a Docker network by name."""
    engine = builder.snapshot.engines.get("docker")
    return next((one for one in engine.networks if one.name == name), None) if engine else None


def create_docker_network(request: CreateNetwork, builder: PlanBuilder) -> str:
    """Plan a Docker bridge network; Docker chooses what the request leaves open."""
    engine = builder.snapshot.engines.get("docker")
    unsupported = request.kind not in ("nat", "internal") or request.nat66 or request.uplink
    require(
        when(
            engine is None or engine.state != "ok",
            "the Docker Engine doesn't answer. Try: systemctl start docker",
        ),
        when(find_docker_network(request.name, builder), f"Docker already has a network {request.name}"),
        when(request.name in builder.vnet.networks, f"vnet-tui already has a network {request.name}"),
        when(unsupported, "Docker only makes NAT and internal networks. Try: the engine vnet"),
        when(request.vlan_filtering, "Docker doesn't make VLAN-aware bridges. Try: the engine vnet"),
        *(validate.subnet(one, builder.prefixes) for one in request.subnets),
        *(validate.address(one, request.subnets) for one in request.gateways),
        when(request.bridge, validate.name(request.bridge, "bridge's name")),
        when(request.bridge in builder.host_names, f"there is already a link {request.bridge}"),
        when(request.mtu, validate.mtu(request.mtu, request.ipv6)),
    )
    given = {":" in one: one for one in request.gateways}
    builder.add(
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
    return f"create the Docker network {request.name} ({request.kind})"


def remove_docker_network(network: Network, builder: PlanBuilder) -> str:
    """Plan to remove a Docker network, after its containers are detached."""
    require(
        when(network.name in _BUILT_IN, "it is one of Docker's built-in networks"),
        when(network.driver != "bridge", f"its driver is {safe(network.driver)}, not bridge"),
    )
    for container in _attached(network, builder):
        builder.add_side_effect(f"{safe(container.name)} is detached from {safe(network.name)}")
        _disconnect(container, network, builder)
    builder.add(DockerRemoveNetwork(as_operation(network)))
    return f"remove the Docker network {safe(network.name)}"


def as_operation(network: Network) -> DockerCreateNetwork:
    """Return the operation that re-creates a Docker network as it is."""
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


def _attached(network: Network, builder: PlanBuilder) -> list[Container]:
    return [
        one
        for one in builder.snapshot.containers()
        if one.runtime == "docker" and any(end.network == network.name for end in one.endpoints)
    ]


def connection(container: Container, network: Network) -> DockerConnect:
    """Return the operation that re-attaches a container to a Docker network.

    It restores the current settings.
    """
    end = _end(container, network)
    # Docker accepts chosen addresses only on networks with a subnet that the user chose.
    chosen = network.name not in _BUILT_IN
    ipv4, ipv6 = (one.partition("/")[0] if chosen else "" for one in (end.ipv4, end.ipv6))
    return DockerConnect(
        network.name,
        container.name,
        # A stopped container has no addresses, except those that were chosen.
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
    """Return the MAC address that Docker before 28 derives from the IPv4 address."""
    address = ipaddress.ip_interface(end.ipv4 or "0.0.0.0").ip.packed
    return b"\x02\x42".hex(":") + ":" + address.hex(":")


def _disconnect(container: Container, network: Network, builder: PlanBuilder) -> None:
    """Detach a container; warn if an undo can't restore its address or MAC address.

    Docker doesn't accept addresses on its built-in networks, nor where it chose the subnet itself (then it
    reports a gateway).
    """
    key, value = next(iter(LABELS.items()))
    end = _end(container, network)
    assigned = {one.partition("/")[0] for one in (end.ipv4, end.ipv6) if one} - set(end.chosen)
    by_docker = network.name in _BUILT_IN or (network.gateways and network.labels.get(key) != value)
    if assigned and by_docker:
        builder.warn(
            f"after an undo {safe(container.name)} may have another address on {safe(network.name)}: Docker "
            "chose the network's subnet, so it doesn't accept addresses there"
        )
    if end.mac and end.mac != _derived_mac(end) and not _restores_macs(builder):
        builder.warn(
            f"after an undo {safe(container.name)} has another MAC address on {safe(network.name)}: Docker "
            "doesn't accept one there"
        )
    builder.add(DockerDisconnect(connection(container, network)))


def _restores_macs(builder: PlanBuilder) -> bool:
    """Return whether Docker restores a chosen MAC address: versions before 25 do.

    They keep one for each container.
    """
    engine = builder.snapshot.engines.get("docker")
    major = engine.version.partition(".")[0] if engine else ""
    return major.isdigit() and int(major) < 25


def _end(container: Container, network: Network) -> Endpoint:
    return next(end for end in container.endpoints if end.network == network.name)


def attach_by_docker(
    request: Attach, network: Network, builder: PlanBuilder, like: Network | None = None
) -> str:
    """Plan to attach a Docker container to a Docker network.

    It keeps the settings that it has on the network `like` as far as possible.
    """
    container = _docker_container(request.container, network, builder)
    require(
        when(
            container in _attached(network, builder),
            f"{container.name} is already attached to {network.name}",
        ),
        when(request.link, "Docker chooses the link name. Try: no link name"),
        *(validate.address(one, network.subnets, builder.used) for one in request.addresses),
    )
    given = {":" in one: str(ipaddress.ip_address(one)) for one in request.addresses}
    connect = DockerConnect(network.name, container.name, given.get(False, ""), given.get(True, ""))
    builder.add(_copy_settings(connect, _end(container, like), network, builder) if like else connect)
    return f"attach {safe(container.name)} to {safe(network.name)}"


def _copy_settings(
    connect: DockerConnect, end: Endpoint, network: Network, builder: PlanBuilder
) -> DockerConnect:
    """Copy an attachment's settings to another network.

    Warns about settings that aren't valid there.
    """
    name, source, to = safe(connect.container), safe(end.network), safe(network.name)
    aliases = end.aliases if network.name not in _BUILT_IN else ()
    if end.aliases and not aliases:
        builder.warn(
            f"{name} loses its DNS names on {to}, where Docker has no DNS: {_join_values(end.aliases)}"
        )
    lost = {
        "address": () if connect.ipv4 or connect.ipv6 else end.chosen,
        "MAC address": (end.mac,) if end.mac_chosen else (),
        "link-local addresses": end.link_local,
        "links": end.links,
        "driver options": tuple(f"{key}={value}" for key, value in end.driver_options.items()),
    }
    for what, values in lost.items():
        if values:
            builder.warn(f"{name} loses the {what} chosen on {source}: {_join_values(values)}")
    return replace(connect, aliases=aliases, gateway_priority=end.gateway_priority)


def _join_values(values: tuple[str, ...]) -> str:
    return ", ".join(map(safe, values))


def detach_by_docker(request: Detach, network: Network, builder: PlanBuilder) -> str:
    """Plan to detach a Docker container from a Docker network."""
    container = _docker_container(request.container, network, builder)
    require(
        when(
            container not in _attached(network, builder),
            f"{safe(container.name)} isn't attached to {safe(network.name)}",
        )
    )
    _disconnect(container, network, builder)
    return f"detach {safe(container.name)} from {safe(network.name)}"


def _docker_container(text: str, network: Network, builder: PlanBuilder) -> Container:
    container = builder.container(text)
    if container.runtime != "docker":
        name = safe(container.name)
        raise CannotPlan([f"{name} isn't a Docker container, and a Docker network only takes those"])
    return container

"""Decode responses of a container engine's API into the model.

That is Docker Engine API v1.24 or later, or podman's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from core.codec import decoder, plain
from core.collect.processes import namespaces_of
from core.model import Container, Endpoint, Engine, Network, Problem, PublishedPort
from core.text import is_address, is_interface, is_prefix

Answer = Mapping[str, Any]

# The unspecified addresses, which mean every address of the host.
_UNSPECIFIED = ("0.0.0.0", "::")
_BRIDGE_NAME = "com.docker.network.bridge.name"
_GATEWAY_MODE = "com.docker.network.bridge.gateway_mode_"
_MASQUERADE = "com.docker.network.bridge.enable_ip_masquerade"
_TRUSTED = "com.docker.network.bridge.trusted_host_interfaces"
_MTU = "com.docker.network.driver.mtu"


def container_of(runtime: str, listed: Answer, inspected: Answer | None) -> Container:
    """Decode one container.

    Its parts are its entry in `GET /containers/json` and, if it was inspected, `GET /containers/ID/json`. A
    malformed response raises any exception.
    """
    state = (inspected or {}).get("State") or {}
    pid = int(state.get("Pid") or 0) or None
    endpoints = tuple(_endpoints(listed, inspected or {}))
    mode = _network_mode(listed, inspected, endpoints)
    joined = mode.startswith("container:")
    return Container(
        runtime,
        str(listed["Id"]),
        _name(listed),
        # The list may be older than the container's own entry.
        state=str(state.get("Status") or listed["State"]),
        image=str(listed.get("Image") or ""),
        pid=pid,
        network_mode=mode,
        namespaces=namespaces_of(pid) if pid else {},
        endpoints=() if joined else endpoints,
        ports=() if joined else tuple(sorted(_ports(listed, runtime), key=_by_number)),
        labels=string_map(listed.get("Labels")),
        created=datetime.fromtimestamp(listed["Created"], UTC).isoformat(),
        command=str(listed.get("Command") or ""),
    )


def network_of(engine: str, ns: int, answer: Answer) -> Network:
    """Decode one network from Docker's `GET /networks`.

    `ns` is the namespace of the engine's bridges.
    """
    options = string_map(answer.get("Options"))
    ipam = answer.get("IPAM") or {}
    pools = ipam.get("Config") or []
    driver, network_id = str(answer["Driver"]), str(answer["Id"])
    default = f"br-{network_id[:12]}" if driver == "bridge" else ""
    return Network(
        engine,
        network_id,
        str(answer["Name"]),
        driver=driver,
        ns=ns,
        bridge=options.get(_BRIDGE_NAME) or default,
        subnets=tuple(pool["Subnet"] for pool in pools if pool.get("Subnet")),
        gateways=tuple(pool["Gateway"].partition("/")[0] for pool in pools if pool.get("Gateway")),
        mtu=int(options.get(_MTU) or 0),
        internal=bool(answer.get("Internal")),
        labels=string_map(answer.get("Labels")),
        parent=options.get("parent", ""),
        options=options,
        attachable=bool(answer.get("Attachable")),
        has_ipv4=bool(answer.get("EnableIPv4", True)),
        ip_ranges=tuple(pool["IPRange"] for pool in pools if pool.get("IPRange")),
        reserved=tuple(_reserved(pools)),
        ipam="" if ipam.get("Driver") in (None, "", "default") else str(ipam["Driver"]),
        ipam_options=string_map(ipam.get("Options")),
        gateway_mode=_gateway_modes(answer, options) if (engine, driver) == ("docker", "bridge") else {},
        masquerade=options.get(_MASQUERADE, "true").lower() not in ("false", "0", "f"),
        trusted_links=tuple(filter(None, options.get(_TRUSTED, "").split(":"))),
    )


def libpod_network_of(ns: int, answer: Answer) -> Network:
    """Decode one network from podman's `GET /libpod/networks/json`."""
    subnets = answer.get("subnets") or []
    options = string_map(answer.get("options"))
    link, driver = str(answer.get("network_interface") or ""), str(answer["driver"])
    return Network(
        "podman",
        str(answer["id"]),
        str(answer["name"]),
        driver=driver,
        ns=ns,
        bridge=link if driver == "bridge" else "",
        subnets=tuple(subnet["subnet"] for subnet in subnets),
        gateways=tuple(subnet["gateway"] for subnet in subnets if subnet.get("gateway")),
        mtu=int(options.get("mtu") or 0),
        internal=bool(answer.get("internal")),
        labels=string_map(answer.get("labels")),
        parent=link if driver != "bridge" else "",
    )


def _reserved(pools: Sequence[Answer]) -> Iterator[str]:
    for pool in pools:
        yield from (
            f"{name}={address}" for name, address in string_map(pool.get("AuxiliaryAddresses")).items()
        )


def _gateway_modes(answer: Answer, options: Mapping[str, str]) -> dict[str, str]:
    """Return the gateway mode of each address family of a Docker bridge.

    The default is "nat".
    """
    subnets = [str(pool.get("Subnet") or "") for pool in (answer.get("IPAM") or {}).get("Config") or []]
    families = {"ipv4": any("." in one for one in subnets), "ipv6": any(":" in one for one in subnets)}
    return {name: options.get(_GATEWAY_MODE + name) or "nat" for name, has in families.items() if has}


def string_map(answer: Answer | None) -> dict[str, str]:
    """Convert keys and values to strings; null becomes an empty mapping."""
    return {str(key): str(value) for key, value in (answer or {}).items()}


def _name(listed: Answer) -> str:
    """Return the container's own name.

    The others are aliases made by links of other containers.
    """
    names = [str(name) for name in listed.get("Names") or ()]
    return min(names, key=lambda name: name.count("/"), default=str(listed["Id"])[:12]).removeprefix("/")


def _network_mode(listed: Answer, inspected: Answer | None, endpoints: tuple[Endpoint, ...]) -> str:
    """Return the network mode in the same words for all engines.

    podman says "bridge" for any network, old versions of Docker say "default".
    """
    mode = ((inspected or listed).get("HostConfig") or {}).get("NetworkMode") or ""
    names = [end.network for end in endpoints]
    return names[0] if names and mode in ("", "default", "bridge") and mode not in names else str(mode)


def _endpoints(listed: Answer, inspected: Answer) -> Iterator[Endpoint]:
    """Decode a container's attachments.

    Only an inspected container has the options that they were made with.
    """
    inside = (inspected.get("NetworkSettings") or {}).get("Networks") or {}
    networks = (listed.get("NetworkSettings") or {}).get("Networks") or {}
    asked_mac = str((inspected.get("Config") or {}).get("MacAddress") or "")
    for name, end in networks.items():
        mac, asked = str(end.get("MacAddress") or ""), inside.get(name) or {}
        addresses = asked.get("IPAMConfig") or {}
        chosen = (addresses.get("IPv4Address"), addresses.get("IPv6Address"))
        yield Endpoint(
            str(name),
            ipv4=_address(end, "IPAddress", "IPPrefixLen"),
            ipv6=_address(end, "GlobalIPv6Address", "GlobalIPv6PrefixLen"),
            gateway=str(end.get("Gateway") or ""),
            mac=mac,
            # Old versions of Docker, and podman, list the id among the aliases.
            aliases=tuple(one for one in _list(asked.get("Aliases")) if one != str(listed["Id"])[:12]),
            chosen=tuple(str(one) for one in chosen if one),
            mac_chosen=bool(mac) and mac == asked_mac,
            link_local=_list(addresses.get("LinkLocalIPs")),
            links=_list(asked.get("Links")),
            driver_options=string_map(asked.get("DriverOpts")),
            gateway_priority=int(asked.get("GwPriority") or 0),
        )


def _list(items: Sequence[Any] | None) -> tuple[str, ...]:
    return tuple(str(item) for item in items or ())


def _address(end: Answer, address: str, prefix: str) -> str:
    return f"{end[address]}/{end.get(prefix) or 0}" if end.get(address) else ""


def _ports(listed: Answer, runtime: str) -> Iterator[PublishedPort]:
    """Decode published ports, not those that are only exposed.

    A port of both IPv4 and IPv6 is one.
    """
    found: dict[tuple[str, int, int], dict[str, None]] = {}
    for port in listed.get("Ports") or ():
        if port.get("PublicPort"):
            key = (str(port["Type"]), int(port["PublicPort"]), int(port["PrivatePort"]))
            found.setdefault(key, {})[str(port.get("IP") or "")] = None
    for (l4_proto, outside, inside), addresses in found.items():
        # podman says "0.0.0.0" for both families.
        is_every = runtime != "docker" or set(_UNSPECIFIED) <= addresses.keys()
        for address in dict.fromkeys("" if is_every and one in _UNSPECIFIED else one for one in addresses):
            yield PublishedPort(l4_proto, address, outside, inside)


def _by_number(port: PublishedPort) -> tuple[int, str, str, int]:
    """Sort key: Docker lists ports in a different order each time."""
    return port.host_port, port.l4_proto, port.host_ip, port.container_port


def validated(engine: Engine) -> Engine:
    """Return the engine without invalid addresses and subnets.

    Each of them becomes a problem. Raises WrongValue for values that the model can't hold.
    """
    decoder(Engine)(plain(engine))
    found: list[Problem] = []
    networks = tuple(_validated_network(engine.name, one, found) for one in engine.networks)
    containers = tuple(_validated_container(engine.name, one, found) for one in engine.containers)
    if not found:
        return engine
    return replace(
        engine, networks=networks, containers=containers, problems=(*engine.problems, *dict.fromkeys(found))
    )


def _validated_network(engine: str, network: Network, found: list[Problem]) -> Network:
    subnets = tuple(_valid(is_prefix, network.subnets))
    gateways = tuple(_valid(is_address, network.gateways))
    wrong = [one for one in (*network.subnets, *network.gateways) if one not in (*subnets, *gateways)]
    if not wrong:
        return network
    found.append(_problem(engine, f"network {network.name}", wrong[0]))
    return replace(network, subnets=subnets, gateways=gateways)


def _validated_container(engine: str, container: Container, found: list[Problem]) -> Container:
    ends = tuple(map(_validated_endpoint, container.endpoints))
    ports = tuple(port for port in container.ports if not port.host_ip or is_address(port.host_ip))
    if (ends, ports) == (container.endpoints, container.ports):
        return container
    whose = f"container {container.name}"
    found += [
        _problem(engine, whose, given)
        for end, fit in zip(container.endpoints, ends, strict=True)
        for given, kept in ((end.ipv4, fit.ipv4), (end.ipv6, fit.ipv6), (end.gateway, fit.gateway))
        if given != kept
    ]
    found += [_problem(engine, whose, port.host_ip) for port in container.ports if port not in ports]
    return replace(container, endpoints=ends, ports=ports)


def _validated_endpoint(end: Endpoint) -> Endpoint:
    kept = {name: value for name, value in (("ipv4", end.ipv4), ("ipv6", end.ipv6)) if is_interface(value)}
    gateway = end.gateway if is_address(end.gateway) else ""
    return replace(end, ipv4=kept.get("ipv4", ""), ipv6=kept.get("ipv6", ""), gateway=gateway)


def _problem(engine: str, whose: str, given: str) -> Problem:
    what, why = f"can't use an address of {whose}", f"{engine} reports {given[:60]!r}"
    return Problem(engine, what[:200], why, f"{engine} inspect")


def _valid(is_valid: Callable[[str], bool], texts: tuple[str, ...]) -> Iterator[str]:
    return (text for text in texts if is_valid(text))

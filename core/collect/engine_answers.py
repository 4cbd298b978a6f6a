"""From what a container engine's API answers (Docker Engine API v1.24 on, podman's likewise) to the model."""

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

# Addresses that mean "every address of the host".
_EVERY = ("0.0.0.0", "::")
_BRIDGE_NAME = "com.docker.network.bridge.name"
_GATEWAY_MODE = "com.docker.network.bridge.gateway_mode_"
_MASQUERADE = "com.docker.network.bridge.enable_ip_masquerade"
_TRUSTED = "com.docker.network.bridge.trusted_host_interfaces"
_MTU = "com.docker.network.driver.mtu"


def container_of(runtime: str, listed: Answer, inspected: Answer | None) -> Container:
    """One container from its entry in `GET /containers/json` and, where it has a process, from
    `GET /containers/ID/json`. Raises what comes of a malformed answer."""
    state = (inspected or {}).get("State") or {}
    pid = int(state.get("Pid") or 0) or None
    endpoints = tuple(_endpoints(listed, inspected or {}))
    mode = _network_mode(listed, inspected, endpoints)
    joined = mode.startswith("container:")
    return Container(
        runtime,
        str(listed["Id"]),
        _name(listed),
        # A list may be a moment behind what the engine says of the container itself.
        state=str(state.get("Status") or listed["State"]),
        image=str(listed.get("Image") or ""),
        pid=pid,
        network_mode=mode,
        namespaces=namespaces_of(pid) if pid else {},
        endpoints=() if joined else endpoints,
        ports=() if joined else tuple(sorted(_ports(listed, runtime), key=_by_number)),
        labels=texts(listed.get("Labels")),
        created=datetime.fromtimestamp(listed["Created"], UTC).isoformat(),
        command=str(listed.get("Command") or ""),
    )


def network_of(engine: str, ns: int, told: Answer) -> Network:
    """One network from its entry in Docker's `GET /networks`; `ns` is where the engine makes its bridges."""
    options = texts(told.get("Options"))
    ipam = told.get("IPAM") or {}
    pools = ipam.get("Config") or []
    driver, network_id = str(told["Driver"]), str(told["Id"])
    default = f"br-{network_id[:12]}" if driver == "bridge" else ""
    return Network(
        engine,
        network_id,
        str(told["Name"]),
        driver=driver,
        ns=ns,
        bridge=options.get(_BRIDGE_NAME) or default,
        subnets=tuple(pool["Subnet"] for pool in pools if pool.get("Subnet")),
        gateways=tuple(pool["Gateway"].partition("/")[0] for pool in pools if pool.get("Gateway")),
        mtu=int(options.get(_MTU) or 0),
        internal=bool(told.get("Internal")),
        labels=texts(told.get("Labels")),
        parent=options.get("parent", ""),
        options=options,
        attachable=bool(told.get("Attachable")),
        has_ipv4=bool(told.get("EnableIPv4", True)),
        ip_ranges=tuple(pool["IPRange"] for pool in pools if pool.get("IPRange")),
        reserved=tuple(_reserved(pools)),
        ipam="" if ipam.get("Driver") in (None, "", "default") else str(ipam["Driver"]),
        ipam_options=texts(ipam.get("Options")),
        gateway_mode=_gateway_modes(told, options) if (engine, driver) == ("docker", "bridge") else {},
        masquerade=options.get(_MASQUERADE, "true").lower() not in ("false", "0", "f"),
        trusted_links=tuple(filter(None, options.get(_TRUSTED, "").split(":"))),
    )


def _reserved(pools: Sequence[Answer]) -> Iterator[str]:
    for pool in pools:
        yield from (f"{name}={address}" for name, address in texts(pool.get("AuxiliaryAddresses")).items())


def _gateway_modes(told: Answer, options: Mapping[str, str]) -> dict[str, str]:
    """The mode of each family that a bridge of Docker's has; without an option it is "nat"."""
    subnets = [str(pool.get("Subnet") or "") for pool in (told.get("IPAM") or {}).get("Config") or []]
    families = {"ipv4": any("." in one for one in subnets), "ipv6": any(":" in one for one in subnets)}
    return {name: options.get(_GATEWAY_MODE + name) or "nat" for name, has in families.items() if has}


def texts(told: Answer | None) -> dict[str, str]:
    """A mapping from text to text, empty for null."""
    return {str(key): str(value) for key, value in (told or {}).items()}


def _name(listed: Answer) -> str:
    """Its own name; the others in the list are aliases that other containers' links gave it."""
    names = [str(name) for name in listed.get("Names") or ()]
    return min(names, key=lambda name: name.count("/"), default=str(listed["Id"])[:12]).removeprefix("/")


def _network_mode(listed: Answer, inspected: Answer | None, endpoints: tuple[Endpoint, ...]) -> str:
    """The mode, worded alike for all engines: podman says "bridge" for any network, old Docker "default"."""
    told = ((inspected or listed).get("HostConfig") or {}).get("NetworkMode") or ""
    names = [end.network for end in endpoints]
    return names[0] if names and told in ("", "default", "bridge") and told not in names else str(told)


def _endpoints(listed: Answer, inspected: Answer) -> Iterator[Endpoint]:
    """Its attachments; what was asked for when they were made is in the container's own answer alone."""
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
            # Old Docker counts its id among its names, podman too.
            aliases=tuple(one for one in _list(asked.get("Aliases")) if one != str(listed["Id"])[:12]),
            chosen=tuple(str(one) for one in chosen if one),
            mac_chosen=bool(mac) and mac == asked_mac,
            link_local=_list(addresses.get("LinkLocalIPs")),
            links=_list(asked.get("Links")),
            driver_options=texts(asked.get("DriverOpts")),
            gateway_priority=int(asked.get("GwPriority") or 0),
        )


def _list(told: Sequence[Any] | None) -> tuple[str, ...]:
    return tuple(str(one) for one in told or ())


def _address(end: Answer, address: str, prefix: str) -> str:
    return f"{end[address]}/{end.get(prefix) or 0}" if end.get(address) else ""


def _ports(listed: Answer, runtime: str) -> Iterator[PublishedPort]:
    """Published ports, without those that are only exposed, one for a port open on IPv4 and IPv6 alike."""
    found: dict[tuple[str, int, int], dict[str, None]] = {}
    for port in listed.get("Ports") or ():
        if port.get("PublicPort"):
            key = (str(port["Type"]), int(port["PublicPort"]), int(port["PrivatePort"]))
            found.setdefault(key, {})[str(port.get("IP") or "")] = None
    for (l4_proto, outside, inside), addresses in found.items():
        # Podman says "0.0.0.0" of both families.
        is_every = runtime != "docker" or set(_EVERY) <= addresses.keys()
        for address in dict.fromkeys("" if is_every and one in _EVERY else one for one in addresses):
            yield PublishedPort(l4_proto, address, outside, inside)


def _by_number(port: PublishedPort) -> tuple[int, str, str, int]:
    """Docker tells ports in another order at each asking."""
    return port.host_port, port.l4_proto, port.host_ip, port.container_port


def checked(engine: Engine) -> Engine:
    """The engine without addresses and subnets that are none, which become a problem each. Raises WrongValue
    for values that the model can't hold."""
    decoder(Engine)(plain(engine))
    found: list[Problem] = []
    networks = tuple(_checked_network(engine.name, one, found) for one in engine.networks)
    containers = tuple(_checked_container(engine.name, one, found) for one in engine.containers)
    if not found:
        return engine
    return replace(
        engine, networks=networks, containers=containers, problems=(*engine.problems, *dict.fromkeys(found))
    )


def _checked_network(engine: str, network: Network, found: list[Problem]) -> Network:
    subnets = tuple(_fit(is_prefix, network.subnets))
    gateways = tuple(_fit(is_address, network.gateways))
    wrong = [one for one in (*network.subnets, *network.gateways) if one not in (*subnets, *gateways)]
    if not wrong:
        return network
    found.append(_problem(engine, f"network {network.name}", wrong[0]))
    return replace(network, subnets=subnets, gateways=gateways)


def _checked_container(engine: str, container: Container, found: list[Problem]) -> Container:
    ends = tuple(map(_checked_endpoint, container.endpoints))
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


def _checked_endpoint(end: Endpoint) -> Endpoint:
    kept = {name: value for name, value in (("ipv4", end.ipv4), ("ipv6", end.ipv6)) if is_interface(value)}
    gateway = end.gateway if is_address(end.gateway) else ""
    return replace(end, ipv4=kept.get("ipv4", ""), ipv6=kept.get("ipv6", ""), gateway=gateway)


def _problem(engine: str, whose: str, given: str) -> Problem:
    what = f"{engine} tells an address of {whose} that is none"
    return Problem(engine, what[:200], repr(given[:60]), f"look at it with {engine} inspect")


def _fit(is_one: Callable[[str], bool], texts: tuple[str, ...]) -> Iterator[str]:
    return (one for one in texts if is_one(one))

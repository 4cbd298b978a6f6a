"""The door for what engines tell: the whole program relies on it that addresses are addresses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from core.addresses import is_address, is_interface, is_prefix
from core.codec import decoder, plain
from core.model import Container, Endpoint, Engine, Network, Problem


def checked(engine: Engine) -> Engine:
    """The engine without addresses and subnets that are none, which become a problem each. Raises WrongValue
    for values that the model can't hold."""
    decoder(Engine)(plain(engine))
    found: list[Problem] = []
    networks = tuple(_network(engine.name, one, found) for one in engine.networks)
    containers = tuple(_container(engine.name, one, found) for one in engine.containers)
    if not found:
        return engine
    return replace(
        engine, networks=networks, containers=containers, problems=(*engine.problems, *dict.fromkeys(found))
    )


def _network(engine: str, network: Network, found: list[Problem]) -> Network:
    subnets = tuple(_fit(is_prefix, network.subnets))
    gateways = tuple(_fit(is_address, network.gateways))
    wrong = [one for one in (*network.subnets, *network.gateways) if one not in (*subnets, *gateways)]
    if not wrong:
        return network
    found.append(_problem(engine, f"network {network.name}", wrong[0]))
    return replace(network, subnets=subnets, gateways=gateways)


def _container(engine: str, container: Container, found: list[Problem]) -> Container:
    ends = tuple(map(_endpoint, container.endpoints))
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


def _endpoint(end: Endpoint) -> Endpoint:
    kept = {name: value for name, value in (("ipv4", end.ipv4), ("ipv6", end.ipv6)) if is_interface(value)}
    gateway = end.gateway if is_address(end.gateway) else ""
    return replace(end, ipv4=kept.get("ipv4", ""), ipv6=kept.get("ipv6", ""), gateway=gateway)


def _problem(engine: str, whose: str, given: str) -> Problem:
    what = f"{engine} tells an address of {whose} that is none"
    return Problem(engine, what[:200], repr(given[:60]), f"look at it with {engine} inspect")


def _fit(is_one: Callable[[str], bool], texts: tuple[str, ...]) -> Iterator[str]:
    return (one for one in texts if is_one(one))

"""Compare settings of engines, of their containers and of their networks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from core.diff.changelist import ChangeList, Topic, missing_in
from core.diff.links import value_text
from core.model import (
    Container,
    Endpoint,
    Engine,
    Network,
    PublishedPort,
    Ref,
    container_ref,
    namespace_ref,
    network_ref,
)


def compare_engines(log: ChangeList) -> None:
    """Report engines that stopped answering or have another version."""
    old, new = log.old.snapshot.engines, log.new.snapshot.engines
    ref = namespace_ref(log.new.host)
    for name in old.keys() & new.keys():
        was, now = old[name], new[name]
        if was.state != now.state:
            sentence = f"{name} is {now.state} (was {was.state})"
            log.add("changed", ref, sentence, Topic.CONTAINER, 2 if now.state == "ok" else 0)
        if was.version and now.version and was.version != now.version:
            sentence = f"{name} changed from version {was.version} to {now.version}"
            log.add("changed", ref, sentence, Topic.SETTING)


def compare_container_settings(log: ChangeList) -> None:
    """Report changed images, modes, addresses and published ports of containers."""
    for uid, new in log.new.containers.items():
        old = log.old.containers.get(uid)
        if old is None or new.runtime in ("netns", "process"):
            continue
        ref, name = container_ref(new.runtime, new.id), f"container {new.name}"
        if old.image != new.image:
            sentence = f"the image of {name} changed from {old.image or 'none'} to {new.image or 'none'}"
            log.add("changed", ref, sentence, Topic.CONTAINER)
        if old.network_mode != new.network_mode:
            modes = f"from {old.network_mode or 'none'} to {new.network_mode or 'none'}"
            log.add("changed", ref, f"the network mode of {name} changed {modes}", Topic.CONTAINER)
        if old.state == new.state == "running":
            _compare_endpoints(log, ref, name, old, new)
            _compare_ports(log, ref, name, old, new)


def _compare_endpoints(log: ChangeList, ref: Ref, name: str, old: Container, new: Container) -> None:
    before, after = ({end.network: end for end in one.endpoints} for one in (old, new))
    for network in before.keys() & after.keys():
        was, now = _addresses(before[network]), _addresses(after[network])
        if was != now:
            sentence = f"the address of {name} on {network} changed from {was} to {now}"
            log.add("changed", ref, sentence, Topic.ADDRESS)


def _addresses(end: Endpoint) -> str:
    return ", ".join(filter(None, (end.ipv4, end.ipv6))) or "none"


def _compare_ports(log: ChangeList, ref: Ref, name: str, old: Container, new: Container) -> None:
    before, after = ([_port_text(port) for port in one.ports] for one in (old, new))
    for port in missing_in(after, before):
        log.add("removed", ref, f"{name} no longer publishes {port}", Topic.NAT)
    for port in missing_in(before, after):
        log.add("added", ref, f"{name} publishes {port}", Topic.NAT)


def _port_text(port: PublishedPort) -> str:
    host = f"{f'[{port.host_ip}]' if ':' in port.host_ip else port.host_ip}:" if port.host_ip else ""
    return f"{host}{port.host_port}:{port.container_port}/{port.l4_proto}"


_NETWORK_FIELDS = (
    "driver", "subnets", "gateways", "mtu", "internal", "bridge", "parent", "options", "gateway_mode",
    "masquerade", "trusted_links", "attachable",
)  # fmt: skip


def compare_network_settings(log: ChangeList) -> None:
    """Report changed settings of the engines' networks."""
    before = _networks(log.old.snapshot.engines)
    for key, new in _networks(log.new.snapshot.engines).items():
        old = before.get(key)
        for field in _NETWORK_FIELDS if old is not None and old is not new else ():
            was, now = _setting(getattr(old, field)), _setting(getattr(new, field))
            if was != now:
                label = field.replace("_", " ")
                sentence = f"{label} of network {new.name} changed from {was} to {now}"
                log.add("changed", network_ref(new.id), sentence, Topic.NETWORK)


def _networks(engines: Mapping[str, Engine]) -> dict[str, Network]:
    return {one.id: one for engine in engines.values() for one in engine.networks}


def _setting(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={each}" for key, each in sorted(value.items())) or "none"
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    return value_text(value) if value != "" else "none"

"""Containers that start, stop, and join or leave networks; networks that are made and removed."""

from __future__ import annotations

from core.diff.told import Told, missing_in
from core.model import Container, Engine, Network, Snapshot, container_ref, network_ref

# These are namespaces or processes first, and told as such.
_PLAIN = ("netns", "process")
_STATES = {"running": "is running", "paused": "was paused", "created": "was created"}


def tell_containers(told: Told) -> None:
    """Tell which containers came, went, changed their state or their networks."""
    if told.old.snapshot.engines is told.new.snapshot.engines:
        return
    before, after = _containers(told.old.snapshot), _containers(told.new.snapshot)
    for uid, container in after.items():
        was = before.get(uid)
        ref = container_ref(container.runtime, container.id)
        if was is None:
            how = "started" if container.state == "running" else f"appeared ({container.state})"
            told.tell("added", ref, f"container {container.name} {how}")
        elif was is not container and was != container:
            for sentence in _differences(was, container):
                told.tell("changed", ref, f"container {sentence}")
    for uid, container in before.items():
        if uid not in after and _answered(told, container.runtime):
            ref = container_ref(container.runtime, container.id)
            told.tell("removed", ref, f"container {container.name} is gone")


def _containers(snapshot: Snapshot) -> dict[str, Container]:
    return {each.uid: each for each in snapshot.containers() if each.runtime not in _PLAIN}


def _answered(told: Told, engine: str) -> bool:
    """Whether the engine answered now: one that is silent has not removed its containers."""
    now = told.new.snapshot.engines.get(engine)
    return now is not None and now.state == "ok"


def _differences(old: Container, new: Container) -> list[str]:
    found = [f"{old.name} is called {new.name} now"] if old.name != new.name else []
    if old.state != new.state:
        found.append(f"{new.name} {_state_words(old.state, new.state)}")
    elif new.state == "running" and old.pid != new.pid:
        found.append(f"{new.name} was started again")
    before = {end.network: end for end in old.endpoints}
    after = {end.network: end for end in new.endpoints}
    for name in missing_in(before, after):
        address = after[name].ipv4 or after[name].ipv6
        found.append(f"{new.name} joined the network {name}{f' with {address}' if address else ''}")
    found += [f"{new.name} left the network {name}" for name in missing_in(after, before)]
    return found


def _state_words(old: str, new: str) -> str:
    if new == "running":
        return "goes on" if old == "paused" else "started"
    return _STATES.get(new, f"stopped ({new})")


def tell_networks(told: Told) -> None:
    """Tell which networks the engines that answered before and after made and removed."""
    old, new = told.old.snapshot.engines, told.new.snapshot.engines
    for name, engine in new.items():
        was = old.get(name)
        if was is not None and was is not engine and was.state == engine.state == "ok":
            _tell_networks(told, was, engine)


def _tell_networks(told: Told, old: Engine, new: Engine) -> None:
    before = {network.id: network for network in old.networks}
    after = {network.id: network for network in new.networks}
    for key in missing_in(before, after):
        told.tell("added", network_ref(key), f"network {_words(after[key])} was created")
    for key in missing_in(after, before):
        told.tell("removed", network_ref(key), f"network {_words(before[key])} was removed")


def _words(network: Network) -> str:
    return f"{network.name} ({', '.join([network.driver, *network.subnets])})"

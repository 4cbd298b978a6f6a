"""What people name, as bridges: a bridge, a network of an engine or of our own, or all of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Iterable, Mapping

from core.collect import engines
from core.model import Link
from core.tags import words_of

ALL = "all"
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0  # seconds until the engines are asked the same again


def bridges_of(
    targets: Iterable[str], links: Mapping[int, Link], networks: Mapping[str, str]
) -> tuple[set[int], tuple[str, ...]]:
    """The ifindexes of the bridges that these names mean, and the names that mean none; `networks` are
    bridges by the names of the engines' networks."""
    by_name: dict[str, set[int]] = {}
    for link in links.values():
        if link.kind == "bridge":
            for name in (link.name, *link.altnames, *((words_of(link.alias) or {}).get("net") or ())):
                by_name.setdefault(name, set()).add(link.ifindex)
    everything = set().union(*by_name.values())
    found: set[int] = set()
    unknown = []
    for target in targets:
        meant = everything if target == ALL else by_name.get(target) or by_name.get(networks.get(target, ""))
        found |= meant or set()
        if not meant and target != ALL:
            unknown.append(target)
    return found, tuple(unknown)


class EngineNames:
    """The bridges of the engines' networks by their names, asked for aside: an engine may take its time.

    The same question is asked again, ever more rarely: a network's bridge is there before its engine tells of
    the network."""

    def __init__(self, ready: Callable[[], None]) -> None:
        self.networks: Mapping[str, str] = {}
        self._ready = ready
        self._question: Hashable = None
        self._due, self._pause = 0.0, _FIRST_PAUSE
        self._thread: threading.Thread | None = None

    def ask(self, question: Hashable) -> None:
        """Ask the engines, if it is time, and not under way; `ready` is called when their answer is there."""
        now = time.monotonic()
        if question != self._question:
            self._question, self._due, self._pause = question, now, _FIRST_PAUSE
        if now >= self._due and (self._thread is None or not self._thread.is_alive()):
            self._due, self._pause = now + self._pause, min(2 * self._pause, _LONGEST_PAUSE)
            self._thread = threading.Thread(target=self._read, daemon=True)
            self._thread.start()

    def _read(self) -> None:
        self.networks = engine_networks()
        self._ready()


def engine_networks() -> dict[str, str]:
    """The bridges of the engines' networks by these networks' names and ids; an engine may take its time."""
    found = {}
    for engine in (engines.read_podman(), engines.read_docker()):
        for network in engine.networks:
            if network.bridge:
                found[network.name] = found[network.id] = network.bridge
    return found

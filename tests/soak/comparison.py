"""Compare what a dashboard holds with what ip(8) prints."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from core.model import Snapshot
from tests.support.machine import Machine
from tests.support.terminal import Terminal
from tests.support.waiting import PATIENCE, wait_until
from tui.command import load


def differences(machine: Machine, terminal: Terminal, folder: Path) -> list[str]:
    """Return the differences between a bundle of the dashboard (key B) and the kernel."""
    for old in folder.glob("*.tar.gz"):
        old.unlink()
    terminal.press("B")
    path = wait_until(partial(_bundle, folder), "the bundle", seconds=20 * PATIENCE)
    return _differences(load(path), machine)


def _bundle(folder: Path) -> Path | None:
    return next(folder.glob("vnet-bundle-*.tar.gz"), None)


def _differences(snapshot: Snapshot, machine: Machine) -> list[str]:
    names = {one["name"] for one in machine.json("ip -j netns list")}
    spaces = {name: ns for ns, one in snapshot.namespaces.items() for name in one.names}
    found = [] if spaces.keys() == names else [f"namespaces {sorted(spaces.keys() ^ names)}"]
    for name, ns in {"": snapshot.host.netns, **spaces}.items():
        if name and name not in names:
            continue
        shown, there = _links_shown(snapshot, ns), _links(machine, name)
        found += [f"links of {name or 'the host'}: {row}" for row in sorted(shown ^ there, key=str)]
    routes = {one["dst"] for one in machine.json("ip -j -4 route show table main")}
    known = {
        route.dst.removesuffix("/32")
        for route in snapshot.nets[snapshot.host.netns].routes
        if route.family == 4 and route.table == "main"
    }
    return found + ([f"routes {sorted(routes ^ known)[:5]}"] if routes != known else [])


def _links_shown(snapshot: Snapshot, ns: int) -> set[tuple[Any, ...]]:
    net = snapshot.nets.get(ns)
    links = net.links if net else {}  # a new namespace is read a moment after it is found
    return {
        (
            link.name, link.ifindex, link.mtu, link.mac if link.kind != "loopback" else "",
            link.admin_up, link.state,
            links[link.master].name if link.master in links else "",
            tuple(sorted(map(str, link.addresses))),
        )
        for link in links.values()
    }  # fmt: skip


def _links(machine: Machine, name: str) -> set[tuple[Any, ...]]:
    return {
        (
            link["ifname"], link["ifindex"], link["mtu"],
            link["address"] if link["link_type"] != "loopback" else "",
            "UP" in link["flags"], link["operstate"].lower(), link.get("master", ""),
            tuple(sorted(f"{one['local']}/{one['prefixlen']}" for one in link["addr_info"])),
        )
        for link in machine.json("ip -j addr show", name)
    }  # fmt: skip

"""Read the network state of throw-away namespaces by the system's tools."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

# Values that the kernel counts, chooses or lets expire, which are no difference.
_VOLATILE = frozenset(
    [
        "ifindex",
        "link_index",
        "link_netnsid",
        "operstate",
        "stats",
        "stats64",
        "handle",
        "packets",
        "bytes",
        "no",
        "valid_life_time",
        "preferred_life_time",
        "expires",
        "updated",
        "used",
        "cacheinfo",
        "dad_status",
        "gc_timer",
        "hello_timer",
        "tcn_timer",
        "topology_change_timer",
        "hold_timer",
        "message_age_timer",
        "forward_delay_timer",
        "topology_change",
        "topology_change_detected",
        "designated_port",
        "root_port",
        "root_path_cost",
    ]
)
# Only flags that can be set; others are what the kernel found.
_FLAGS = frozenset(["UP", "onlink"])
_PORT_STATES = ("disabled", "forwarding")
_SYSCTLS = ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding")


def state(namespaces: Iterable[str]) -> dict[str, Any]:
    """Read each existing namespace: links, addresses, routes, VLANs, rules, sysctls."""
    return {name: _of(name) for name in namespaces if Path(f"/run/netns/{name}").exists()}


def _of(name: str) -> dict[str, Any]:
    return {
        "links": by_name(_run(name, "ip -j -d link show")),
        "addresses": by_name(_run(name, "ip -j addr show")),
        "routes": in_order(_run(name, "ip -j route show table all")),
        "routes6": in_order(_run(name, "ip -j -6 route show table main")),
        "neighbours": in_order(_run(name, "ip -j neigh show nud permanent")),
        "ports": by_name(_run(name, "bridge -j -d link show")),
        "remotes": in_order([one for one in _run(name, "bridge -j fdb show") if "dst" in one]),
        "vlans": by_name(_run(name, "bridge -j vlan show")),
        "rules": cleaned(_run(name, "nft -j list ruleset")),
        "sysctls": {key: _inside(name, ["cat", f"/proc/sys/{key}"]).strip() for key in _SYSCTLS},
    }


def _inside(name: str, words: list[str]) -> str:
    command = ["nsenter", f"--net=/run/netns/{name}", *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _run(name: str, command: str) -> Any:
    return json.loads(_inside(name, command.split()) or "[]")


def by_name(items: list[dict[str, Any]]) -> dict[str, Any]:
    return {item["ifname"]: cleaned(item) for item in items if item.get("ifname")}


def in_order(items: list[dict[str, Any]]) -> list[Any]:
    return sorted((cleaned(item) for item in items), key=json.dumps)


def cleaned(value: Any) -> Any:
    if isinstance(value, dict):
        kept = [(key, item) for key, item in sorted(value.items()) if key not in _VOLATILE]
        # A port is disabled until the kernel has processed its carrier.
        return {
            key: [one for one in item if one in _FLAGS] if key == "flags" else cleaned(item)
            for key, item in kept
            if key != "state" or item not in _PORT_STATES
        }
    if isinstance(value, list):
        return [cleaned(item) for item in value if not (isinstance(item, dict) and "metainfo" in item)]
    return value

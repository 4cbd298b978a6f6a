"""The form that tunes a bridge with its ports and containers."""

from __future__ import annotations

from core.model import Link, Ref
from core.plan.requests import Tune
from core.plan.tuning import LARGEST_SIZE, PLAIN_SIZE, USUAL_SIZE, Tuned, tuned
from core.plan.untracked import states
from core.text import safe
from core.topology import Topology
from tui.errors import CommandError
from tui.screens.forms.form import Filled, Form, Values, form_about, number
from tui.widgets.form import Field

_ON = ("off", "on")
_DIFFERS = "differs from link to link"
_DIFFERS_INSIDE = "differs from container to container"


def tune_form(ref: Ref | None) -> Form:
    """One about the bridge that belongs to the selected thing."""
    fields = (
        Field("bridge", "bridge", "one of the host's"),
        Field("big_tcp", "BIG TCP", f"off, or bytes up to {LARGEST_SIZE}, such as {USUAL_SIZE}"),
        Field("offloads", "offloads", _DIFFERS, _ON),
        Field("br_netfilter", "br_netfilter", options=_ON),
        Field("rps", "RPS", "all, off or a mask of CPUs"),
        Field("no_track_dns", "DNS untracked", _DIFFERS_INSIDE, _ON),
    )
    return form_about(ref, "Tune a bridge", fields, _fill, _request, "tuning")


def _bridges(topology: Topology) -> dict[str, Link]:
    """The host's bridges by name."""
    net = topology.snapshot.nets.get(topology.host)
    found = (link for link in net.links.values() if link.kind == "bridge") if net else ()
    return {safe(link.name): link for link in sorted(found, key=lambda one: one.name)}


def _bridge_of(topology: Topology, ref: Ref | None) -> Link | None:
    """The bridge that belongs to a reference: of a link itself, its master or that of its other end."""
    match ref:
        case Ref("network", (str(network_id),)):
            network = topology.network(network_id)
            return topology.bridge_link(network) if network else None
        case Ref("link", (int(ns), int(ifindex))):
            link = topology.snapshot.link((ns, ifindex))
            return _above(topology, link) if link else None
        case Ref("container", (str(runtime), str(container_id))):
            container = topology.containers.get(f"{runtime}:{container_id}")
            networks = topology.networks_of(container) if container else ()
            return next((link for one in networks if (link := topology.bridge_link(one))), None)
    return None


def _above(topology: Topology, link: Link) -> Link | None:
    peer = topology.peer(link)
    masters = (topology.master_of(end) for end in (link, peer) if end)
    return link if link.kind == "bridge" else next((one for one in masters if one), None)


def _fill(topology: Topology, values: Values, ref: Ref | None) -> Filled:
    bridges, meant = _bridges(topology), _bridge_of(topology, ref)
    label = next((name for name, one in bridges.items() if one == meant), next(iter(bridges), ""))
    bridge = bridges.get(values.get("bridge", label))
    held = _held(tuned(topology, bridge)) if bridge else {}
    hidden = set() if bridge and states(topology, bridge) else {"no_track_dns"}
    return Filled({"bridge": label} | held, {"bridge": tuple(bridges)}, frozenset(hidden))


def _held(now: Tuned) -> dict[str, str]:
    """What the fields hold now, "" where links differ."""
    size = "" if now.big_tcp is None else str(now.big_tcp) if now.big_tcp > PLAIN_SIZE else "off"
    return {
        "big_tcp": size,
        "offloads": "" if now.offloads is None else _ON[now.offloads],
        "br_netfilter": _ON[now.br_netfilter],
        "rps": now.rps or "",
        "no_track_dns": "" if now.no_track_dns is None else _ON[now.no_track_dns],
    }


def _request(values: Values, topology: Topology) -> Tune:
    """About what differs from what is."""
    bridge = _bridges(topology).get(values["bridge"])
    if bridge is None:
        raise CommandError(f'the host has no bridge "{safe(values["bridge"])}"')
    held = _held(tuned(topology, bridge))
    changed = {name: values[name] for name, now in held.items() if values.get(name, "") not in ("", now)}
    if not changed:
        raise CommandError("nothing differs: change a field")
    return Tune(
        bridge.key,
        _size(changed["big_tcp"]) if "big_tcp" in changed else None,
        _switched(changed, "offloads"),
        _switched(changed, "br_netfilter"),
        changed.get("rps"),
        _switched(changed, "no_track_dns"),
    )


def _size(text: str) -> int:
    return PLAIN_SIZE if text == "off" else number(text, "size in bytes", USUAL_SIZE)


def _switched(changed: Values, name: str) -> bool | None:
    """What to switch it to, None for nothing. Raises CommandError."""
    if name not in changed:
        return None
    if changed[name] not in _ON:
        raise CommandError(f'{name} is on or off, not "{safe(changed[name])}"')
    return changed[name] == "on"

"""Define the forms for settings and tuning of links, bridges and ports."""

from __future__ import annotations

from collections.abc import Iterator

from core.model import BridgeSettings, Link, LinkKey, Ref
from core.plan.links import BRIDGE_SETTINGS, PORT_FLAGS
from core.plan.requests import ChangeBridge, ChangeLink, ChangePort, Request, Tune
from core.plan.tuning import LARGEST_SIZE, PLAIN_SIZE, USUAL_SIZE, TuningState, tuned
from core.plan.untracked import states
from core.text import parse_tag, safe
from core.topology import Topology
from tui.command import CommandError
from tui.screens.forms.change import Form, FormState, Values, form_about, number
from tui.widgets.form import Field

_ON = ("off", "on")
_UP = ("down", "up")


def settings_form(ref: Ref | None) -> Form:
    """Return a form for the selected link, or the links of the selected object."""
    return Form(
        "Link settings",
        "light",
        lambda values, topology: tuple(_requests(values, _links(topology, ref))),
        (
            Field("link", "link"),
            Field("state", "state", options=_UP),
            Field("mtu", "MTU"),
            Field("name", "name", "at most 15 bytes"),
            Field("alias", "alias", "none"),
            *(_bridge_field(name) for name in BRIDGE_SETTINGS),
            *(Field(f"port.{name}", name, options=_ON, hidden=True) for name in PORT_FLAGS),
        ),
        lambda topology, values: _fill(values, _links(topology, ref), _first(topology, ref)),
    )


def _bridge_field(name: str) -> Field:
    _, factor, least, most = BRIDGE_SETTINGS[name]
    if (least, most) == (0, 1):
        return Field(f"bridge.{name}", name, options=_ON, hidden=True)
    hint = f"{least} to {most}{', in 1/100 s' if factor == 100 else ''}"
    return Field(f"bridge.{name}", name, hint, hidden=True)


def _namespace(topology: Topology, ref: Ref | None) -> int:
    """Return the namespace of the selected object, else the host's."""
    match ref:
        case Ref("link" | "namespace", (int(ns), *_)):
            return ns
        case Ref("container", (str(runtime), str(container_id))):
            container = topology.containers.get(f"{runtime}:{container_id}")
            return (container.netns if container else None) or topology.host
    return topology.host


def _links(topology: Topology, ref: Ref | None) -> dict[str, Link]:
    """Return the links to choose from, by name."""
    net = topology.snapshot.nets.get(_namespace(topology, ref))
    return {safe(one.name): one for _, one in sorted(net.links.items())} if net else {}


def _first(topology: Topology, ref: Ref | None) -> LinkKey | None:
    """Return the link to select first, None for any."""
    match ref:
        case Ref("link", (int(ns), int(ifindex))):
            return LinkKey(ns, ifindex)
        case Ref("network", (str(network_id),)):
            network = topology.network(network_id)
            bridge = topology.bridge_link(network) if network else None
            return bridge.key if bridge else None
    return None


def _fill(values: Values, links: dict[str, Link], first: LinkKey | None) -> FormState:
    others = [name for name, one in links.items() if one.kind != "loopback"] or list(links)
    label = next((name for name, one in links.items() if one.key == first), next(iter(others), ""))
    link = links.get(values.get("link", label))
    held = {"link": label} | (dict(_current_values(link)) if link else {})
    every = {"state", "mtu", "name", "alias", *(f"bridge.{name}" for name in BRIDGE_SETTINGS)}
    every |= {f"port.{name}" for name in PORT_FLAGS}
    return FormState(held, {"link": tuple(links)}, frozenset(every - held.keys()))


def _current_values(link: Link) -> Iterator[tuple[str, str]]:
    """Yield a link's current values, without vnet's tags and the name of lo."""
    yield "state", _UP[link.admin_up]
    yield "mtu", str(link.mtu)
    if link.kind != "loopback":
        yield "name", link.name
    if parse_tag(link.alias) is None:
        yield "alias", link.alias
    if link.kind == "bridge":
        for name, (_, _, least, most) in BRIDGE_SETTINGS.items():
            value = _setting(link, name)
            yield f"bridge.{name}", _ON[value] if (least, most) == (0, 1) else str(value)
    if link.port is not None:
        yield from ((f"port.{name}", _ON[bool(getattr(link.port, name))]) for name in PORT_FLAGS)


def _setting(link: Link, name: str) -> int:
    """Return a setting of a bridge in the units of ip-link(8)."""
    field, factor, _, _ = BRIDGE_SETTINGS[name]
    return round(float(getattr(link.bridge or BridgeSettings(), field)) * factor)


def _requests(values: Values, links: dict[str, Link]) -> Iterator[Request]:
    """Yield a request for each value that differs.

    That of the link itself is last, because it may rename the link.
    """
    link = links.get(values["link"])
    if link is None:
        raise CommandError(f'can\'t change "{safe(values["link"])}": there is no link of that name here')
    changed = {
        key: values[key] for key, held in _current_values(link) if key in values and values[key] != held
    }
    for key, value in changed.items():
        kind, _, name = key.partition(".")
        if kind == "bridge":
            wanted = _ON.index(value) if value in _ON else number(value, name, _setting(link, name))
            yield ChangeBridge(link.key, name, wanted)
        elif kind == "port":
            yield ChangePort(link.key, name, value == "on")
    own = {key: value for key, value in changed.items() if "." not in key}
    if own:
        yield ChangeLink(
            link.key,
            own["state"] == "up" if "state" in own else None,
            number(own["mtu"], "MTU", 1400) if "mtu" in own else None,
            own.get("name"),
            own.get("alias"),
        )


_DIFFERS = "differs between links"
_DIFFERS_INSIDE = "differs between containers"


def tune_form(ref: Ref | None) -> Form:
    """Return a form for the bridge of the selected object."""
    fields = (
        Field("bridge", "bridge", "a bridge of the host"),
        Field("big_tcp", "BIG TCP", f"off, or bytes up to {LARGEST_SIZE}, such as {USUAL_SIZE}"),
        Field("offloads", "offloads", _DIFFERS, _ON),
        Field("br_netfilter", "br_netfilter", options=_ON),
        Field("rps", "RPS", "all, off or a mask of CPUs"),
        Field("no_track_dns", "no-track DNS", _DIFFERS_INSIDE, _ON),
    )
    return form_about(ref, "Tune a bridge", fields, _fill_tune, _request, "tuning")


def _bridges(topology: Topology) -> dict[str, Link]:
    """Return the host's bridges by name."""
    net = topology.snapshot.nets.get(topology.host)
    found = (link for link in net.links.values() if link.kind == "bridge") if net else ()
    return {safe(link.name): link for link in sorted(found, key=lambda one: one.name)}


def _bridge_of(topology: Topology, ref: Ref | None) -> Link | None:
    """Return the bridge of a ref: itself, its master, or its peer's master."""
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


def _fill_tune(topology: Topology, values: Values, ref: Ref | None) -> FormState:
    bridges, meant = _bridges(topology), _bridge_of(topology, ref)
    label = next((name for name, one in bridges.items() if one == meant), next(iter(bridges), ""))
    bridge = bridges.get(values.get("bridge", label))
    held = _current_tuning(tuned(topology, bridge)) if bridge else {}
    hidden = set() if bridge and states(topology, bridge) else {"no_track_dns"}
    return FormState({"bridge": label} | held, {"bridge": tuple(bridges)}, frozenset(hidden))


def _current_tuning(now: TuningState) -> dict[str, str]:
    """Return the current values of the fields, "" if links differ."""
    size = "" if now.big_tcp is None else str(now.big_tcp) if now.big_tcp > PLAIN_SIZE else "off"
    return {
        "big_tcp": size,
        "offloads": "" if now.offloads is None else _ON[now.offloads],
        "br_netfilter": _ON[now.br_netfilter],
        "rps": now.rps or "",
        "no_track_dns": "" if now.no_track_dns is None else _ON[now.no_track_dns],
    }


def _request(values: Values, topology: Topology) -> Tune:
    """Return the request for the values that differ."""
    bridge = _bridges(topology).get(values["bridge"])
    if bridge is None:
        raise CommandError(f'can\'t tune "{safe(values["bridge"])}": the host has no bridge of that name')
    held = _current_tuning(tuned(topology, bridge))
    changed = {name: values[name] for name, now in held.items() if values.get(name, "") not in ("", now)}
    if not changed:
        raise CommandError(f"can't tune {safe(values['bridge'])}: nothing differs. Try: change a field")
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
    """Return the value to switch to, None for no change.

    Raises CommandError.
    """
    if name not in changed:
        return None
    if changed[name] not in _ON:
        raise CommandError(f'can\'t set {name} to "{safe(changed[name])}": it is on or off')
    return changed[name] == "on"

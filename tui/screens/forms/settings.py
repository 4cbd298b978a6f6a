"""The form that changes settings of a link, and of the bridge or the bridge port that it is."""

from __future__ import annotations

from collections.abc import Iterator

from core.model import BridgeSettings, Link, LinkKey, Ref
from core.plan.links import BRIDGE_SETTINGS, PORT_FLAGS
from core.plan.requests import ChangeBridge, ChangeLink, ChangePort, Request
from core.tags import words_of
from core.text import safe
from core.topology import Topology
from tui.errors import CommandError
from tui.screens.forms.form import Filled, Form, Values, number
from tui.widgets.form import Field

_ON = ("off", "on")
_UP = ("down", "up")


def settings_form(ref: Ref | None) -> Form:
    """One about the selected link, or the links of the selected thing."""
    return Form(
        "Settings of a link",
        "light",
        lambda values, topology: tuple(_requests(values, _links(topology, ref))),
        (
            Field("link", "link"),
            Field("state", "state", options=_UP),
            Field("mtu", "MTU"),
            Field("name", "name", "15 bytes at most"),
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
    """The namespace whose links are meant: the host's, unless the selected thing has one."""
    match ref:
        case Ref("link" | "namespace", (int(ns), *_)):
            return ns
        case Ref("container", (str(runtime), str(container_id))):
            container = topology.containers.get(f"{runtime}:{container_id}")
            return (container.netns if container else None) or topology.host
    return topology.host


def _links(topology: Topology, ref: Ref | None) -> dict[str, Link]:
    """The links to choose from, by name."""
    net = topology.snapshot.nets.get(_namespace(topology, ref))
    return {safe(one.name): one for _, one in sorted(net.links.items())} if net else {}


def _first(topology: Topology, ref: Ref | None) -> LinkKey | None:
    """The link that is meant at first, None for any."""
    match ref:
        case Ref("link", (int(ns), int(ifindex))):
            return LinkKey(ns, ifindex)
        case Ref("network", (str(network_id),)):
            network = topology.network(network_id)
            bridge = topology.bridge_link(network) if network else None
            return bridge.key if bridge else None
    return None


def _fill(values: Values, links: dict[str, Link], first: LinkKey | None) -> Filled:
    others = [name for name, one in links.items() if one.kind != "loopback"] or list(links)
    label = next((name for name, one in links.items() if one.key == first), next(iter(others), ""))
    link = links.get(values.get("link", label))
    held = {"link": label} | (dict(_held(link)) if link else {})
    every = {"state", "mtu", "name", "alias", *(f"bridge.{name}" for name in BRIDGE_SETTINGS)}
    every |= {f"port.{name}" for name in PORT_FLAGS}
    return Filled(held, {"link": tuple(links)}, frozenset(every - held.keys()))


def _held(link: Link) -> Iterator[tuple[str, str]]:
    """What a link's fields hold now; tags of ours, and a loopback link's name, are not for editing."""
    yield "state", _UP[link.admin_up]
    yield "mtu", str(link.mtu)
    if link.kind != "loopback":
        yield "name", link.name
    if words_of(link.alias) is None:
        yield "alias", link.alias
    if link.kind == "bridge":
        for name, (_, _, least, most) in BRIDGE_SETTINGS.items():
            value = _setting(link, name)
            yield f"bridge.{name}", _ON[value] if (least, most) == (0, 1) else str(value)
    if link.port is not None:
        yield from ((f"port.{name}", _ON[bool(getattr(link.port, name))]) for name in PORT_FLAGS)


def _setting(link: Link, name: str) -> int:
    """A setting of a bridge in the units of ip-link(8)."""
    field, factor, _, _ = BRIDGE_SETTINGS[name]
    return round(float(getattr(link.bridge or BridgeSettings(), field)) * factor)


def _requests(values: Values, links: dict[str, Link]) -> Iterator[Request]:
    """One for each thing that differs; the link's own last, as they may give it another name."""
    link = links.get(values["link"])
    if link is None:
        raise CommandError(f'there is no link "{safe(values["link"])}" here')
    changed = {key: values[key] for key, held in _held(link) if key in values and values[key] != held}
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

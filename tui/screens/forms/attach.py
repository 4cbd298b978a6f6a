"""The forms that attach a container to a network, detach it, and move it to another."""

from __future__ import annotations

from itertools import count

from core.model import Container, Ref
from core.plan.requests import Attach, Detach, Move
from core.topology import Topology
from tui.errors import CommandError
from tui.screens.forms.chosen import (
    able,
    by_label,
    dockers_names,
    free_address,
    networks_for,
    networks_with,
    others_names,
    our_names,
    selected,
    uid_of,
)
from tui.screens.forms.form import Filled, Form, Values, form_about, words
from tui.widgets.form import Field


def attach_form(ref: Ref | None) -> Form:
    """One that begins with the selected thing."""
    fields = (
        Field("container", "container", "its name"),
        Field("network", "network", "none of vnet's or Docker's: n makes one"),
        Field("address", "address", "a free one"),
        Field("link", "link inside", "the first free ethN"),
    )
    return form_about(ref, "Attach a container", fields, _fill_attach, _attach)


def detach_form(ref: Ref | None) -> Form:
    """One that begins with the selected thing."""
    fields = (
        Field("container", "container", "its name"),
        Field("network", "network", "none of vnet's or Docker's"),
    )
    return form_about(ref, "Detach a container", fields, _fill_leaving, _detach)


def move_form(ref: Ref | None) -> Form:
    """One that begins with the selected thing."""
    fields = (
        Field("container", "container", "its name"),
        Field("network", "from", "none of vnet's or Docker's"),
        Field("to", "to", "n makes another network"),
        Field("address", "address", "a free one"),
    )
    return form_about(ref, "Move a container to another network", fields, _fill_move, _move)


def _fill_attach(topology: Topology, values: Values, ref: Ref | None) -> Filled:
    containers, chosen = by_label(able(topology)), selected(topology, ref)
    every = {label: networks_for(topology, one) for label, one in containers.items()}
    fitting = {label: one for label, one in containers.items() if chosen.network_in(every[label])}
    wanting = {label: one for label, one in fitting.items() if chosen.network in every[label]}
    label = chosen.container_in(containers if chosen.container else wanting or fitting or containers)
    container = values.get("container", label)
    networks = every.get(container, networks_for(topology, None))
    network = values.get("network", chosen.network_in(networks))
    return Filled(
        {
            "container": container, "network": network, "address": free_address(topology, network),
            "link": _link(topology, containers.get(container)),
        },
        {"container": tuple(containers), "network": networks},
        # Docker names the link inside itself.
        frozenset({"link"} if _is_dockers(network, topology) else ()),
    )  # fmt: skip


def _fill_leaving(topology: Topology, values: Values, ref: Ref | None) -> Filled:
    """For a form about a container that leaves a network: the selected one, or one that is on one."""
    chosen, containers = selected(topology, ref), by_label(able(topology))
    there = {label: networks_with(topology, one) for label, one in containers.items()}
    fitting = {label: one for label, one in containers.items() if there[label]}
    on_it = {label: one for label, one in fitting.items() if chosen.network in there[label]}
    label = chosen.container_in(containers) if chosen.container else next(iter(on_it or fitting), "")
    container = values.get("container", label)
    networks = there.get(container, ())
    return Filled(
        {"container": container, "network": chosen.network_in(networks)},
        {"container": tuple(dict.fromkeys([*fitting, label] if label else fitting)), "network": networks},
    )


def _fill_move(topology: Topology, values: Values, ref: Ref | None) -> Filled:
    filled = _fill_leaving(topology, values, ref)
    container = by_label(able(topology)).get(filled.proposals["container"])
    network = values.get("network", filled.proposals["network"])
    same = our_names(topology) if network in our_names(topology) else dockers_names(topology)
    others = tuple(one for one in networks_for(topology, container) if one in same)
    to = values.get("to", next(iter(others), ""))
    return Filled(
        {**filled.proposals, "to": to, "address": free_address(topology, to)},
        {**filled.options, "to": others},
    )


def _is_dockers(network: str, topology: Topology) -> bool:
    return network in dockers_names(topology) and network not in our_names(topology)


def _link(topology: Topology, container: Container | None) -> str:
    net = topology.snapshot.nets.get(container.netns or 0) if container else None
    names = {link.name for link in net.links.values()} if net else set()
    return next(name for number in count() if (name := f"eth{number}") not in names)


def _container(values: Values, topology: Topology) -> str:
    """The uid of the container that is to be attached. Raises CommandError."""
    if not values["container"]:
        raise CommandError("there is no container to attach: c makes a plain one")
    return uid_of(values["container"], able(topology))


def _leaving(values: Values, topology: Topology) -> str:
    """The uid of the container that leaves a network. Raises CommandError."""
    if not values["network"]:
        who = f"{values['container']} was not" if values["container"] else "no container was"
        raise CommandError(
            f"{who} attached by vnet or Docker ({_which(topology)}): d deletes a link that others made"
        )
    return uid_of(values["container"], able(topology))


def _which(topology: Topology) -> str:
    """Which networks take containers, and which on the screen do not."""
    able_to = [*our_names(topology), *dockers_names(topology)]
    foreign = others_names(topology)
    words = f"only networks made by vnet or Docker take containers ({', '.join(able_to) or 'none yet'})"
    if not foreign:
        return words
    return f"{words}; {', '.join(foreign)} {'is' if len(foreign) == 1 else 'are'} not vnet's"


def _attach(values: Values, topology: Topology) -> Attach:
    container = _container(values, topology)
    if not values["network"]:
        raise CommandError(f"there is no network for it: {_which(topology)}; n makes one")
    return Attach(container, values["network"], words(values["address"]), values.get("link", ""))


def _detach(values: Values, topology: Topology) -> Detach:
    return Detach(_leaving(values, topology), values["network"])


def _move(values: Values, topology: Topology) -> Move:
    container = _leaving(values, topology)
    if not values["to"]:
        raise CommandError(
            f"there is no other network that it could move to: {_which(topology)}; n makes one"
        )
    return Move(container, values["network"], values["to"], words(values["address"]))

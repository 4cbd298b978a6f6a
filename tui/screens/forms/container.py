"""The form that makes a plain container."""

from __future__ import annotations

from itertools import count

from core.model import Ref
from core.plan.requests import MODELS, CreateContainer
from core.topology import Topology
from tui.screens.forms.chosen import by_label, free_address, our_names, selected, uid_of
from tui.screens.forms.form import Filled, Form, Values, form_about, words
from tui.widgets.form import Field


def container_form(ref: Ref | None) -> Form:
    """One that begins with the selected network."""
    fields = (
        Field("name", "name", "15 bytes at most"),
        Field("model", "model", options=MODELS),
        Field("network", "network", "n makes one"),
        Field("address", "address", "a free one"),
        Field("joined", "joined with", "whose network it shares"),
    )
    return form_about(ref, "New plain container (a named namespace)", fields, _fill, _request)


def _fill(topology: Topology, values: Values, ref: Ref | None) -> Filled:
    networks, containers = our_names(topology), by_label(topology.containers.values())
    chosen = selected(topology, ref)
    model = values.get("model", "bridged" if chosen.network in networks else "closed")
    network = values.get("network", chosen.network_in(networks))
    hidden = set() if model == "bridged" else {"network", "address"}
    hidden |= set() if model == "joined" else {"joined"}
    return Filled(
        {
            "name": _name(topology), "model": model, "network": network,
            "address": free_address(topology, network), "joined": chosen.container_in(containers),
        },
        {"network": networks, "joined": tuple(containers)},
        frozenset(hidden),
    )  # fmt: skip


def _name(topology: Topology) -> str:
    taken = {name for space in topology.snapshot.namespaces.values() for name in space.names}
    return next(name for number in count(1) if (name := f"box{number}") not in taken)


def _request(values: Values, topology: Topology) -> CreateContainer:
    joined = uid_of(values["joined"], topology.containers.values()) if "joined" in values else ""
    addresses = words(values.get("address", ""))
    return CreateContainer(values["name"], values["model"], values.get("network", ""), addresses, joined)

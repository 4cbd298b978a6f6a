"""The form that lets two networks of ours reach each other, or keeps them apart again."""

from __future__ import annotations

from core.model import Ref
from core.plan import ours
from core.plan.requests import Join, Part
from core.plan.tags import pair
from core.topology import Topology
from tui.errors import CommandError
from tui.screens.forms.chosen import our_names, selected
from tui.screens.forms.form import Filled, Form, Values, form_about
from tui.widgets.form import Field

_STATES = ("joined", "apart")


def join_form(ref: Ref | None) -> Form:
    """One that begins with the selected network."""
    fields = (
        Field("network", "network", "one of vnet's"),
        Field("other", "other", "another of vnet's"),
        Field("state", "shall be", options=_STATES),
    )
    return form_about(ref, "Join or part two networks", fields, _fill, _request)


def _fill(topology: Topology, values: Values, ref: Ref | None) -> Filled:
    """Of a network with several others, one that it is joined with comes last."""
    names, joined = our_names(topology), ours(topology.snapshot, topology.host).joined
    network = values.get("network", selected(topology, ref).network_in(names))
    others = tuple(
        sorted((one for one in names if one != network), key=lambda one: pair(network, one) in joined)
    )
    other = values.get("other", next(iter(others), ""))
    state = _STATES[pair(network, other) in joined]
    return Filled({"network": network, "other": other, "state": state}, {"network": names, "other": others})


def _request(values: Values, topology: Topology) -> Join | Part:
    if not values["network"] or not values["other"]:
        raise CommandError("it takes two networks of vnet's: n makes one")
    return (Join if values["state"] == "joined" else Part)(values["network"], values["other"])

"""The form that publishes a port of a running container."""

from __future__ import annotations

from core.model import Ref
from core.plan import ours, validate
from core.plan.requests import PROTOCOLS, Publish
from core.topology import Topology
from tui.screens.forms.chosen import able, by_label, selected, uid_of
from tui.screens.forms.form import Filled, Form, Values, form_about
from tui.widgets.form import Field

_FIRST, _LAST = 8080, 9080


def publish_form(ref: Ref | None) -> Form:
    """One that begins with the selected container."""
    fields = (
        Field("container", "container", "its name"),
        Field("host", "port of the host", "or a range, 8000-8010"),
        Field("inside", "port inside", "as on the host"),
        Field("proto", "protocol", options=PROTOCOLS),
        Field("address", "host's address", "every address"),
    )
    return form_about(ref, "Publish a port", fields, _fill, _request, "publishing")


def _fill(topology: Topology, values: Values, ref: Ref | None) -> Filled:
    containers = by_label(able(topology))
    label, proto = selected(topology, ref).container_in(containers), values.get("proto", "tcp")
    proposals = {"container": label, "host": _free_port(topology, proto), "inside": "80", "proto": "tcp"}
    return Filled(proposals, {"container": tuple(containers)})


def _free_port(topology: Topology, l4_proto: str) -> str:
    """The first port from 8080 on that nobody holds."""
    held = {one.port for one in topology.snapshot.host.listening if one.l4_proto == l4_proto}
    held |= {port.host_port for one in topology.snapshot.containers() for port in one.ports}
    for port in ours(topology.snapshot, topology.host).ports:
        first, last = validate.port_range(port.host_ports)
        held |= set(range(first, last + 1))
    return next((str(port) for port in range(_FIRST, _LAST) if port not in held), "")


def _request(values: Values, topology: Topology) -> Publish:
    container = uid_of(values["container"], able(topology))
    return Publish(container, values["host"], values["inside"], values["proto"], values["address"])

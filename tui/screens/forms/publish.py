"""The form that publishes a port of a running container."""

from __future__ import annotations

from core.model import Container, Ref
from core.plan import ours
from core.plan.ports import free_port
from core.plan.requests import PROTOCOLS, CountTraffic, Delete, DeleteFlow, Detach, Publish, Request
from core.topology import Topology
from tui.screens.forms.attach import able, by_label, networks_with, selected, uid_of
from tui.screens.forms.change import Filled, Form, Values, form_about
from tui.widgets.form import Field


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
    proposals = {"container": label, "host": free_port(topology, proto), "inside": "80", "proto": "tcp"}
    addresses = _addresses(topology, containers.get(values.get("container", label)))
    return Filled(proposals, {"container": tuple(containers), "address": addresses})


def _addresses(topology: Topology, container: Container | None) -> tuple[str, ...]:
    """The host's addresses of the families that a container has; ::1 leads to none."""
    net = topology.snapshot.nets.get(topology.host)
    own = [one for link in net.links.values() for one in link.addresses] if net else []
    families = {":" in one for one in topology.addresses_of(container)} if container else set()
    found = [one.address for one in own if one.scope != "link" and one.address != "::1"]
    return tuple(dict.fromkeys(one for one in found if (":" in one) in families))


def _request(values: Values, topology: Topology) -> Publish:
    container = uid_of(values["container"], able(topology))
    return Publish(container, values["host"], values["inside"], values["proto"], values["address"])


def delete_form(ref: Ref) -> Form:
    """The question whether what is selected shall go."""
    title = "Withdraw" if ref.kind == "nat" else "Delete"
    return Form(title, "whole", lambda values, topology: (_delete_request(ref, topology),), asks=True)


def _delete_request(ref: Ref, topology: Topology) -> Request:
    """Docker itself takes its container off its network: an end of that link alone is not deleted."""
    chosen = selected(topology, ref)
    if ref.kind == "link" and chosen.container and chosen.container.runtime == "docker":
        theirs = set(networks_with(topology, chosen.container)) - set(
            ours(topology.snapshot, topology.host).networks
        )
        if chosen.network in theirs:
            return Detach(chosen.container.uid, chosen.network)
    return Delete(ref)


def forget_form(request: DeleteFlow) -> Form:
    """The question whether the kernel shall forget a connection."""
    return Form("Forget a connection", "light", lambda values, topology: (request,), asks=True)


def counting_form(namespaces: tuple[int, ...]) -> Form | None:
    """The question for namespaces that do not count; None where there is none."""
    request = CountTraffic(namespaces)
    title = "Count traffic"
    return Form(title, "light", lambda values, topology: (request,), asks=True) if namespaces else None

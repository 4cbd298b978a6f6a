"""The question before something is deleted, withdrawn, detached or forgotten."""

from __future__ import annotations

from core.model import Ref
from core.plan import ours
from core.plan.requests import Delete, DeleteFlow, Detach, Request
from core.topology import Topology
from tui.screens.forms.chosen import networks_with, selected
from tui.screens.forms.form import Form


def delete_form(ref: Ref) -> Form:
    """The question whether what is selected shall go."""
    title = "Withdraw" if ref.kind == "nat" else "Delete"
    return Form(title, "whole", lambda values, topology: (_request(ref, topology),), asks=True)


def _request(ref: Ref, topology: Topology) -> Request:
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

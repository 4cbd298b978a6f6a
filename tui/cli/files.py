"""Run `vnet-tui apply`, `export`, `cleanup`, and list networks."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from core.collect.etcd import joined_networks
from core.files import PUBLIC, WriteError, write_whole
from core.model import Container, Network, link_ref
from core.operations import ForgetAttachment, SetRules, SetStormGuard
from core.plan import Plan, Refused, VnetNetwork, VnetState, rules, vnet_state
from core.plan.desired_state import BadFile, Desired, difference, parse
from core.plan.export import export
from core.plan.requests import Delete, Request, Unpublish
from core.plan.untracked import restore_tracking
from core.text import safe
from core.topology import Topology
from tui.cli.console import approve, print_json, print_table
from tui.cli.perform import (
    WHOLE,
    perform,
    persistent_attachments,
    plan_requests,
    read_topology,
    with_frr,
)
from tui.command import CommandError, unreadable

_MOST_TEXT = 1 << 24


def apply(options: argparse.Namespace) -> int:
    """Change the host to match a file; do nothing if nothing differs."""
    desired = _read(options.file)

    def planner(topology: Topology) -> Plan | Refused:
        requests = difference(desired, topology, options.prune)
        return plan_requests(requests, topology, f"apply {options.file}")

    return perform(options, planner, with_frr(WHOLE), None if options.yes else _confirm_plan)


def cleanup(options: argparse.Namespace) -> int:
    """Remove all that carries our tag."""

    def planner(topology: Topology) -> Plan | Refused:
        ours_all = difference(Desired(), topology, prune=True)
        # Ports are removed with their attachment, so they come first.
        first = [one for one in ours_all if isinstance(one, Unpublish)]
        rest = [one for one in ours_all if not isinstance(one, Unpublish)]
        requests = (*first, *_orphaned_attachments(topology), *rest)
        plan = _remove_orphaned_attachments(
            _remove_unused_table(plan_requests(requests, topology, "clean up"), topology)
        )
        return (
            plan
            if isinstance(plan, Refused)
            else replace(
                plan, steps=(*restore_tracking(topology), *_unguard_others(topology, plan), *plan.steps)
            )
        )

    return perform(options, planner, with_frr(WHOLE), None if options.yes else _confirm_plan)


def _unguard_others(topology: Topology, plan: Plan) -> Iterator[SetStormGuard]:
    """Yield the operations that remove storm guards from ports of other bridges."""
    removed = {step.name for step in plan.steps if isinstance(step, SetStormGuard)}
    for guard in topology.snapshot.storm_guards:
        link = topology.snapshot.link((guard.ns, guard.ifindex))
        if link is not None and link.name not in removed:
            yield SetStormGuard(link.name, "", str(guard.limits))


def write_export(options: argparse.Namespace) -> int:
    """Write the file that describes the existing networks."""
    urls = {name: one.endpoints for name, one in joined_networks().items()}
    text = export(read_topology(with_frr(WHOLE)), urls)
    try:
        content = text.encode()
    except UnicodeEncodeError as error:
        line = text[: error.end].count("\n")
        raise CommandError(
            f"can't export a name that isn't UTF-8: TOML forbids it in {safe(text.splitlines()[line])}. "
            "Try: rename it"
        ) from None
    if options.file == "-":
        sys.stdout.write(text)
        return 0
    try:
        write_whole(Path(options.file), content, PUBLIC)
    except WriteError as error:
        raise CommandError(str(error)) from None
    return 0


def _read(name: str) -> Desired:
    try:
        with nullcontext(sys.stdin) if name == "-" else Path(name).open() as file:
            text = file.read(_MOST_TEXT + 1)
        if len(text) > _MOST_TEXT:
            raise CommandError(
                f"can't read {safe(name)}: it is too large. Try: a file from `vnet-tui export`"
            )
        return parse(text)
    except OSError as error:
        raise unreadable(name, error) from None
    except UnicodeDecodeError:
        raise CommandError(f"can't read {safe(name)}: it isn't UTF-8 text") from None
    except BadFile as error:
        reasons = "; ".join(map(safe, error.reasons))
        raise CommandError(f"can't read {safe(name)}: {reasons}") from None


def _confirm_plan(plan: Plan) -> bool:
    return approve(plan, f"Run these {len(plan.steps)} steps?")


def _orphaned_attachments(topology: Topology) -> list[Request]:
    """Return the attachments whose network is gone."""
    vnet = vnet_state(topology.snapshot, topology.host)
    ports = {member.port for member in vnet.members if member.network not in vnet.networks}
    net = topology.snapshot.nets[topology.host]
    return [Delete(link_ref(link.key)) for link in net.links.values() if link.name in ports]


def _remove_orphaned_attachments(plan: Plan | Refused) -> Plan | Refused:
    """Add the removal of persistent attachments whose network is gone."""
    if isinstance(plan, Refused):
        return plan
    gone = {step.want for step in plan.steps if isinstance(step, ForgetAttachment)}
    left = (ForgetAttachment(want) for want in persistent_attachments() if want not in gone)
    return replace(plan, steps=(*plan.steps, *left))


def _remove_unused_table(plan: Plan | Refused, topology: Topology) -> Plan | Refused:
    """Add the removal of vnet's nftables table if no network is left."""
    vnet = vnet_state(topology.snapshot, topology.host)
    if isinstance(plan, Refused) or not vnet.table or any(isinstance(step, SetRules) for step in plan.steps):
        return plan
    return Plan(
        plan.title,
        (*plan.steps, SetRules(rules.EMPTY, rules.EMPTY)),
        plan.warnings,
        plan.side_effects,
        plan.guarded,
    )


_COLUMNS = ("name", "engine", "kind", "subnets", "bridge", "containers")


def list_networks(topology: Topology, as_json: bool) -> int:
    """Print them, by name; those of vnet first."""
    found = [*_ours(topology), *_engines(topology)]
    if as_json:
        print_json({"networks": found})
        return 0
    rows = [
        [column.upper() for column in _COLUMNS],
        *([_cell(one[key]) for key in _COLUMNS] for one in found),
    ]
    print_table(rows)
    return 0


def _cell(value: Any) -> str:
    if isinstance(value, list):
        names = [one["name"] if isinstance(one, dict) else one for one in value]
        return safe(",".join(names)) or "-"
    return safe(str(value)) or "-"


def _ours(topology: Topology) -> Iterator[dict[str, Any]]:
    vnet = vnet_state(topology.snapshot, topology.host)
    for network in sorted(vnet.networks.values(), key=lambda one: one.name):
        yield {
            "name": network.name, "engine": "vnet", "kind": network.kind, "bridge": network.bridge,
            "subnets": list(network.subnets), "gateways": list(network.gateways), "mtu": network.mtu,
            "nat66": network.nat66, "uplink": network.uplink,
            "containers": list(_members(network, vnet, topology)),
            "joined": _joined(network, vnet),
        }  # fmt: skip


def _joined(network: VnetNetwork, vnet: VnetState) -> list[str]:
    names = {name for pair in vnet.joined if network.name in pair for name in pair}
    return sorted(names - {network.name})


def _members(network: VnetNetwork, vnet: VnetState, topology: Topology) -> Iterator[dict[str, Any]]:
    for member in vnet.members:
        if member.network == network.name:
            found = topology.containers.get(member.container)
            addresses = {one.partition("/")[0] for one in member.addresses}
            yield {
                "name": found.name if found else member.container.partition(":")[2],
                "uid": member.container, "link": member.link, "port": member.port,
                "addresses": list(member.addresses),
                "published": [one.port_id for one in vnet.ports if one.address in addresses],
            }  # fmt: skip


def _engines(topology: Topology) -> Iterator[dict[str, Any]]:
    for engine in topology.snapshot.engines.values():
        for network in sorted(engine.networks, key=lambda one: one.name):
            kind = topology.network(network.id)
            yield {
                "name": network.name, "engine": engine.name, "kind": kind.kind if kind else network.kind,
                "bridge": network.bridge, "subnets": list(network.subnets),
                "gateways": list(network.gateways), "mtu": network.mtu, "nat66": False, "uplink": "",
                "containers": [_end(one, network) for one in engine.containers if one.endpoints_of(network)],
                "joined": [],
            }  # fmt: skip


def _end(container: Container, network: Network) -> dict[str, Any]:
    end = container.endpoints_of(network)[0]
    return {
        "name": container.name, "uid": container.uid, "link": "", "port": "",
        "addresses": [one for one in (end.ipv4, end.ipv6) if one],
        "published": [],
    }  # fmt: skip

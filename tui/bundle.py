"""Write one moment into an archive for a bug report (see docs/recording.md)."""

from __future__ import annotations

import io
import json
import os
import re
import sys
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np

from core.codec import plain
from core.diagnose import Finding, examine
from core.export import document_lines
from core.flows.merge import table_of
from core.model import Change, FastFlows, Firewall, LinkStats
from core.serialize import FAST_FILE, SNAPSHOT_FILE, json_pieces
from core.text import safe
from core.topology import Topology
from core.topology.flow_index import FlowView
from tui.cli.show import write_lists
from tui.moments import clock_text
from tui.services import LoggedChange, PastChange
from tui.views.flows_detail import flow_text

TOPICS = (
    "namespaces", "links", "bridges", "veths", "containers", "networks", "nat", "conntrack", "routes",
)  # fmt: skip
_MOST_FLOWS = 10_000  # as sentences
_MOST_ROWS = 10_000  # of a list as text; the JSON has all
_COMPRESSED = 3  # higher levels take several times as long for 10 % less
_READ_ME = """\
One moment of the networks of a host, as vnet-tui saw it. Open it, anywhere and without root:

    vnet-tui --from {name}.tar.gz

It holds addresses, MAC addresses, names of hosts, containers, networks, images and processes, labels,
firewall rules and connections. Check it before you share it.

{files}
"""
_FILES = {
    SNAPSHOT_FILE: "everything that was read, as `vnet-tui dump` writes it",
    "show.txt": "the lists of the dashboard as text (the first 10,000 rows of each)",
    "show.json": "the lists as `vnet-tui show --json` prints them",
    "flows.txt": "flows, one per line, the fastest first",
    "rules/": "the firewall rules of each namespace, as nft and iptables print them",
    "problems.txt": "findings, and what couldn't be read",
    "events.txt": "changes seen before this moment",
    "commands.json": "the commands that this session ran",
    "history.json": "earlier changes by vnet-tui on this host, with their commands",
    "counters.json": "the links' counters",
    FAST_FILE: "the fast path's counters of each flow",
    "about.json": "versions of vnet-tui, the kernel and the engines",
}


@dataclass(frozen=True, slots=True)
class BundleContents:
    """Contents of a bundle; None or empty where there is none.

    `flows` have the speeds that were measured.
    """

    topology: Topology
    flows: FlowView | None = None
    counters: LinkStats | None = None
    fast: FastFlows | None = None
    changes: Sequence[Change] = ()
    log: Sequence[LoggedChange] = ()
    history: Sequence[PastChange] = ()


def bundle_of(name: str, kept: BundleContents) -> bytes:
    """Return the content of a bundle with that file name."""
    made = io.BytesIO()
    _archive(made, name.removesuffix(".tar.gz"), kept)
    return made.getvalue()


def _archive(file: Any, name: str, kept: BundleContents) -> None:
    folder = re.sub(r"[^A-Za-z0-9._-]", "_", name)[:60] or "vnet-bundle"
    moment = int(max(0.0, min(kept.topology.snapshot.taken_at, 0o77777777777)))
    with tarfile.open(
        fileobj=file, mode="w:gz", compresslevel=_COMPRESSED, format=tarfile.USTAR_FORMAT
    ) as archive:
        for part, pieces in _parts(folder, kept):
            content = io.BytesIO()
            content.writelines(piece.encode("utf-8", "backslashreplace") for piece in pieces)
            member = tarfile.TarInfo(f"{folder}/{part}")
            member.size, member.mtime, member.mode = content.tell(), moment, 0o600
            content.seek(0)
            archive.addfile(member, content)


def _parts(name: str, kept: BundleContents) -> Iterator[tuple[str, Iterable[str]]]:
    """Yield names and contents of the files, the snapshot first.

    Contents come in pieces: one large text would block every other thread.
    """
    topology = kept.topology
    yield SNAPSHOT_FILE, json_pieces(topology.snapshot)
    files = "\n".join(f"{part:<16}{words}" for part, words in _FILES.items())
    yield "README.txt", [_READ_ME.format(name=name, files=files)]
    yield "about.json", _json(_about(topology))
    yield "show.txt", _lists(topology)
    yield "show.json", document_lines(topology, TOPICS, None)
    yield "flows.txt", _lines(_flows(kept.flows or _unmeasured(topology, kept.fast)))
    for firewall in topology.snapshot.firewalls.values():
        if firewall.rules or firewall.chains:
            label = re.sub(r"[^A-Za-z0-9._-]", "_", topology.label(firewall.ns))[:40]
            yield f"rules/{label}-{firewall.ns}.txt", _rules(firewall)
    yield "problems.txt", _lines(_troubles(topology))
    yield "events.txt", _lines(f"{clock_text(each.at)} {each.sentence}" for each in kept.changes)
    yield "commands.json", _json([_logged(one) for one in kept.log])
    yield "history.json", _json([_earlier(one) for one in kept.history])
    if kept.counters is not None:
        yield "counters.json", _json(plain(kept.counters))
    if kept.fast is not None:
        yield FAST_FILE, _json(plain(kept.fast))


def _about(topology: Topology) -> dict[str, Any]:
    snapshot = topology.snapshot
    here = os.uname()
    return {
        "vnet-tui": version("vnet-tui"),
        "taken_at": snapshot.taken_at,
        "taken": clock_text(snapshot.taken_at),
        "hostname": snapshot.host.hostname,
        "kernel": snapshot.host.kernel,
        "missing_capabilities": list(snapshot.host.missing_capabilities),
        "engines": {each.name: {"state": each.state, "version": each.version}
                    for each in snapshot.engines.values()},
        "written_on": f"{here.sysname} {here.release} {here.machine}, Python {sys.version.split()[0]}",
    }  # fmt: skip


def _lists(topology: Topology) -> Iterable[str]:
    made = io.StringIO()
    write_lists(topology, TOPICS, made, _MOST_ROWS)
    made.seek(0)
    return made


def _unmeasured(topology: Topology, fast: FastFlows | None) -> FlowView:
    snapshot = topology.snapshot
    return FlowView.of(topology, table_of(snapshot.conntracks, fast, snapshot.taken_at))


def _flows(flow_view: FlowView) -> Iterator[str]:
    """Yield the flows at the edge, the fastest first, then the biggest."""
    table, rows = flow_view.table, np.flatnonzero(flow_view.index.edge)
    speeds, sizes = np.nan_to_num(table.bits[rows]), table.octets[rows].sum(axis=1).astype(float)
    order = rows[np.lexsort((-sizes, -speeds))]
    yield from (flow_text(flow_view, row) for row in order[:_MOST_FLOWS].tolist())
    if len(order) > _MOST_FLOWS:
        yield f"... and {len(order) - _MOST_FLOWS} more: {SNAPSHOT_FILE} has all"


def _rules(firewall: Firewall) -> Iterator[str]:
    lines: list[str] = []
    rules = {(each.backend, each.family, each.table, each.name): each for each in firewall.chains}
    places = dict.fromkeys(
        [*rules, *((one.backend, one.family, one.table, one.chain) for one in firewall.rules)]
    )
    for place in places:
        chain = rules.get(place)
        hook = f" ({chain.kind} hook {chain.hook} priority {chain.priority})" if chain and chain.hook else ""
        policy = f" policy {chain.policy}" if chain and chain.policy else ""
        backend, family, table, name = place
        lines.append(f"# {backend}: {family} {table} {name}{hook}{policy}")
        for one in firewall.rules:
            if (one.backend, one.family, one.table, one.chain) == place:
                counted = "" if one.packets is None else f"  # {one.packets} packets {one.bytes} bytes"
                lines.append(f"{one.text}{counted}")
        lines.append("")
    return _lines(lines)


def _troubles(topology: Topology) -> Iterator[str]:
    yield from (_finding(each) for each in examine(topology).findings)
    for problem in topology.snapshot.problems:
        where = f"{topology.label(problem.ns)}: " if problem.ns is not None else ""
        yield f"not read: {where}{problem.sentence}"


def _finding(finding: Finding) -> str:
    advice = f" Try: {finding.advice}" if finding.advice else ""
    return f"{finding.severity}: {finding.sentence}{advice}"


def _logged(one: LoggedChange) -> dict[str, Any]:
    return {
        "title": one.title,
        "at": one.at,
        "commands": one.commands,
        "end": one.end,
        "errors": list(one.errors),
    }


def _earlier(one: PastChange) -> dict[str, Any]:
    commands = [step.command() for step in one.begun]
    return {
        "id": one.entry_id, "title": one.title, "at": one.at, "commands": commands, "end": one.end,
        "errors": list(one.errors),
    }  # fmt: skip


def _lines(lines: Iterable[str]) -> Iterator[str]:
    return (f"{safe(line)}\n" for line in lines)


def _json(value: Any) -> Iterator[str]:
    yield from json.JSONEncoder(indent=1).iterencode(value)
    yield "\n"

"""The doctor view: what is wrong on the host, with evidence and repairs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

from core.diagnose import Finding, diagnosis_of
from core.model import Part, Ref
from core.text import safe, split_commands
from core.topology import Topology
from tui.views import cells
from tui.views.cells import Line
from tui.views.findings import name_of, tone_of
from tui.views.links import missing_detail
from tui.views.lists import ListRows
from tui.views.rows import Cell, Column, Detail, ListView, Row, ViewContext

COLUMNS = (
    Column("severity", "", 4),
    Column("finding", "what is wrong", 60, grow=1),
    Column("kind", "kind", 11, priority=2),
    Column("item", "where", 22, priority=1),
    Column("fix", "fix", 3, priority=3),
    Column("since", "since", 8, priority=1),
)
_ORDER = {"bad": 0.0, "warn": 1.0, "info": 2.0}


def by_id(topology: Topology) -> Mapping[str, Finding]:
    """Return all findings of a topology by id; cached."""
    return diagnosis_of(topology).by_id


def finding_of(topology: Topology, ref: Ref) -> Finding | None:
    """Return the finding with that ref, None if it is gone."""
    return by_id(topology).get(str(ref.key[0]))


def rows(context: ViewContext) -> ListRows:
    """Return the findings, the worst first, muted ones last."""
    if context.snapshot.pending:
        return ListRows((), COLUMNS)
    found = [_row(context, name, one) for name, one in by_id(context.topology).items()]
    return ListRows(sorted(found, key=lambda row: row.cells[0].sort or 0.0), COLUMNS)


def _row(context: ViewContext, name: str, one: Finding) -> Row:
    muted = name in context.muted
    tone = "dim" if muted else tone_of(one)
    since = context.since.get(name, 0.0)
    clock = time.strftime("%H:%M:%S", time.localtime(since)) if since else ""
    where = name_of(context.topology, one.ref)
    has_fix = one.fix is not None and bool(one.fix.steps)
    return Row(
        Ref("finding", (name,)),
        (
            Cell("mute" if muted else one.severity, tone, _ORDER[one.severity] + 3 * muted),
            cells.text(one.sentence, tone), cells.text(one.kind, "dim"), cells.text(where),
            Cell("F", "accent") if has_fix and not muted else cells.NONE,
            Cell(clock, "accent", since) if clock else Cell("–", "dim", 0.0),
        ),
        {"kind": safe(one.kind), "state": "muted" if muted else one.severity}
        | dict.fromkeys(("ct", "name", "net", "ns"), safe(f"{where} {one.sentence}")),
    )  # fmt: skip


def detail(context: ViewContext, ref: Ref) -> Detail:
    """Return a finding's details: evidence, what to try, and what it concerns."""
    topology, one = context.topology, finding_of(context.topology, ref)
    if one is None:
        return missing_detail("this finding")
    related = [(safe(name_of(topology, each)), each) for each in dict.fromkeys((one.ref, *one.related))]
    return Detail(
        safe(one.short),
        (
            *cells.section("Finding", [("", cells.text(one.sentence, tone_of(one)), None)]),
            *cells.section("Evidence", [("", cells.text(each), None) for each in one.evidence]),
            *cells.section("Try", _advice(one)),
            *cells.section("Concerns", [("", cells.text(label), each) for label, each in related]),
        ),
        related,
        safe(one.sentence),
    )


def _advice(one: Finding) -> Iterator[Line]:
    advice, commands = split_commands(one.advice)
    if one.fix is not None and one.fix.steps:
        yield "F", cells.text(one.fix.sentence, "accent"), None
    if advice and (one.fix is None or advice != one.fix.sentence):
        yield "", cells.text(advice), None
    for command in commands:
        yield "", cells.text(command, "accent"), None


VIEW = ListView(
    "doctor", "Doctor", ("findings", "doc"), COLUMNS, rows,
    empty=(
        "Nothing is wrong. Links, routes, rules, addresses and published ports are checked after each "
        "change; services on other ports aren't: w asks about one."
    ),
    help=(
        ("F", "preview the repair of the selected finding"),
        ("I", "mute the selected finding, or show it again"),
        ("state:bad", "what doesn't work; also warn, info, muted"),
        ("kind:mtu", "findings of one kind"),
    ),
    parts=frozenset({Part.NAMESPACES, Part.LINKS, Part.FIREWALL, Part.CONTAINERS}),
    stays_on_top=True,
)  # fmt: skip

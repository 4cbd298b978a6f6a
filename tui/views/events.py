"""The events view: changes on the host as sentences, newest first."""

from __future__ import annotations

import time

from core.model import Change, Ref
from core.text import safe
from tui.views import cells
from tui.views.links import missing_detail
from tui.views.lists import ListRows
from tui.views.rows import Cell, Column, Detail, ListView, Row, Tone, ViewContext

COLUMNS = (
    Column("time", "time", 8),
    Column("sentence", "what happened", 76, grow=1),
    Column("state", "action", 7, priority=1),
    Column("kind", "kind", 9, priority=1),
)
_TONES: dict[str, Tone] = {"added": "ok", "removed": "warn", "changed": ""}


def rows(context: ViewContext) -> ListRows:
    """Return the log, newest first."""
    made = [_row(ref, change) for ref, change in context.log.numbered()]
    return ListRows(made[::-1], COLUMNS)


def _row(ref: Ref, change: Change) -> Row:
    clock = time.strftime("%H:%M:%S", time.localtime(change.at))
    tone: Tone = (
        "bad" if change.ref.kind == "problem" and change.action == "added" else _TONES.get(change.action, "")
    )
    return Row(
        ref,
        (
            Cell(clock, "dim", change.at), cells.text(change.sentence, tone),
            cells.text(change.action, tone), cells.text(change.ref.kind, "dim"),
        ),
        # An event is about all that its sentence names.
        {"kind": safe(change.ref.kind), "state": safe(change.action)}
        | dict.fromkeys(("ct", "name", "net", "ns"), safe(change.sentence)),
    )  # fmt: skip


def detail(context: ViewContext, ref: Ref) -> Detail:
    """Return the details of one change and of the object that changed."""
    change = context.log.change(ref)
    if change is None:
        return missing_detail("this event")
    moment = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(change.at))
    return Detail(
        f"{safe(change.ref.kind)} {safe(change.action)}",
        cells.section(
            "Event", (("", cells.text(change.sentence), None), ("time", Cell(moment), None))
        ),
        ((f"the {safe(change.ref.kind)}", change.ref),),
        safe(f"{moment} {change.sentence}"),
    )  # fmt: skip


VIEW = ListView(
    "events", "Events", ("log", "ev"), COLUMNS, rows,
    empty="Nothing has changed since the start. Links, addresses, containers and rules that are added, "
    "removed or changed are listed here.",
    empty_file="A file shows one moment: nothing changes in it.",
    help=(
        ("action:removed", "removed items; also added, changed"),
        ("kind:container", "events of containers"),
        ("ct:NAME ns:NAME", "events that name a container or namespace"),
    ),
    parts=frozenset(),
    problem_parts=(),
    stays_on_top=True,
)  # fmt: skip

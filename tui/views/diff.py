"""The diff view: what changed since a mark, a file, or the start of a recording."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from core.model import Ref
from core.text import safe
from tui.views import cells
from tui.views.links import missing_detail
from tui.views.lists import ListRows
from tui.views.rows import Cell, Column, Detail, ListView, Row, Tone, ViewContext

if TYPE_CHECKING:
    from core.diff.compare import Difference

COLUMNS = (
    Column("topic", "topic", 11),
    Column("sentence", "what changed", 60, grow=1),
    Column("time", "when", 8, priority=1),
    Column("state", "action", 7, priority=2),
)
_TONES: dict[str, Tone] = {"added": "ok", "removed": "warn"}
_HOW = (
    "M marks this moment, and :diff lists what changed since. :diff FILE compares with a dump, a bundle or a "
    "recording (:diff FILE@-5m, five minutes before its end)."
)


class DiffRows(ListRows):
    """Differences with a line above them, and the reason if there are none."""

    __slots__ = ("empty", "head")

    def __init__(self, rows: Sequence[Row], head: tuple[Cell, ...] = (), empty: str = "") -> None:
        super().__init__(rows, COLUMNS)
        self.head, self.empty = head, empty

    def _of(self, rows: Sequence[Row]) -> DiffRows:
        some = DiffRows(rows, self.head, self.empty)
        some._needs = self.needs()
        return some


def rows(context: ViewContext) -> DiffRows:
    """Return the differences, the likeliest suspects first."""
    baseline = context.baseline
    if baseline is None:
        return DiffRows((), empty=f"Nothing to compare with yet. {_HOW}")
    since = safe(baseline.title)
    found = baseline.differences(context.snapshot)
    if not found:
        return DiffRows((), empty=f"No difference since {since}. {_HOW}")
    times = _times(context)
    count = f"{len(found)} difference{'s' * (len(found) != 1)}"
    head = Cell(f"{count} since {since}, likeliest suspects first", "dim")
    return DiffRows([_row(each, times.get(each.sentence, 0.0)) for each in found], (head,))


def _times(context: ViewContext) -> dict[str, float]:
    """Return when the events with these sentences happened, the newest one of each."""
    return {change.sentence: change.at for change in context.log.changes}


def _row(each: Difference, at: float) -> Row:
    tone = _TONES.get(each.action, "")
    clock = Cell(time.strftime("%H:%M:%S", time.localtime(at)), "dim", at) if at else cells.NONE
    words = safe(each.sentence)
    return Row(
        _ref(each),
        (cells.text(each.topic), cells.text(each.sentence, tone), clock, cells.text(each.action, tone)),
        # A difference is about all that its sentence names.
        {"kind": safe(each.ref.kind)} | dict.fromkeys(("ct", "name", "net", "ns"), words),
    )


def _ref(each: Difference) -> Ref:
    return Ref("difference", (each.sentence,))


def difference(context: ViewContext, ref: Ref) -> Difference | None:
    """Return the difference of a ref, None if it no longer exists."""
    found = context.baseline.differences(context.snapshot) if context.baseline else ()
    return next((each for each in found if _ref(each) == ref), None)


def detail(context: ViewContext, ref: Ref) -> Detail:
    """Return the details of one difference and the object that differs."""
    each = difference(context, ref)
    if each is None or context.baseline is None:
        return missing_detail("this difference")
    at = _times(context).get(each.sentence)
    when = Cell(time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))) if at else cells.NONE
    return Detail(
        f"{each.topic} {safe(each.action)}",
        cells.section(
            "Difference",
            (
                ("", cells.text(each.sentence), None),
                ("since", cells.text(context.baseline.title), None),
                ("when", when, None),
            ),
        ),
        ((f"the {safe(each.ref.kind)}", each.ref),),
        safe(each.sentence),
    )


VIEW = ListView(
    "diff", "Differences", ("difference", "since"), COLUMNS, rows,
    empty=f"Nothing to compare with yet. {_HOW}",
    help=(
        ("M", "mark this moment; :diff lists what changed since"),
        (":diff FILE@TIME", "compare with a dump, a bundle, or a moment of a recording"),
        ("topic:route", "also state, address, policy rule, sysctl, firewall, nat, container, mtu"),
        ("action:removed", "also added, changed"),
        ("ct:NAME ns:NAME", "differences that name a container or namespace"),
    ),
    problem_parts=(),
)  # fmt: skip

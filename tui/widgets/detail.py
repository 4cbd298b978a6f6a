"""The detail pane: everything about the selected thing, and related things."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from textual.message import Message
from textual.strip import Strip

from core.model import Ref
from core.rates import MINUTES, WINDOWS
from core.text import safe
from tui.views.cells import curve_text, scale
from tui.views.formatting import cut, fit, width_of, wrapped
from tui.views.rows import Cell, Detail, Section, Tone, Trend
from tui.widgets.lines import LinesPane, Span, strip_of

_LABELS_AT_MOST = 18
_FIVE_MINUTES = WINDOWS.index(MINUTES)


@dataclass(frozen=True, slots=True)
class DetailLine:
    """A painted line: `lead` in its own tone, then `text`.

    `ref` is where Enter leads; `marked` is set on the first line of a wrapped text, which shows it.
    """

    lead: str
    text: str
    tone: str = ""
    lead_tone: str = "dim"
    ref: Ref | None = None
    marked: bool = True


class DetailPane(LinesPane):
    """Show one `Detail`."""

    class Opened(Message):
        """A person asks to follow to this related thing."""

        def __init__(self, ref: Ref) -> None:
            super().__init__()
            self.ref = ref

    def __init__(self, **arguments: str | None) -> None:
        super().__init__(**arguments)
        self.detail: Detail | None = None
        self.lines: tuple[DetailLine, ...] = ()
        self.about: Ref | None = None
        self.window = _FIVE_MINUTES

    def show(self, about: Ref | None, detail: Detail | None) -> None:
        """Show details of `about`; the cursor stays if it is the same thing."""
        if about != self.about:
            self.cursor = self.top = 0
        self.about, self.detail = about, detail
        self._lay_out()
        self.repaint()

    def next_window(self) -> None:
        """Show curves of another length of time."""
        self.window = (self.window + 1) % len(WINDOWS)
        self._lay_out()
        self.repaint()

    def _lay_out(self) -> None:
        width = max(10, self.size.width - 3)
        self.lines = tuple(detail_lines(self.detail, width, self.window)) if self.detail else ()
        self.cursor = max(0, min(self.cursor, len(self.lines) - 1))

    def on_resize(self) -> None:
        """Wrap for the new size."""
        self._lay_out()

    def selected_text(self) -> str:
        """Return the text of the line under the cursor."""
        line = self.lines[self.cursor] if self.lines else None
        return (line.text.strip() or line.lead.strip()) if line else ""

    # ---- lines

    def line_count(self) -> int:
        return len(self.lines)

    def paint_lines(self, first: int, last: int, width: int) -> list[Strip]:
        return [self._line(place, width) for place in range(first, last)]

    def _line(self, place: int, width: int) -> Strip:
        line = self.lines[place]
        over = "cursor" if place == self.cursor and self.has_focus else ""
        spans: list[Span] = [("▌" if over else " ", self.style_of("accent", over))]
        if line.lead:
            spans.append((line.lead, self.style_of(line.lead_tone, over)))
        spans.append((line.text, self.style_of(line.tone, over)))
        if line.ref is not None and line.marked:
            used = sum(width_of(text) for text, _ in spans)
            if used < width - 2:
                spans.append((" " * (width - 2 - used), self.style_of("", over)))
            spans = [*spans, ("› ", self.style_of("accent", over))]
            head = strip_of(spans[:-1], width - 2)
            return Strip.join([head, strip_of(spans[-1:], 2)])
        return strip_of(spans, width, self.style_of("", over) if over else None)

    def action_open(self) -> None:
        """Follow the line under the cursor; without one, the foremost related thing."""
        ref = self.lines[self.cursor].ref if self.lines else None
        if ref is not None:
            self.post_message(self.Opened(ref))


def detail_lines(detail: Detail, width: int, window: int = _FIVE_MINUTES) -> Iterator[DetailLine]:
    """Yield the details as lines of at most `width` cells, with curves of one window."""
    yield DetailLine("", cut(safe(detail.title), width), "title")
    column = _label_width(detail.sections, width)
    for section in detail.sections:
        yield DetailLine("", "")
        if section.title:
            yield DetailLine("", cut(safe(section.title), width), "heading")
        yield from _section_lines(section, column, width, window)
    linked = {ref for section in detail.sections for _, _, ref in section.lines}
    further = [(label, ref) for label, ref in detail.related if ref not in linked]
    if further:
        yield DetailLine("", "")
        yield DetailLine("", "Related", "heading")
        for label, ref in further:
            yield DetailLine("→ ", cut(safe(label), width - 4), "", "accent", ref)


def _label_width(sections: Sequence[Section], width: int) -> int:
    """Return one width for all labels, so that the values are aligned."""
    labels = [width_of(safe(label)) for section in sections for label, _, _ in section.lines]
    return min(max(labels, default=0), _LABELS_AT_MOST, max(4, width // 2))


def _section_lines(section: Section, column: int, width: int, window: int) -> Iterator[DetailLine]:
    for label, cell, ref in section.lines:
        if isinstance(cell, Trend):
            yield from _trend_lines(safe(label), cell, column, width, window)
        else:
            yield from _wrapped(safe(label), cell, ref, column if label else 0, width)


def _trend_lines(label: str, trend: Trend, column: int, width: int, window: int) -> Iterator[DetailLine]:
    """Yield the lines for a figure: its scale beside it if it fits, its curve below."""
    text, rest = trend.text, [*scale(trend, window)]
    while rest and width_of(f"{text}, {rest[0]}") <= width - column - 2:
        text = f"{text}, {rest.pop(0)}"
    curve = curve_text(trend, window, width, rest)
    yield from _wrapped(label, Cell(text, trend.tone), None, column, width)
    if curve:
        yield DetailLine("", curve, "accent")


def _wrapped(label: str, cell: Cell, ref: Ref | None, column: int, width: int) -> Iterator[DetailLine]:
    lead = fit(label, column) + "  " if column else ""
    room = max(6, width - width_of(lead) - (2 if ref else 0))
    tone: Tone = cell.tone
    text = safe(cell.text)
    parts = [text] if width_of(text) <= room else wrapped(text, room)
    for number, part in enumerate(parts):
        yield DetailLine(lead if not number else " " * width_of(lead), part, tone, "dim", ref, not number)

"""A pane of many lines with a cursor; only visible lines are made."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.app import App
from textual.color import Color
from textual.filter import LineFilter
from textual.geometry import Region
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from tui import keys
from tui.views.formatting import ELLIPSIS, ascii_only, width_of
from tui.views.rows import Tone

Span = tuple[str, Style]


def strip_of(spans: Iterable[Span], width: int, fill: Style | None = None) -> Strip:
    """Return spans as a line of exactly `width` cells.

    An ellipsis marks text that is cut off, so that no part of a figure looks like the whole.
    """
    strip = Strip([Segment(text, style) for text, style in spans if text])
    if strip.cell_length <= width or width < 1 or width_of(strip.text.rstrip()) <= width:
        return strip.adjust_cell_length(width, fill)
    kept = [*strip.crop(0, width - 1)]
    return Strip([*kept, Segment(ELLIPSIS, kept[-1].style if kept else None)]).adjust_cell_length(width, fill)


class TonedApp(App[None]):
    """An application that keeps the styles of tones for all painted widgets.

    Textual computes a node's component styles again at each change of its classes or size; on every widget
    that took a third of the time to the first paint.
    """

    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "tone--plain", "tone--ok", "tone--warn", "tone--bad", "tone--dim", "tone--accent", "tone--title",
        "tone--heading", "tone--key", "tone--faint", "tone--tab", "tone--caret", "tone--badge",
        "tone--badge-warn", "tone--badge-bad", "tone--cursor", "tone--cursor-blurred",
    }  # fmt: skip

    def tone(self, name: str) -> Style:
        """Return the style of a tone, with only the attributes that it sets."""
        return self.get_component_styles(f"tone--{name}").partial_rich_style


class Painted(Widget):
    """A widget whose lines come from `paint`; call `repaint` when they may change."""

    ALLOW_SELECT = False

    def __init__(self, **arguments: str | None) -> None:
        super().__init__(**arguments)  # type: ignore[arg-type]
        self._lines: list[Strip] = []
        self._styles_by_name: dict[tuple[str, str], Style] = {}

    def paint(self, width: int, height: int) -> list[Strip]:
        """Return the lines of the widget; missing ones are blank."""
        raise NotImplementedError

    def style_of(self, name: Tone | str, over: str = "") -> Style:
        """Return the style of a tone, on the background of the component `over` if given."""
        key = (name, over)
        if key not in self._styles_by_name:
            app = self.app
            assert isinstance(app, TonedApp)
            style = app.tone(name or "plain")
            if over:
                base = app.tone(over)
                style = base if base.reverse else style + Style(bgcolor=base.bgcolor, bold=base.bold)
            self._styles_by_name[key] = style
        return self._styles_by_name[key]

    def repaint(self) -> None:
        """Paint, and show the lines that differ."""
        if not self.is_attached:
            return
        width, height = self.size
        before, self._lines = self._lines, self.paint(width, height)[:height] if width and height else []
        if len(before) != len(self._lines):
            self.refresh()
            return
        differing = [y for y, line in enumerate(self._lines) if line != before[y]]
        if differing:
            self.refresh(*(Region(0, y, width, 1) for y in differing))

    def render_line(self, y: int) -> Strip:
        """Return one line, for Textual."""
        line = self._lines[y] if y < len(self._lines) else Strip.blank(self.size.width)
        return line.apply_style(self.rich_style)

    def on_resize(self) -> None:
        """Fill the new size."""
        self.repaint()

    def notify_style_update(self) -> None:
        """Take over another theme's colours; component styles follow after this call."""
        super().notify_style_update()
        self.call_later(self._restyle)

    def _restyle(self) -> None:
        self._styles_by_name.clear()
        self.repaint()


_WHEEL_LINES = 3


class LinesPane(Painted, can_focus=True):
    """Base of panes of lines: subclasses count and paint them."""

    BINDINGS = keys.bindings("lines", "fold")

    header_height = 0

    class Barrier(Message):
        """Follow this pane's messages through their queues: all before it are handled."""

        def __init__(self) -> None:
            super().__init__()
            self.passed = asyncio.Event()

    def __init__(self, **arguments: str | None) -> None:
        super().__init__(**arguments)
        self.cursor = 0
        self.top = 0
        self._dragging = False
        self._unpainted = False

    # ---- what subclasses say

    def line_count(self) -> int:
        """Return the number of lines."""
        raise NotImplementedError

    def paint_lines(self, first: int, last: int, width: int) -> list[Strip]:
        """Return the lines from `first` up to `last`, exclusive."""
        raise NotImplementedError

    def paint_header(self, width: int) -> list[Strip]:
        """Return the `header_height` lines that stay on top."""
        return []

    def paint_empty(self, width: int, height: int) -> list[Strip]:
        """Return what is shown if there are no lines."""
        return []

    def moved(self) -> None:
        """Handle a move of the cursor by the user."""

    # ---- painting

    @property
    def page(self) -> int:
        """How many lines are in sight."""
        return max(1, self.size.height - self.header_height)

    def paint(self, width: int, height: int) -> list[Strip]:
        """Return the visible lines, with a scroll bar if there are more."""
        count, page = self.line_count(), self.page
        header = self.paint_header(width)
        if not count:
            return header + self.paint_empty(width, height - len(header))
        self.top = max(0, min(self.top, count - page))
        if count <= page:
            return header + self.paint_lines(self.top, count, width)
        lines = self.paint_lines(self.top, min(count, self.top + page), width - 1)
        size, place = self._thumb(count, page)
        return header + [
            Strip.join([line, self._scroll_cell(place <= y < place + size)]) for y, line in enumerate(lines)
        ]

    def _thumb(self, count: int, page: int) -> tuple[int, int]:
        """Return the length and the position of the scroll bar's thumb."""
        size = max(1, page * page // count)
        return size, round(self.top * (page - size) / max(1, count - page))

    def _scroll_cell(self, thumb: bool) -> Strip:
        return strip_of([("█", self.style_of("dim")) if thumb else (" ", self.style_of("faint"))], 1)

    def cursor_style(self) -> str:
        """Return the name of the background style of the cursor's line."""
        return "cursor" if self.has_focus else "cursor-blurred"

    def repaint(self) -> None:
        """Paint, unless the next step does."""
        if not self._unpainted:
            super().repaint()

    # ---- moving

    def move_unpainted(self, action: str) -> None:
        """Move one of several steps, of which only the last is painted and reported."""
        self._unpainted = True
        try:
            getattr(self, f"action_{action}")()
        finally:
            self._unpainted = False

    def move_to(self, line: int) -> None:
        """Put the cursor on a line, and bring it in sight."""
        count = self.line_count()
        self.cursor = max(0, min(line, count - 1))
        self.scroll_to_cursor()
        self.repaint()
        if count and not self._unpainted:
            self.moved()

    def scroll_to_cursor(self) -> None:
        """Scroll just as far as the cursor's line needs."""
        self.top = max(self.cursor - self.page + 1, min(self.top, self.cursor))

    def scroll_by(self, lines: int) -> None:
        """Scroll without moving the cursor."""
        self.top = max(0, min(self.top + lines, self.line_count() - self.page))
        self.repaint()

    def action_cursor_down(self) -> None:
        self.move_to(self.cursor + 1)

    def action_cursor_up(self) -> None:
        self.move_to(self.cursor - 1)

    def action_first(self) -> None:
        self.move_to(0)

    def action_last(self) -> None:
        self.move_to(self.line_count() - 1)

    def action_half_down(self) -> None:
        self._scroll_page(self.page // 2)

    def action_half_up(self) -> None:
        self._scroll_page(-(self.page // 2))

    def action_page_down(self) -> None:
        self._scroll_page(self.page - 1)

    def action_page_up(self) -> None:
        self._scroll_page(1 - self.page)

    def _scroll_page(self, lines: int) -> None:
        self.top += lines
        self.move_to(self.cursor + lines)

    def action_open(self) -> None:
        """Handle Enter; implemented by subclasses."""

    def action_left(self) -> None:
        """Fold; implemented by subclasses."""

    def action_right(self) -> None:
        """Unfold; implemented by subclasses."""

    # ---- mouse and focus

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        event.stop()
        self.scroll_by(_WHEEL_LINES)

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        event.stop()
        self.scroll_by(-_WHEEL_LINES)

    def on_mouse_down(self, event: events.MouseDown) -> None:
        if self._on_scroll_bar(event):
            self._dragging = True
            self.capture_mouse()
            self._drag_to(event.y)

    def on_mouse_move(self, event: events.MouseMove) -> None:
        if self._dragging:
            self._drag_to(event.y)

    def on_mouse_up(self) -> None:
        if self._dragging:
            self._dragging = False
            self.release_mouse()

    def _on_scroll_bar(self, event: events.MouseEvent) -> bool:
        inside = self.line_count() > self.page and event.y >= self.header_height
        return inside and event.x == self.size.width - 1

    def _drag_to(self, y: int) -> None:
        share = (y - self.header_height) / max(1, self.page - 1)
        self.top = round(share * (self.line_count() - self.page))
        self.scroll_by(0)

    def on_click(self, event: events.Click) -> None:
        """Select the clicked line, open it at a double click.

        Clicks on the header are for subclasses.
        """
        if self._on_scroll_bar(event):
            return
        if event.y < self.header_height:
            self.header_clicked(event.x)
            return
        line = self.top + event.y - self.header_height
        if line >= self.line_count():
            return
        if event.chain == 1:
            self.move_to(line)
        elif event.chain == 2:
            self.action_open()

    def header_clicked(self, x: int) -> None:
        """Handle a click on the header at that column of cells."""

    def on_focus(self) -> None:
        self.repaint()

    def on_blur(self) -> None:
        self.repaint()


class AsciiFilter(LineFilter):
    """Replace drawing characters in finished lines, also in Textual's own borders."""

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        """Return the same segments in ASCII."""
        return [Segment(ascii_only(text), style, control) for text, style, control in segments]

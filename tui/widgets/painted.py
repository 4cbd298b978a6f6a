"""Widgets that paint lines of their own: they repaint only the lines that differ, so that idle means idle."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from rich.cells import cell_len, chop_cells, set_cell_size
from rich.segment import Segment
from rich.style import Style
from textual.geometry import Region
from textual.strip import Strip
from textual.widget import Widget

from tui.present.glyphs import ELLIPSIS
from tui.present.rows import Tone

Span = tuple[str, Style]


def width_of(text: str) -> int:
    """The terminal cells that the text takes."""
    return len(text) if text.isascii() else cell_len(text)


def fit(text: str, width: int, right: bool = False) -> str:
    """The text in exactly `width` cells: padded, or cut with an ellipsis."""
    surplus = width - width_of(text)
    if surplus >= 0:
        return " " * surplus + text if right else text + " " * surplus
    return set_cell_size(text, width - 1) + ELLIPSIS if width > 0 else ""


def cut(text: str, width: int) -> str:
    """The text in at most `width` cells."""
    return text if width_of(text) <= width else fit(text, width)


def wrapped(text: str, width: int) -> list[str]:
    """The text in pieces of at most `width` cells, broken between words where that is possible."""
    lines = [""]
    for word in text.split(" "):
        pieces = [word] if width_of(word) <= width else chop_cells(word, width)
        for number, piece in enumerate(pieces):
            gap = " " if lines[-1] and not number else ""
            if not number and width_of(lines[-1] + gap + piece) <= width:
                lines[-1] += gap + piece
            else:
                lines.append(piece)
    return lines if lines[0] else lines[1:] or [""]


def strip_of(spans: Iterable[Span], width: int, fill: Style | None = None) -> Strip:
    """The spans as one line of exactly `width` cells, the rest filled."""
    strip = Strip([Segment(text, style) for text, style in spans if text])
    return strip.adjust_cell_length(width, fill)


class Painted(Widget):
    """A widget whose lines come from `paint`; call `repaint` whenever that may have changed."""

    ALLOW_SELECT = False
    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "tone--plain", "tone--ok", "tone--warn", "tone--bad", "tone--dim", "tone--accent", "tone--title",
        "tone--heading", "tone--key", "tone--faint", "tone--tab", "tone--caret", "tone--badge",
        "tone--badge-warn", "tone--cursor", "tone--cursor-blurred",
    }  # fmt: skip

    def __init__(self, **arguments: str | None) -> None:
        super().__init__(**arguments)  # type: ignore[arg-type]
        self._lines: list[Strip] = []
        self._styles_by_name: dict[tuple[str, str], Style] = {}

    def paint(self, width: int, height: int) -> list[Strip]:
        """The lines of the widget; missing ones are blank."""
        raise NotImplementedError

    def style_of(self, name: Tone | str, over: str = "") -> Style:
        """The style of a tone, on the background of another component where `over` names one."""
        key = (name, over)
        if key not in self._styles_by_name:
            style = self.get_component_rich_style(f"tone--{name or 'plain'}", partial=True)
            if over:
                base = self.get_component_rich_style(f"tone--{over}", partial=True)
                style = base if base.reverse else style + Style(bgcolor=base.bgcolor, bold=base.bold)
            self._styles_by_name[key] = style
        return self._styles_by_name[key]

    def repaint(self) -> None:
        """Paint anew and show the lines that differ."""
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
        """One line, for Textual."""
        line = self._lines[y] if y < len(self._lines) else Strip.blank(self.size.width)
        return line.apply_style(self.rich_style)

    def on_resize(self) -> None:
        """Fill the new size."""
        self.repaint()

    def notify_style_update(self) -> None:
        """Take up the colours of another theme; the component styles follow only after this call."""
        super().notify_style_update()
        self.call_later(self._restyle)

    def _restyle(self) -> None:
        self._styles_by_name.clear()
        self.repaint()

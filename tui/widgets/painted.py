"""Widgets that paint lines of their own: they repaint only the lines that differ, so that idle means idle."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from textual.app import App
from textual.geometry import Region
from textual.strip import Strip
from textual.widget import Widget

from tui.present.fitting import width_of
from tui.present.glyphs import ELLIPSIS
from tui.present.rows import Tone

Span = tuple[str, Style]


def strip_of(spans: Iterable[Span], width: int, fill: Style | None = None) -> Strip:
    """The spans as one line of exactly `width` cells, the rest filled; an ellipsis at its end where text is
    cut off, so that nobody takes half a figure for a whole one."""
    strip = Strip([Segment(text, style) for text, style in spans if text])
    if strip.cell_length <= width or width < 1 or width_of(strip.text.rstrip()) <= width:
        return strip.adjust_cell_length(width, fill)
    kept = [*strip.crop(0, width - 1)]
    return Strip([*kept, Segment(ELLIPSIS, kept[-1].style if kept else None)]).adjust_cell_length(width, fill)


class TonedApp(App[None]):
    """An application that holds the styles of tones once for all of its painted widgets.

    Textual computes the styles of a node's components again at each change of its classes or size; on every
    widget that took a third of the time from start to first paint.
    """

    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "tone--plain", "tone--ok", "tone--warn", "tone--bad", "tone--dim", "tone--accent", "tone--title",
        "tone--heading", "tone--key", "tone--faint", "tone--tab", "tone--caret", "tone--badge",
        "tone--badge-warn", "tone--badge-bad", "tone--cursor", "tone--cursor-blurred",
    }  # fmt: skip

    def tone(self, name: str) -> Style:
        """The style of a tone, without what it does not set."""
        return self.get_component_styles(f"tone--{name}").partial_rich_style


class Painted(Widget):
    """A widget whose lines come from `paint`; call `repaint` whenever that may have changed."""

    ALLOW_SELECT = False

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
            app = self.app
            assert isinstance(app, TonedApp)
            style = app.tone(name or "plain")
            if over:
                base = app.tone(over)
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

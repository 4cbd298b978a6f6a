"""Panes that lie over the dashboard until Esc: text in lines, scrolled with the same keys as everything."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.style import Style
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Vertical
from textual.strip import Strip

from tui.screens.dialog import Dialog
from tui.widgets.lines import LinesPane
from tui.widgets.painted import Span, strip_of

# The share of the terminal that the box may take, as the style sheet has it, in percent; and what its frame
# takes of that, in cells.
_MOST, _FRAME = 96, 4
# One line as (text, tone) pieces.
Line = Sequence[tuple[str, str]]


class TextPane(LinesPane):
    """Lines of text, made for the width that there is."""

    def __init__(self, make: Callable[[int], list[Line]]) -> None:
        super().__init__()
        self._make = make
        self.text: list[Line] = []

    def on_resize(self) -> None:
        """Lay the text out anew."""
        self.text = self._make(self.size.width - 2)

    def line_count(self) -> int:
        return len(self.text)

    def bring_in_sight(self) -> None:
        """The cursor is not shown here: moving scrolls."""
        self.top = self.cursor

    def action_cursor_down(self) -> None:
        self.scroll_by(1)

    def action_cursor_up(self) -> None:
        self.scroll_by(-1)

    def paint_lines(self, first: int, last: int, width: int) -> list[Strip]:
        return [self._line(self.text[place], width) for place in range(first, last)]

    def _line(self, line: Line, width: int) -> Strip:
        spans: list[Span] = [(" ", Style.null()), *((text, self.style_of(tone)) for text, tone in line)]
        return strip_of(spans, width)


class Overlay(Dialog[None]):
    """A titled pane of text over the dashboard."""

    BINDINGS = [Binding("escape,q", "dismiss", "Close", show=False)]

    def __init__(
        self, title: str, make: Callable[[int], list[Line]], width: int, also_closes: str = ""
    ) -> None:
        """`make` gives the lines for a width; `width` is what it would like; `also_closes` a further key."""
        super().__init__()
        self._title, self._text_maker, self._wanted = title, make, width
        if also_closes:
            self._bindings.bind(also_closes, "dismiss", show=False)

    def compose(self) -> ComposeResult:
        with Vertical() as box:
            box.border_title = self._title
            box.border_subtitle = "Esc closes"
            yield self.make_pane()

    def make_pane(self) -> TextPane:
        """The pane that shows the text."""
        return TextPane(self._text_maker)

    def on_mount(self) -> None:
        self._fit()

    def on_resize(self) -> None:
        self._fit()

    def _fit(self) -> None:
        """As large as the text is, as far as the terminal allows."""
        pane = self.query_one(TextPane)
        width = max(10, min(self._wanted, self.size.width * _MOST // 100 - _FRAME))
        pane.styles.width = width
        pane.styles.height = max(1, min(len(self._text_maker(width - 2)), self.size.height - 4))

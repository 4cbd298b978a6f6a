"""The main pane: a list, or the overview's drawing where the rows can draw themselves."""

from __future__ import annotations

from textual import events
from textual.strip import Strip

from core.model import Ref
from tui.present.overview import RailRows
from tui.present.rails_drawing import Item, Picture
from tui.present.rails_drawing import Span as Inked
from tui.present.rows import Column, Rows
from tui.widgets.lines import strip_of
from tui.widgets.table import TableView

_BLANK = Picture(0)


class MainPane(TableView):
    """A table that becomes a drawing for `RailRows`; its cursor then stands on an item of the picture, and
    moves by place: up and down from band to band, left and right along a rail."""

    def __init__(self, **arguments: str | None) -> None:
        super().__init__(**arguments)
        self.picture = _BLANK
        self._column = 0  # where the cursor is at home, so that going up and down keeps to it

    @property
    def rails(self) -> RailRows | None:
        """The rows as rails, None where the pane is a list."""
        return self.rows if isinstance(self.rows, RailRows) else None

    @property
    def item(self) -> Item | None:
        """The item of the picture that the cursor stands on."""
        return self.picture.items[self.cursor] if self.cursor < len(self.picture.items) else None

    @property
    def foldable(self) -> bool:
        return self.rails is not None or super().foldable

    # ---- what is shown

    def show(self, columns: tuple[Column, ...], rows: Rows, ref: Ref | None, top: int) -> None:
        """Show other rows; see TableView."""
        self._take(rows)
        self._draw()
        super().show(columns, rows, ref, top)
        self._remember_column()

    def _take(self, rows: Rows) -> None:
        super()._take(rows)
        if isinstance(rows, RailRows):
            self.header_height = 0

    def update(self, rows: Rows, pinned: bool = False) -> None:
        """Show newer rows; the cursor stays with its thing on the same rail."""
        before = self.rails
        if before is None or not isinstance(rows, RailRows):
            if isinstance(rows, RailRows) or before is not None:
                self.show(self.columns, rows, self.ref, 0)
            else:
                super().update(rows, pinned)
            return
        was, top = self.ref, self.top
        wanted = before.places[self.cursor] if self.cursor < len(before.places) else None
        if wanted in rows.places:
            self.rows, self.cursor = rows, rows.places.index(wanted)
        else:
            super().update(rows, pinned)
        self._draw()
        self.top = max(0, min(top, self.picture.height - self.page))
        self._announce(changed=self.ref != was)

    def _draw(self) -> None:
        """Have the picture drawn for the present size; narrower where it needs a scroll bar."""
        rails, (width, height) = self.rails, self.size
        if rails is None or not width or not height:
            self.picture = _BLANK
            return
        self.picture = rails.draw(width, height)
        if self.picture.height > height:
            self.picture = rails.draw(width - 1, height)

    def on_resize(self) -> None:
        """Draw anew."""
        self._draw()
        self.bring_in_sight()
        self.repaint()

    # ---- lines

    def line_count(self) -> int:
        return self.picture.height if self.rails else super().line_count()

    def paint_header(self, width: int) -> list[Strip]:
        return [] if self.rails else super().paint_header(width)

    def paint_lines(self, first: int, last: int, width: int) -> list[Strip]:
        if self.rails is None:
            return super().paint_lines(first, last, width)
        return [self._drawn_line(y, width) for y in range(first, last)]

    def _drawn_line(self, y: int, width: int) -> Strip:
        """One line of the picture, with the selected item's part of it on the cursor's background."""
        line, item = self.picture.lines[y], self.item
        plain = self._strip(line, "", width)
        if item is None or not item.y <= y < item.y + item.height:
            return plain
        chosen = self._strip(line, self.cursor_style(), width)
        end = min(item.x + item.width, width)
        return Strip.join([plain.crop(0, item.x), chosen.crop(item.x, end), plain.crop(end, width)])

    def _strip(self, line: tuple[Inked, ...], over: str, width: int) -> Strip:
        spans = [(text, self.style_of(ink, over)) for text, ink in line]
        return strip_of(spans, width, self.style_of("", over) if over else None)

    # ---- moving

    def move_to(self, line: int) -> None:
        """Put the cursor on an item of the picture; see LinesPane for a list."""
        if self.rails is None:
            super().move_to(line)
            return
        self.cursor = max(0, min(line, len(self.picture.items) - 1))
        self.bring_in_sight()
        self.repaint()
        if self.item is not None and not self._unseen:
            self.moved()

    def bring_in_sight(self) -> None:
        """Scroll just as far as the selected item needs; from the first item all the way up."""
        if self.rails is None:
            super().bring_in_sight()
            return
        item = self.item
        if item is not None:
            lowest = 0 if self.cursor == 0 else item.y
            self.top = max(item.y + item.height - self.page, min(self.top, lowest))

    def _go(self, item: Item | None, keep_column: bool = False) -> None:
        if item is not None:
            self.move_to(self.picture.items.index(item))
            if not keep_column:
                self._remember_column()

    def _remember_column(self) -> None:
        item = self.item
        if item is not None:
            self._column = item.x + (0 if item.kind == "rail" else item.width // 2)

    def action_cursor_down(self) -> None:
        item = self.item
        if item is None or self.rails is None:
            super().action_cursor_down()
        else:
            self._go(self.picture.below(item, self._column), keep_column=True)

    def action_cursor_up(self) -> None:
        item = self.item
        if item is None or self.rails is None:
            super().action_cursor_up()
        else:
            self._go(self.picture.above(item, self._column), keep_column=True)

    def action_left(self) -> None:
        if self.rails is None:
            super().action_left()
        elif self.item is not None:
            self._go(self.picture.along(self.item, -1))

    def action_right(self) -> None:
        if self.rails is None:
            super().action_right()
        elif self.item is not None:
            self._go(self.picture.along(self.item, 1))

    def action_last(self) -> None:
        if self.rails is None:
            super().action_last()
        else:
            self.move_to(len(self.picture.items) - 1)

    def _turn(self, lines: int) -> None:
        item = self.item
        if self.rails is None or item is None:
            super()._turn(lines)
        else:
            wanted = item.y + lines
            self._go(min(self.picture.items, key=lambda each: abs(each.y - wanted)))

    def on_click(self, event: events.Click) -> None:
        """A click selects what lies there, a double click opens it; a list's clicks are the base's."""
        if self.rails is None:
            return
        event.prevent_default()
        item = self.picture.at(event.x, event.y + self.top)
        if item is None or self._on_scroll_bar(event):
            return
        if event.chain == 1:
            self._go(item)
        elif event.chain == 2:
            self.action_open()

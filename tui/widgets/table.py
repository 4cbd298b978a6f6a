"""Paint the virtual table, and the overview, which its rows can draw themselves."""

from __future__ import annotations

from collections.abc import Iterator

from rich.style import Style
from textual import events
from textual.message import Message
from textual.strip import Strip

from core.model import Ref
from core.text import safe
from tui.views.formatting import cut, cut_end, fit, width_of, wrapped
from tui.views.lists import GAP, ListRows, PlacedColumn, lay_out
from tui.views.overview import RailRows
from tui.views.rails_drawing import Drawing, Item
from tui.views.rails_drawing import Span as Inked
from tui.views.rows import Column, Row, Rows, head_of
from tui.widgets.lines import LinesPane, Span, strip_of

NO_ROWS: Rows = ListRows((), ())

_GUTTER = 1
_NEIGHBOURS = 200  # lines around a vanished thing to search for a remaining one


class TableView(LinesPane):
    """A list of things in columns."""

    header_height = 1

    class Selected(Message):
        """The cursor stands on another thing, or on none."""

        def __init__(self, ref: Ref | None) -> None:
            super().__init__()
            self.ref = ref

        def can_replace(self, message: Message) -> bool:
            return isinstance(message, TableView.Selected)

    class Opened(Message):
        """A person asks to follow this thing."""

        def __init__(self, ref: Ref) -> None:
            super().__init__()
            self.ref = ref

    class SortAsked(Message):
        """A person asks to sort by this column."""

        def __init__(self, column: str) -> None:
            super().__init__()
            self.column = column

    class FoldAsked(Message):
        """The user wants to fold or unfold the rows below a thing."""

        def __init__(self, ref: Ref, closed: bool) -> None:
            super().__init__()
            self.ref, self.closed = ref, closed

    def __init__(self, **arguments: str | None) -> None:
        super().__init__(**arguments)
        self.rows: Rows = NO_ROWS
        self.columns: tuple[Column, ...] = ()
        self.sort, self.reverse = "", False
        self.closed: frozenset[Ref] = frozenset()
        self.message = ""
        self._placed: tuple[PlacedColumn, ...] = ()
        self._has_depth = False

    # ---- what is shown

    def show(self, columns: tuple[Column, ...], rows: Rows, ref: Ref | None, top: int) -> None:
        """Show another list, with the cursor on `ref` and scrolled to `top` if possible."""
        self.columns = columns
        self._set_rows(rows)
        place = rows.index(ref) if ref is not None else None
        self.cursor, self.top = place or 0, top
        self.scroll_to_cursor()
        self._announce()

    def _set_rows(self, rows: Rows) -> None:
        self.rows = rows
        self.header_height = 1 + len(head_of(rows))

    def clear(self, message: str) -> None:
        """Show nothing but that message."""
        self._set_rows(NO_ROWS)
        self.cursor, self.top, self.message = 0, 0, message
        self.repaint()

    def update(self, rows: Rows, pinned: bool = False) -> None:
        """Show newer rows of the same list; cursor and position follow their things.

        With `pinned`, a cursor on the first line stays there, whatever comes to be on it.
        """
        before, was = self.ref, self.cursor
        offset = self.cursor - self.top
        in_sight = 0 <= offset < self.page
        place = 0 if pinned and not self.cursor else _new_place(self.rows, rows, self.cursor)
        top = None if in_sight else _new_place(self.rows, rows, self.top)
        self._set_rows(rows)
        self.cursor = place
        if not (pinned and not self.top and not was):
            self.top = place - offset if top is None else top
        self.top = max(0, min(self.top, len(rows) - self.page))
        self._announce(changed=self.ref != before)

    def select(self, ref: Ref) -> bool:
        """Put the cursor on a thing; False where it is not in the list."""
        place = self.rows.index(ref)
        if place is not None:
            self.move_to(place)
        return place is not None

    @property
    def ref(self) -> Ref | None:
        """The thing that the cursor stands on."""
        row = self.selected_row()
        return row.ref if row else None

    def neighbour(self) -> Ref | None:
        """Return what the next row shows, or on the last row the one before."""
        place = self.cursor + 1 if self.cursor + 1 < len(self.rows) else self.cursor - 1
        return self.rows.row(place).ref if 0 <= place < len(self.rows) else None

    def selected_row(self) -> Row | None:
        """Return the row under the cursor."""
        return self.rows.row(self.cursor) if self.cursor < len(self.rows) else None

    def selected_text(self) -> str:
        """Return the name of the selected row, or the row as a line without one."""
        row = self.selected_row()
        if row is None:
            return ""
        named = (
            cell.text for column, cell in zip(self.columns, row.cells, strict=False) if column.name == "name"
        )
        return safe(next(named, "") or "  ".join(cell.text for cell in row.cells if cell.text.strip()))

    @property
    def foldable(self) -> bool:
        """Whether lines in sight stand under others."""
        return bool(self.closed) or self._has_depth

    def visible_columns(self) -> list[str]:
        """Return the names of the visible columns."""
        return [placed.column.name for placed in self._placed]

    def _announce(self, changed: bool = True) -> None:
        self.repaint()
        if changed:
            self.moved()

    def moved(self) -> None:
        self.post_message(self.Selected(self.ref))

    # ---- lines

    def line_count(self) -> int:
        return len(self.rows)

    def paint(self, width: int, height: int) -> list[Strip]:
        needs = self.rows.needs() if isinstance(self.rows, ListRows) else None
        self._placed = lay_out(self.columns, width - _GUTTER - 1, needs) if self.columns else ()
        return super().paint(width, height)

    def paint_header(self, width: int) -> list[Strip]:
        spans: list[Span] = [(" " * _GUTTER, self.style_of("dim"))]
        for placed in self._placed:
            column, tone = placed.column, "dim"
            title = column.title
            if column.name == self.sort:
                title, tone = cut(title, placed.width - 1), "title"
                gap = " " if width_of(title) < placed.width - 1 else ""
                title += f"{gap}{'▼' if self.reverse else '▲'}"
            spans.append((fit(title, placed.width, column.align == "right"), self.style_of(tone)))
            spans.append((" " * GAP, Style.null()))
        return [*self._paint_head(width), strip_of(spans, width)]

    def _paint_head(self, width: int) -> Iterator[Strip]:
        """Paint the summary lines, with the number of dropped columns on the first."""
        words = self._dropped_columns()
        for cell in head_of(self.rows):
            room = max(0, width - width_of(words))
            title = strip_of([(" " * _GUTTER + safe(cell.text), self.style_of(cell.tone))], room)
            yield Strip.join([title, strip_of([(words, self.style_of("warn"))], min(width, width_of(words)))])
            words = ""

    def _dropped_columns(self) -> str:
        placed = {one.place for one in self._placed}
        missing = sum(one.counted for place, one in enumerate(self.columns) if place not in placed)
        return f"  {missing} column{'s' * (missing != 1)} not shown " if missing else ""

    def paint_lines(self, first: int, last: int, width: int) -> list[Strip]:
        shown = [self.rows.row(place) for place in range(first, min(last + 1, len(self.rows)))]
        self._has_depth = any(row.depth for row in shown)
        below = [*shown[1:], None]
        return [
            self._line(row, self._mark(row, after), first + number == self.cursor, width)
            for number, (row, after) in enumerate(zip(shown, below, strict=True))
            if first + number < last
        ]

    def _mark(self, row: Row, after: Row | None) -> str:
        """Return the mark of a row's depth, and of whether it can be folded."""
        if row.ref in self.closed:
            return "  " * row.depth + "▸ "
        if after is not None and after.depth > row.depth:
            return "  " * row.depth + "▾ "
        return "  " * (row.depth + 1) if row.depth else ""

    def _line(self, row: Row, mark: str, at_cursor: bool, width: int) -> Strip:
        over = self.cursor_style() if at_cursor else ""
        return strip_of(self._spans(row, mark, over), width, self.style_of("", over) if over else None)

    def _spans(self, row: Row, mark: str, over: str) -> Iterator[Span]:
        yield ("▌" if over else " "), self.style_of("accent" if over == "cursor" else "dim", over)
        gap = " " * GAP, self.style_of("", over)
        for number, placed in enumerate(self._placed):
            cell = row.cells[placed.place]
            text = safe(cell.text if number else mark + cell.text)
            if placed.column.ends:
                text = cut_end(text, placed.width)
            yield (
                fit(text, placed.width, placed.column.align == "right"),
                self.style_of(cell.tone, over),
            )
            yield gap

    def paint_empty(self, width: int, height: int) -> list[Strip]:
        """Return the message, wrapped and centred, a little above the middle."""
        lines: list[str] = []
        for paragraph in self.message.split("\n"):
            lines += wrapped(safe(paragraph), max(10, min(64, width - 4)))
        above = max(0, (height - len(lines)) * 2 // 5)
        left = max(1, (width - max(map(width_of, lines))) // 2)
        shown = [strip_of([(" " * left + line, self.style_of("dim"))], width) for line in lines]
        return [Strip.blank(width)] * above + shown

    # ---- keys and mouse

    def action_open(self) -> None:
        if self.ref is not None:
            self.post_message(self.Opened(self.ref))

    def action_left(self) -> None:
        """Fold the rows below this one; inside, go to the row above them."""
        row = self.selected_row()
        if row is None:
            return
        after = self.rows.row(self.cursor + 1) if self.cursor + 1 < len(self.rows) else None
        if after is not None and after.depth > row.depth:
            self.post_message(self.FoldAsked(row.ref, True))
        elif row.depth:
            above = (
                place for place in range(self.cursor - 1, -1, -1) if self.rows.row(place).depth < row.depth
            )
            self.move_to(next(above, self.cursor))

    def action_right(self) -> None:
        """Unfold the rows below this one."""
        if self.ref in self.closed:
            self.post_message(self.FoldAsked(self.ref, False))

    def header_clicked(self, x: int) -> None:
        for placed in self._placed:
            if placed.start <= x - _GUTTER < placed.start + placed.width + GAP:
                self.post_message(self.SortAsked(placed.column.name))


def _new_place(before: Rows, now: Rows, place: int) -> int:
    """Return the new index of the row at an old index.

    If it is gone, that of its nearest remaining neighbour, those below first.
    """
    if place >= len(before):
        return 0
    for step in range(_NEIGHBOURS):
        for old in (place + step, place - step):
            if 0 <= old < len(before):
                found = now.index(before.row(old).ref)
                if found is not None:
                    return found
    return max(0, min(place, len(now) - 1))


_BLANK = Drawing(0)


class MainPane(TableView):
    """A table that draws `RailRows`.

    Then the cursor is on an item of the drawing: up and down move from band to band, left and right along a
    rail.
    """

    def __init__(self, **arguments: str | None) -> None:
        super().__init__(**arguments)
        self.drawing = _BLANK
        self._column = 0  # the column that moving up and down keeps to

    @property
    def rails(self) -> RailRows | None:
        """The rows as rails, None where the pane is a list."""
        return self.rows if isinstance(self.rows, RailRows) else None

    @property
    def item(self) -> Item | None:
        """The item of the picture that the cursor stands on."""
        return self.drawing.items[self.cursor] if self.cursor < len(self.drawing.items) else None

    @property
    def foldable(self) -> bool:
        return self.rails is not None or super().foldable

    # ---- what is shown

    def show(self, columns: tuple[Column, ...], rows: Rows, ref: Ref | None, top: int) -> None:
        """Show other rows; see TableView."""
        self._set_rows(rows)
        self._draw()
        super().show(columns, rows, ref, top)
        self._remember_column()

    def _set_rows(self, rows: Rows) -> None:
        super()._set_rows(rows)
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
        self.top = max(0, min(top, self.drawing.height - self.page))
        self._announce(changed=self.ref != was)

    def _draw(self) -> None:
        """Draw for the current size; narrower if a scroll bar is needed."""
        rails, (width, height) = self.rails, self.size
        if rails is None or not width or not height:
            self.drawing = _BLANK
            return
        self.drawing = rails.draw(width, height)
        if self.drawing.height > height:
            self.drawing = rails.draw(width - 1, height)

    def on_resize(self) -> None:
        """Draw for the new size."""
        self._draw()
        self.scroll_to_cursor()
        self.repaint()

    # ---- lines

    def line_count(self) -> int:
        return self.drawing.height if self.rails else super().line_count()

    def paint_header(self, width: int) -> list[Strip]:
        return [] if self.rails else super().paint_header(width)

    def paint_lines(self, first: int, last: int, width: int) -> list[Strip]:
        if self.rails is None:
            return super().paint_lines(first, last, width)
        return [self._drawn_line(y, width) for y in range(first, last)]

    def _drawn_line(self, y: int, width: int) -> Strip:
        """Return a line of the drawing, with the selected item highlighted."""
        line, item = self.drawing.lines[y], self.item
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
        self.cursor = max(0, min(line, len(self.drawing.items) - 1))
        self.scroll_to_cursor()
        self.repaint()
        if self.item is not None and not self._unpainted:
            self.moved()

    def scroll_to_cursor(self) -> None:
        """Scroll just enough to show the selected item; to the top for the first."""
        if self.rails is None:
            super().scroll_to_cursor()
            return
        item = self.item
        if item is not None:
            lowest = 0 if self.cursor == 0 else item.y
            self.top = max(item.y + item.height - self.page, min(self.top, lowest))

    def _select_item(self, item: Item | None, keep_column: bool = False) -> None:
        if item is not None:
            self.move_to(self.drawing.items.index(item))
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
            self._select_item(self.drawing.below(item, self._column), keep_column=True)

    def action_cursor_up(self) -> None:
        item = self.item
        if item is None or self.rails is None:
            super().action_cursor_up()
        else:
            self._select_item(self.drawing.above(item, self._column), keep_column=True)

    def action_left(self) -> None:
        if self.rails is None:
            super().action_left()
        elif self.item is not None:
            self._select_item(self.drawing.along(self.item, -1))

    def action_right(self) -> None:
        if self.rails is None:
            super().action_right()
        elif self.item is not None:
            self._select_item(self.drawing.along(self.item, 1))

    def action_last(self) -> None:
        if self.rails is None:
            super().action_last()
        else:
            self.move_to(len(self.drawing.items) - 1)

    def _scroll_page(self, lines: int) -> None:
        item = self.item
        if self.rails is None or item is None:
            super()._scroll_page(lines)
        else:
            wanted = item.y + lines
            self._select_item(min(self.drawing.items, key=lambda each: abs(each.y - wanted)))

    def on_click(self, event: events.Click) -> None:
        """Select the clicked thing, open it at a double click."""
        if self.rails is None:
            return
        event.prevent_default()
        item = self.drawing.at(event.x, event.y + self.top)
        if item is None or self._on_scroll_bar(event):
            return
        if event.chain == 1:
            self._select_item(item)
        elif event.chain == 2:
            self.action_open()

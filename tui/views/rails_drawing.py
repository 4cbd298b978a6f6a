"""The rails as a picture: each with its containers, laid out for a width."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import batched
from typing import Literal

from core.model import Ref
from tui.views import formatting
from tui.views.fastpath import MARK, mark_of
from tui.views.findings import hidden_reason, no_container_visible
from tui.views.formatting import cut, fit, width_of, wrapped
from tui.views.rails import MARKS, Card, Figure, Rail, rails
from tui.views.rows import Cell, Tone, ViewContext

# A drawing also distinguishes headings from text, and lines from the things that they connect.
Ink = Tone | Literal["title", "faint"]
Span = tuple[str, Ink]


@dataclass(frozen=True, slots=True)
class Item:
    """A thing that can be selected in the drawing.

    It has a position (cells from the left, lines from the top), a rail, and a band of things side by side: j
    and k move from band to band, h and l along a rail.
    """

    ref: Ref
    kind: Literal["rail", "figure", "uplink"]
    rail: str
    band: int
    x: int
    y: int
    width: int
    height: int

    def distance(self, x: int) -> int:
        """Return its distance to a column of cells, 0 if it spans the column."""
        return max(self.x - x, x - (self.x + self.width - 1), 0)


@dataclass(frozen=True, slots=True)
class Drawing:
    """A finished drawing: `lines`, and its `items` in reading order."""

    width: int
    lines: tuple[tuple[Span, ...], ...] = ()
    items: tuple[Item, ...] = ()

    @property
    def height(self) -> int:
        """How many lines it has."""
        return len(self.lines)

    def at(self, x: int, y: int) -> Item | None:
        """Return the smallest item at a position."""
        hits = [
            item
            for item in self.items
            if item.y <= y < item.y + item.height and item.x <= x < item.x + item.width
        ]
        return min(hits, key=lambda item: item.width * item.height, default=None)

    def below(self, item: Item, x: int) -> Item | None:
        """Return the item below `item` at that column.

        It is on the same card, else in the next band.
        """
        return self._across(item, x, 1)

    def above(self, item: Item, x: int) -> Item | None:
        """Return the item above `item` at that column."""
        return self._across(item, x, -1)

    def _across(self, item: Item, x: int, step: int) -> Item | None:
        beside = [each for each in self.items if each.band == item.band and each.rail == item.rail]
        same_card = [each for each in beside if each.x == item.x and (each.y - item.y) * step > 0]
        if item.kind == "figure" and same_card:
            return min(same_card, key=lambda each: abs(each.y - item.y))
        ahead = [each for each in self.items if (each.band - item.band) * step > 0]
        if not ahead:
            return None
        band = min((each.band for each in ahead), key=lambda band: abs(band - item.band))
        found = [each for each in ahead if each.band == band]
        return min(found, key=lambda each: (each.kind == "uplink", each.distance(x), each.y * step))

    def along(self, item: Item, step: int) -> Item | None:
        """Return the next item on the same rail (`step` 1) or the previous one (-1)."""
        rail = [each for each in self.items if each.rail == item.rail]
        place = rail.index(item) + step
        return rail[place] if 0 <= place < len(rail) else None

    def find(self, ref: Ref, rail: str = "") -> Item | None:
        """Return the item of a ref: on that rail, else the first one."""
        hits = [item for item in self.items if item.ref == ref]
        return min(hits, key=lambda item: item.rail != rail, default=None)

    def text(self) -> str:
        """Return the drawing without its tones."""
        return "\n".join("".join(text for text, _ in line).rstrip() for line in self.lines)


@dataclass(slots=True)
class Canvas:
    """A drawing under construction; what exceeds the width is cut."""

    width: int
    items: list[Item] = field(default_factory=list)
    _lines: dict[int, list[tuple[int, str, Ink]]] = field(default_factory=dict)
    height: int = 0

    def put(self, x: int, y: int, text: str, ink: Ink = "") -> int:
        """Write at a place; returns where the text ends."""
        self.height = max(self.height, y + 1)
        if text and x < self.width:
            self._lines.setdefault(y, []).append((x, cut(text, self.width - x), ink))
        return x + width_of(text)

    def put_all(self, x: int, y: int, spans: Sequence[Span]) -> int:
        """Write spans one after the other; returns where they end."""
        for text, ink in spans:
            x = self.put(x, y, text, ink)
        return x

    def finish(self) -> Drawing:
        """Return the finished drawing."""
        lines = tuple(self._line(y) for y in range(self.height))
        return Drawing(self.width, lines, tuple(self.items))

    def _line(self, y: int) -> tuple[Span, ...]:
        spans: list[Span] = []
        end = 0
        for x, text, ink in sorted(self._lines.get(y, ()), key=lambda each: each[0]):
            if x > end:
                spans.append((" " * (x - end), ""))
            spans.append((text, ink))
            end = max(end, x) + width_of(text)
        return tuple(spans)


ROOMY_WIDTH = 60
_TREND_FROM = 96
_DENSE_FROM = 25  # cards on one rail
_LEFT = 1
_GAP = 2
_NAME_LIMIT, _CARD_LIMIT = 24, 32
_RATE_WIDTH, _TREND_WIDTH = 11, 8

_COMMANDS = (
    "  docker run -d nginx   a container on Docker's own bridge",
    "  ip netns add blue     a network namespace without links",
)
_DEMO = "a lab of containers and traffic, isolated from this host"
EMPTY = (
    "No virtual network on this host yet.",
    "Networks and containers will be drawn here.",
    "",
    "To create one:",
    *_COMMANDS,
    f"  vnet-tui demo         {_DEMO}",
)


def draw(context: ViewContext, width: int, height: int) -> Drawing:
    """Draw the overview for a width and a height.

    With boxes if they fit, else without, and without blank lines if needed. It may be higher than `height`,
    but never wider than `width`.
    """
    if width >= ROOMY_WIDTH:
        drawing = _drawn(context, width, roomy=True)
        if drawing.height <= height:
            return drawing
    drawing = _drawn(context, width, roomy=False)
    if drawing.height > height:
        tight = _drawn(context, width, roomy=False, gap=0)
        return tight if tight.height <= height else drawing
    return drawing


def _drawn(context: ViewContext, width: int, roomy: bool, gap: int = 1) -> Drawing:
    canvas = Canvas(width)
    found = rails(context.topology)
    for rail in found:
        _Drawer(canvas, rail, context, roomy).draw()
        canvas.height += gap
    has_cards = any(rail.cards for rail in found)
    if has_cards:
        _legend(canvas)
    if no_container_visible(context.snapshot):
        canvas.height += gap * has_cards
        _hint(canvas, context, len(found) > 1)
    return canvas.finish()


def _legend(canvas: Canvas) -> None:
    y, x = canvas.height, _LEFT
    for name, mark in MARKS.items():
        x = canvas.put(x, y, f"{mark} {name}", "dim") + 3


def _hint(canvas: Canvas, context: ViewContext, has_networks: bool) -> None:
    """Explain why there is so little to see, and what to do; the demo first."""
    x, hidden = _LEFT + 2, hidden_reason(context.snapshot)
    thing = "container" if has_networks else "virtual network"
    nothing = f"No {thing} on this host yet. It will be drawn here."
    if hidden:
        nothing = f"No container in the namespaces that could be read. {hidden}"
    for line in wrapped(nothing, max(8, canvas.width - 2 * x)):
        canvas.put(x, canvas.height, line)
    y = canvas.height + 1
    key, way = ("E", "opens the demo:") if context.offers_demo else ("vnet-tui demo", "opens")
    canvas.put_all(x, y, [(key, "accent"), (f" {way} {_DEMO}", "")])
    if not hidden:
        canvas.put(x, y + 2, "Or create one:")
        for line in _COMMANDS:
            canvas.put(x, canvas.height, line, "dim")


@dataclass(slots=True)
class _Drawer:
    """Draw one rail below the canvas's content."""

    canvas: Canvas
    rail: Rail
    context: ViewContext
    roomy: bool

    @property
    def ink(self) -> Ink:
        """The rail's own colour: its state."""
        return self.rail.tone or "dim"

    def draw(self) -> None:
        """Draw the heading, the rail and the cards."""
        band = max((item.band for item in self.canvas.items), default=-1) + 1
        top = self.canvas.height
        self._heading(top, band)
        figures = [figure for card in self.rail.cards for figure in card.figures]
        if self.rail.drawn and (len(self.rail.cards) >= _DENSE_FROM or not figures):
            self._dense(top + 1, band, figures)
        else:
            self._cards(top + 1, band)
        self._uplink_item(top + 1, band)

    # ---- the heading and the line itself

    def _heading(self, y: int, band: int) -> None:
        rail, width = self.rail, self.canvas.width
        right = self._traffic()
        room = width - _LEFT - 1 - (width_of("".join(text for text, _ in right)) + _GAP if right else 0)
        spans: list[Span] = [(cut(rail.name, max(8, room)), "title")]
        taken = width_of(spans[0][0])
        for cell in (*rail.faults, *self._fast(), *rail.facts):
            if taken + _GAP + width_of(cell.text) <= room:
                spans += [(" " * _GAP, ""), (cell.text, cell.tone or "dim")]
                taken += _GAP + width_of(cell.text)
        self.canvas.put_all(_LEFT, y, spans)
        if right and taken <= room:
            self.canvas.put_all(width - 1 - width_of("".join(text for text, _ in right)), y, right)
        if rail.ref is not None:
            self.canvas.items.append(Item(rail.ref, "rail", rail.key, band, 0, y, width, 1))

    def _fast(self) -> list[Cell]:
        """Return the mark of an accelerated network."""
        network = self.rail.ref if self.rail.ref and self.rail.ref.kind == "network" else None
        link = self.context.snapshot.link(self.rail.link) if network and self.rail.link else None
        mark = mark_of(self.context, link)
        words = "fast" if mark.tone == "ok" else f"fast path {self.context.fast.state}"
        return [Cell(f"{MARK} {words}", mark.tone)] if mark.text else []

    def _traffic(self) -> list[Span]:
        """Return the rate and its trend, for the right end of the heading."""
        found = self.context.traffic_of(self.rail.link) if self.rail.link else None
        if found is None or self.canvas.width < ROOMY_WIDTH:
            return []
        rate, history = found
        tone: Tone = "" if rate >= 1 else "dim"
        spans: list[Span] = [(f"{formatting.bits(rate):>{_RATE_WIDTH}}", tone)]
        if self.canvas.width >= _TREND_FROM:
            spans.insert(0, (f"{formatting.sparkline(history, _TREND_WIDTH):>{_TREND_WIDTH}} ", "dim"))
        return spans

    def _line(self, y: int, start: str, stems: Sequence[int]) -> None:
        """Draw the rail with a stem over each card, and its end."""
        uplink_cell = cut(self.rail.uplink_cell.text, self.canvas.width // 2)
        tip = {"way": "▶ ", "wall": "┫ ", "none": "╸"}[self.rail.end]
        end = self.canvas.width - 1 - width_of(uplink_cell) - len(tip)
        self.canvas.put(_LEFT, y, _rail_text(start, _LEFT, end, stems), self.ink)
        self.canvas.put(end, y, tip, self.ink)
        self.canvas.put(end + len(tip), y, uplink_cell, self.rail.uplink_cell.tone)

    def _uplink_item(self, y: int, band: int) -> None:
        uplink_cell = cut(self.rail.uplink_cell.text, self.canvas.width // 2)
        if self.rail.uplink_ref is not None and self.rail.drawn:
            x = self.canvas.width - 1 - width_of(uplink_cell)
            self.canvas.items.append(
                Item(self.rail.uplink_ref, "uplink", self.rail.key, band, x, y, width_of(uplink_cell), 1)
            )  # fmt: skip

    # ---- containers

    def _cards(self, y: int, band: int) -> None:
        wide = self._card_width()
        left = _LEFT + 2
        count = max(1, (self.canvas.width - left + _GAP) // (wide + _GAP))
        groups = list(batched(self.rail.cards, count))
        for number, group in enumerate(groups):
            band += 1
            places = [left + place * (wide + _GAP) for place in range(len(group))]
            last = number == len(groups) - 1
            if self.rail.drawn:
                stems = [x + (wide // 2 if self.roomy else 0) for x in places]
                self._stem_line(y, number, last, stems)
                y += 1
            bottom = max(self._card(card, x, y, wide, band) for card, x in zip(group, places, strict=True))
            if self.rail.drawn and not last:
                for line in range(y, bottom):
                    self.canvas.put(_LEFT, line, "┃", self.ink)
            y = bottom

    def _stem_line(self, y: int, number: int, last: bool, stems: Sequence[int]) -> None:
        if number == 0:
            self._line(y, "╺" if last else "┏", stems)
        else:
            beam = _rail_text("┗" if last else "┣", _LEFT, stems[-1], stems)
            self.canvas.put(_LEFT, y, beam + "┑", self.ink)

    def _card_width(self) -> int:
        figures = [figure for card in self.rail.cards for figure in card.figures]
        texts = [_first_width(figure) for figure in figures]
        texts += [width_of(cell.text) for figure in figures for cell in (*figure.facts, *figure.faults)]
        inner = min(max(texts, default=8), _CARD_LIMIT)
        return max(1, min(max(inner, 12) + (4 if self.roomy else 2), self.canvas.width - _LEFT - 2))

    def _card(self, card: Card, x: int, y: int, wide: int, band: int) -> int:
        """Draw one card; return the line below it."""
        for number, figure in enumerate(card.figures):
            last = number == len(card.figures) - 1
            draw = self._boxed if self.roomy else self._unboxed
            bottom = draw(figure, x, y, wide, number == 0, last)
            self.canvas.items.append(
                Item(figure.ref, "figure", self.rail.key, band, x, y, wide, bottom - y)
            )  # fmt: skip
            y = bottom
        return y

    def _boxed(self, figure: Figure, x: int, y: int, wide: int, first: bool, last: bool) -> int:
        """Draw a figure as part of a box, which the last one closes."""
        ink = _box_ink(figure)
        self.canvas.put(x, y, self._box_top(wide, first), ink)
        for line, (text, tone) in enumerate(_figure_lines(figure, wide - 4), y + 1):
            self.canvas.put_all(x, line, [("│ ", ink), (text, tone), (" │", ink)])
        bottom = y + 1 + len(_figure_lines(figure, wide - 4))
        if last:
            self.canvas.put(x, bottom, f"╰{'─' * (wide - 2)}╯", ink)
            bottom += 1
        return bottom

    def _box_top(self, wide: int, first: bool) -> str:
        if not first:
            return f"├{'╌ joined ':╌<{wide - 2}}┤"
        stem = "┴" if self.rail.drawn else "─"
        return f"╭{'─' * (wide // 2 - 1)}{stem}{'─' * (wide - wide // 2 - 2)}╮"

    def _unboxed(self, figure: Figure, x: int, y: int, wide: int, first: bool, last: bool) -> int:
        """Draw a figure that hangs from its stem without a box."""
        branch, trunk = ("╰╴", "  ") if last else ("├╴", "│ ")
        ink = _box_ink(figure)
        for line, (text, tone) in enumerate(_figure_lines(figure, wide - 2), y):
            self.canvas.put_all(x, line, [(branch if line == y else trunk, ink), (text, tone)])
        return y + len(_figure_lines(figure, wide - 2))

    # ---- many containers

    def _dense(self, y: int, band: int, figures: Sequence[Figure]) -> None:
        """Draw one line for each figure, several side by side."""
        names = min(max((width_of(figure.name) for figure in figures), default=0), _NAME_LIMIT)
        texts = [_dense_line(figure, names) for figure in figures]
        wide = max(1, min(max(map(width_of, texts), default=8), self.canvas.width - _LEFT - 3))
        count = max(1, (self.canvas.width - _LEFT - 2 + _GAP) // (wide + _GAP))
        groups = list(batched(zip(figures, texts, strict=True), count))
        self._line(y, "┏" if groups else "╺", ())
        for number, group in enumerate(groups, 1):
            branch = "┗╸" if number == len(groups) else "┣╸"
            self.canvas.put(_LEFT, y + number, branch, self.ink)
            for place, (figure, text) in enumerate(group):
                x = _LEFT + 2 + place * (wide + _GAP)
                tone = figure.faults[0].tone if figure.faults else figure.tone
                self.canvas.put(x, y + number, fit(text, wide), tone)
                self.canvas.items.append(
                    Item(figure.ref, "figure", self.rail.key, band + number, x, y + number, wide, 1)
                )  # fmt: skip


def _rail_text(start: str, x: int, end: int, stems: Sequence[int]) -> str:
    """Draw a heavy line from `x` to before `end`, with light stems downwards."""
    cells = [start, *("━" * (end - x - 1))]
    for stem in stems:
        if x < stem < end:
            cells[stem - x] = "┯"
    return "".join(cells[: max(0, end - x)])


def _first_width(figure: Figure) -> int:
    return min(width_of(figure.name), _NAME_LIMIT) + 2


def _figure_lines(figure: Figure, width: int) -> list[Span]:
    """Name and mark, then facts, then faults, each filling the width."""
    lines: list[Span] = [(fit(f"{figure.mark} {figure.name}", width), figure.tone or "title")]
    lines += [(fit(cell.text, width), cell.tone) for cell in figure.facts]
    return lines + [(fit(cell.text, width), cell.tone) for cell in figure.faults]


def _dense_line(figure: Figure, names: int) -> str:
    words = [figure.mark, fit(figure.name, names), *(cell.text for cell in (*figure.facts, *figure.faults))]
    return " ".join(words)


def _box_ink(figure: Figure) -> Ink:
    return figure.faults[0].tone if figure.faults else "dim"

"""A drawing of text: lines of toned spans, and the things in it that can be selected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from core.model import Ref
from tui.present.fitting import cut, width_of
from tui.present.rows import Tone

# A drawing also tells headings from text, and lines from what they join.
Ink = Tone | Literal["title", "faint"]
Span = tuple[str, Ink]


@dataclass(frozen=True, slots=True)
class Item:
    """One thing that can be selected: where it lies (cells from the left, lines from the top), on which rail,
    and in which band of things side by side; j and k go from band to band, h and l along a rail."""

    ref: Ref
    kind: Literal["rail", "figure", "goal"]
    rail: str
    band: int
    x: int
    y: int
    width: int
    height: int

    def distance(self, x: int) -> int:
        """How far it lies from a column of cells; 0 where it spans it."""
        return max(self.x - x, x - (self.x + self.width - 1), 0)


@dataclass(frozen=True, slots=True)
class Picture:
    """A finished drawing: `lines` from the top, none wider than it was made for, and its `items` in reading
    order."""

    width: int
    lines: tuple[tuple[Span, ...], ...] = ()
    items: tuple[Item, ...] = ()

    @property
    def height(self) -> int:
        """How many lines it has."""
        return len(self.lines)

    def at(self, x: int, y: int) -> Item | None:
        """The smallest thing at a place."""
        hits = [
            item
            for item in self.items
            if item.y <= y < item.y + item.height and item.x <= x < item.x + item.width
        ]
        return min(hits, key=lambda item: item.width * item.height, default=None)

    def below(self, item: Item, x: int) -> Item | None:
        """The thing under `item` at that column: on the same card first, then in the next band."""
        return self._across(item, x, 1)

    def above(self, item: Item, x: int) -> Item | None:
        """The thing over `item` at that column."""
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
        return min(found, key=lambda each: (each.kind == "goal", each.distance(x), each.y * step))

    def along(self, item: Item, step: int) -> Item | None:
        """The next thing on the same rail (`step` 1) or the one before it (-1)."""
        rail = [each for each in self.items if each.rail == item.rail]
        place = rail.index(item) + step
        return rail[place] if 0 <= place < len(rail) else None

    def find(self, ref: Ref, rail: str = "") -> Item | None:
        """Where a thing stands: on that rail, or else wherever it stands first."""
        hits = [item for item in self.items if item.ref == ref]
        return min(hits, key=lambda item: item.rail != rail, default=None)

    def text(self) -> str:
        """The drawing without its tones."""
        return "\n".join("".join(text for text, _ in line).rstrip() for line in self.lines)


@dataclass(slots=True)
class Canvas:
    """A drawing in the making; what reaches over the right edge is cut."""

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

    def picture(self) -> Picture:
        """The finished drawing."""
        lines = tuple(self._line(y) for y in range(self.height))
        return Picture(self.width, lines, tuple(self.items))

    def _line(self, y: int) -> tuple[Span, ...]:
        spans: list[Span] = []
        end = 0
        for x, text, ink in sorted(self._lines.get(y, ()), key=lambda each: each[0]):
            if x > end:
                spans.append((" " * (x - end), ""))
            spans.append((text, ink))
            end = max(end, x) + width_of(text)
        return tuple(spans)

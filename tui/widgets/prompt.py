"""The line at the bottom in which a person types a filter (`/`) or the name of a view (`:`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from textual import events
from textual.strip import Strip

from core.text import safe
from tui.present.fit_text import width_of
from tui.widgets.form import Typed
from tui.widgets.lines import Painted, Span, strip_of

Kind = Literal["/", ":"]
Outcome = Literal["typed", "accepted", "given up", ""]

HINTS: dict[Kind, str] = {
    "/": "word  key:value  !not      Enter keeps it, Esc shows all",
    ":": "the name of a view      Tab completes, Enter goes there",
}


class Prompt(Painted):
    """One line of text being typed. It takes no focus: the dashboard feeds it keys in the order in which they
    were typed, however fast."""

    def __init__(self, complete: Callable[[str], str]) -> None:
        """`complete` makes whole what was typed after ":"."""
        super().__init__()
        self.kind: Kind = "/"
        self._typed = Typed()
        self._complete = complete

    @property
    def text(self) -> str:
        """What was typed so far."""
        return self._typed.text

    def open(self, kind: Kind, text: str = "") -> None:
        """Come up with that text."""
        self.kind = kind
        self._typed.put(text)
        self.display = True
        self.repaint()

    def close(self) -> None:
        """Go away."""
        self.display = False

    # ---- typing

    def feed(self, event: events.Key) -> Outcome:
        """Take one key; returns what it did."""
        if event.key == "enter":
            return "accepted"
        if event.key == "escape" or (event.key == "backspace" and not self.text):
            return "given up"
        before = self.text
        if event.key == "tab":
            self._make_whole()
        else:
            self._typed.feed(event)
        self.repaint()
        return "typed" if self.text != before else ""

    def insert(self, text: str) -> None:
        """Put text in at the cursor; of a pasted text, what stands on its first line."""
        self._typed.insert(text)

    def _make_whole(self) -> None:
        if self.kind == ":":
            self._typed.put(self._complete(self.text))

    # ---- painting

    def paint(self, width: int, height: int) -> list[Strip]:
        before, under, after = self._parts()
        shown = max(1, width - 6 - width_of(under))
        while before and width_of(before) > shown:
            before = before[1:]
        spans: list[Span] = [(f" {self.kind} ", self.style_of("key")), (before, self.style_of(""))]
        spans += [(under, self.style_of("caret")), (after, self.style_of(""))]
        if self.kind == ":" and self._typed.place == len(self.text):
            spans.append((self._complete(self.text)[len(self.text) :], self.style_of("dim")))
        if not self.text:
            spans.append((f" {HINTS[self.kind]}", self.style_of("dim")))
        return [strip_of(spans, width)]

    def _parts(self) -> tuple[str, str, str]:
        """What stands before, under and after the cursor, fit to print."""
        text, place = self._typed.text, self._typed.place
        return safe(text[:place]), safe(text[place : place + 1]) or " ", safe(text[place + 1 :])

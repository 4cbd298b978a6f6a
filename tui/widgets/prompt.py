"""The line at the bottom in which a person types a filter (`/`) or the name of a view (`:`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from textual import events
from textual.strip import Strip

from core.text import safe
from tui.present.fitting import width_of
from tui.widgets.painted import Painted, Span, strip_of

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
        self.text = ""
        self.place = 0
        self._complete = complete

    def open(self, kind: Kind, text: str = "") -> None:
        """Come up with that text."""
        self.kind, self.text, self.place = kind, text, len(text)
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
        edit = _EDITS.get(event.key)
        if edit is not None:
            edit(self)
        elif event.is_printable and event.character:
            self.insert(event.character)
        self.repaint()
        return "typed" if self.text != before else ""

    def insert(self, text: str) -> None:
        """Put text in at the cursor; of a pasted text, what stands on its first line."""
        text = "".join(char for char in text.split("\n")[0] if char.isprintable())
        self.text = self.text[: self.place] + text + self.text[self.place :]
        self.place += len(text)

    def _remove(self, start: int, end: int) -> None:
        self.text = self.text[: max(0, start)] + self.text[end:]
        self.place = max(0, start)

    def _move(self, place: int) -> None:
        self.place = max(0, min(place, len(self.text)))

    def _remove_word(self) -> None:
        kept = self.text[: self.place].rstrip()
        self._remove(kept.rfind(" ") + 1, self.place)

    def _make_whole(self) -> None:
        if self.kind == ":":
            self.text = self._complete(self.text)
            self.place = len(self.text)

    # ---- painting

    def paint(self, width: int, height: int) -> list[Strip]:
        before, under, after = self._parts()
        shown = max(1, width - 6 - width_of(under))
        while before and width_of(before) > shown:
            before = before[1:]
        spans: list[Span] = [(f" {self.kind} ", self.style_of("key")), (before, self.style_of(""))]
        spans += [(under, self.style_of("caret")), (after, self.style_of(""))]
        if self.kind == ":" and self.place == len(self.text):
            spans.append((self._complete(self.text)[len(self.text) :], self.style_of("dim")))
        if not self.text:
            spans.append((f" {HINTS[self.kind]}", self.style_of("dim")))
        return [strip_of(spans, width)]

    def _parts(self) -> tuple[str, str, str]:
        """What stands before, under and after the cursor, fit to print."""
        text, place = self.text, self.place
        return safe(text[:place]), safe(text[place : place + 1]) or " ", safe(text[place + 1 :])


_EDITS: dict[str, Callable[[Prompt], None]] = {
    "backspace": lambda prompt: prompt._remove(prompt.place - 1, prompt.place),
    "delete": lambda prompt: prompt._remove(prompt.place, prompt.place + 1),
    "ctrl+u": lambda prompt: prompt._remove(0, prompt.place),
    "ctrl+w": Prompt._remove_word,
    "left": lambda prompt: prompt._move(prompt.place - 1),
    "right": lambda prompt: prompt._move(prompt.place + 1),
    "home": lambda prompt: prompt._move(0),
    "ctrl+a": lambda prompt: prompt._move(0),
    "end": lambda prompt: prompt._move(len(prompt.text)),
    "ctrl+e": lambda prompt: prompt._move(len(prompt.text)),
    "tab": Prompt._make_whole,
}

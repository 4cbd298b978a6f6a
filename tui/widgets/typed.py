"""One line of text that is being typed, and the keys that edit it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from textual import events


@dataclass(slots=True)
class Typed:
    """The text, and the place in it that typing goes to."""

    text: str = ""
    place: int = 0

    def put(self, text: str) -> None:
        """Another text, the cursor at its end."""
        self.text, self.place = text, len(text)

    def feed(self, event: events.Key) -> bool:
        """Take one key; False where it does not edit text."""
        edit = _EDITS.get(event.key)
        if edit is not None:
            edit(self)
        elif event.is_printable and event.character:
            self.insert(event.character)
        else:
            return False
        return True

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


_EDITS: dict[str, Callable[[Typed], None]] = {
    "backspace": lambda typed: typed._remove(typed.place - 1, typed.place),
    "delete": lambda typed: typed._remove(typed.place, typed.place + 1),
    "ctrl+u": lambda typed: typed._remove(0, typed.place),
    "ctrl+w": Typed._remove_word,
    "left": lambda typed: typed._move(typed.place - 1),
    "right": lambda typed: typed._move(typed.place + 1),
    "home": lambda typed: typed._move(0),
    "ctrl+a": lambda typed: typed._move(0),
    "end": lambda typed: typed._move(len(typed.text)),
    "ctrl+e": lambda typed: typed._move(len(typed.text)),
}

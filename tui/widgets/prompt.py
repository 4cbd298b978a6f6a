"""The line at the bottom in which a person types a filter (`/`) or the name of a view (`:`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from textual import events
from textual.binding import Binding
from textual.message import Message
from textual.widgets import Input

Kind = Literal["/", ":"]


class Prompt(Input):
    """One line of input; Enter accepts, Esc gives up, Tab completes."""

    BINDINGS = [
        Binding("escape", "give_up", "Give up", show=False),
        Binding("tab", "complete", "Complete", show=False),
    ]

    class Typed(Message):
        """The text has changed while it is typed."""

        def __init__(self, kind: Kind, text: str) -> None:
            super().__init__()
            self.kind, self.text = kind, text

    class Accepted(Typed):
        """The person pressed Enter."""

    class GivenUp(Typed):
        """The person pressed Esc, or went elsewhere."""

    def __init__(self, complete: Callable[[str], str], **arguments: str | None) -> None:
        super().__init__(compact=True, select_on_focus=False, **arguments)  # type: ignore[arg-type]
        self.kind: Kind = "/"
        self._complete = complete

    def open(self, kind: Kind, text: str = "") -> None:
        """Come up with that text."""
        self.kind = kind
        self.placeholder = {
            "/": "filter: word  key:value  !not   Enter keeps, Esc clears",
            ":": "view: br veth ns cont nat ct rt ev ov   Tab completes",
        }[kind]
        with self.prevent(Input.Changed):
            self.value = text
        self.cursor_position = len(text)
        self.focus()

    def on_input_changed(self, event: Input.Changed) -> None:
        event.stop()
        self.post_message(self.Typed(self.kind, self.value))

    def on_input_submitted(self, event: Input.Submitted) -> None:
        event.stop()
        self.post_message(self.Accepted(self.kind, self.value))

    def on_blur(self, event: events.Blur) -> None:
        """A click elsewhere keeps a filter as it is."""
        self.post_message(self.Accepted(self.kind, self.value) if self.kind == "/" else self.GivenUp(":", ""))

    def action_give_up(self) -> None:
        self.post_message(self.GivenUp(self.kind, self.value))

    def action_complete(self) -> None:
        """Put in the name that what is typed begins."""
        if self.kind == ":":
            self.value = self._complete(self.value)
            self.cursor_position = len(self.value)

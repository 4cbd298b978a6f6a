"""The question whether a guarded change shall stay; no answer in time takes it back."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress

from textual import events
from textual.app import ComposeResult
from textual.containers import Container

from core.text import safe
from tui.changer import Changer, Waiting
from tui.errors import CommandError
from tui.present.fitting import wrapped
from tui.screens.dialog import Dialog
from tui.screens.overlay import Line
from tui.widgets.preview import PreviewPane

_TICK = 0.25  # seconds


class KeepScreen(Dialog[str]):
    """Counts down; ends with what became of the change, in words."""

    AUTO_FOCUS = ""

    def __init__(self, waiting: Waiting, changer: Changer) -> None:
        super().__init__()
        self._waiting, self._changer = waiting, changer
        self._until = time.monotonic() + waiting.seconds_left
        self._hint = ""
        self._text, self._answered = PreviewPane(self._lines), False

    def compose(self) -> ComposeResult:
        with Container(id="keep-box") as box:
            box.border_title = " Keep it? "
            box.border_subtitle = " y keeps it · n takes it back now "
            yield self._text

    def on_mount(self) -> None:
        self.set_interval(_TICK, self._tick)

    @property
    def seconds_left(self) -> int:
        """Whole seconds until it is taken back."""
        return max(0, int(self._until - time.monotonic() + 0.99))

    def _lines(self, width: int) -> list[Line]:
        left = self.seconds_left
        return [
            *([(part, "title")] for part in wrapped(safe(self._waiting.title), width)),
            [],
            [("Keep it? y / n", "accent"), (f"   taken back in {left} s unless you say yes", "warn")],
            [(self._hint, "warn")],
        ]

    def _tick(self) -> None:
        if self._answered:
            return
        self._text.show(self._lines)
        if not self.seconds_left:
            self.dismiss(f"Nobody said yes: taken back: {self._waiting.title}")

    def on_key(self, event: events.Key) -> None:
        """Yes or no, and nothing else."""
        event.stop()
        event.prevent_default()
        if event.key in ("enter", "escape", "q") and not self._answered:
            self._hint = "y keeps it, n takes it back."
            self._text.show(self._lines)
        if event.key in ("y", "n") and not self._answered:
            self._answered = True
            self._text.show(lambda width: [[("Under way…", "accent")]])
            work = self._keep if event.key == "y" else self._take_back
            threading.Thread(target=lambda: self._end(work), name="keep").start()

    def _end(self, work: Callable[[], str]) -> None:
        try:
            told = work()
        except CommandError as error:
            told = str(error)
        with suppress(RuntimeError):  # the program has ended
            self.app.call_from_thread(self.dismiss, told)

    def _keep(self) -> str:
        kept = self._changer.keep(self._waiting.entry_id)
        return f"Kept: {self._waiting.title}" if kept else "It was too late: u tells how it ended."

    def _take_back(self) -> str:
        for entry in self._changer.earlier():
            if entry.entry_id == self._waiting.entry_id:
                ended = self._changer.take_back(entry, lambda operation: None)
                return "; ".join(ended.errors) or f"Taken back: {entry.title}"
        return "It is not in the journal any more."

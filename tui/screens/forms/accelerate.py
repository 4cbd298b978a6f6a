"""Ask whether to turn the fast path on or off, with a preview of the changes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Literal

from textual import events
from textual.app import ComposeResult
from textual.containers import Container
from textual.message import Message

from tui.command import CommandError
from tui.screens.dialogs import Dialog, Line, PreviewPane
from tui.services import FastPathPreview, FastPathService
from tui.views.fast_targets import BridgeChoice
from tui.views.formatting import wrapped

Phase = Literal["reading", "asking", "running", "ended"]
_KEYS = {
    "reading": " Esc: close ", "asking": " y: apply · n: cancel · s: strict {} · PgDn PgUp: scroll ",
    "running": " running… ", "ended": " Esc: close ",
}  # fmt: skip


class WorkProgress(Message):
    """A result of the thread: a preview, progress, the end, or an error."""

    def __init__(self, result: FastPathPreview | str | CommandError, ended: bool = False) -> None:
        super().__init__()
        self.result, self.ended = result, ended


class AccelerateScreen(Dialog[str]):
    """Preview and switch the fast path in a thread; returns a sentence about the end."""

    AUTO_FOCUS = ""

    def __init__(
        self, choices: tuple[BridgeChoice, ...], on: bool, fast_path_service: FastPathService
    ) -> None:
        super().__init__()
        self._choices, self._on, self._fast_path_service = choices, on, fast_path_service
        self.phase: Phase = "reading"
        self.preview: FastPathPreview | None = None
        self._strict: bool | None = None
        self._notes = [("reading the host…", "dim")]
        self._text = PreviewPane(self._lines)

    def compose(self) -> ComposeResult:
        with Container(id="fast-box") as box:
            box.border_title = " Fast path "
            yield self._text

    def on_mount(self) -> None:
        self._show_notes()
        self._run_in_thread(self._read_preview)

    def _show_notes(self, *words: tuple[str, str]) -> None:
        """Show these lines below the preview, and the keys that mean something now."""
        self._notes = list(words) or self._notes
        self._text.show(self._lines)
        strict = "on" if self.preview and self.preview.strict else "off"
        keys = _KEYS[self.phase] if self._on else _KEYS[self.phase].replace("s: strict {} · ", "")
        self.query_one("#fast-box").border_subtitle = keys.format(strict)

    # ---- on the thread

    def _run_in_thread(self, work: Callable[[], None]) -> None:
        # Not a daemon: it is completed even if the program ends meanwhile.
        threading.Thread(target=lambda: self._catch_errors(work), name="accelerate").start()

    def _catch_errors(self, work: Callable[[], None]) -> None:
        try:
            work()
        except CommandError as error:
            self._post_result(error)
        except Exception as error:
            self._post_result(CommandError(f"can't change the fast path: {error!r}"))

    def _read_preview(self) -> None:
        self._post_result(
            self._fast_path_service.preview(
                self._choices, self._on, self._fast_path_service.read_topology(), self._strict
            )
        )

    def _switch(self) -> None:
        assert self.preview is not None
        self._post_result(self._fast_path_service.perform(self.preview, self._post_result), ended=True)

    def _post_result(self, result: Any, ended: bool = False) -> None:
        with suppress(RuntimeError):  # the program has ended
            self.post_message(WorkProgress(result, ended))

    # ---- what was found out

    def on_work_progress(self, message: WorkProgress) -> None:
        """Show it."""
        result = message.result
        if isinstance(result, FastPathPreview):
            self.preview = result
            self.phase = "asking" if result.can_be_done else "ended"
            self._notes = []
            self._show_notes()
        elif isinstance(result, CommandError):
            self.phase = "ended"
            self._show_notes((str(result), "bad"))
        elif message.ended:
            self.dismiss(result)
        else:
            self._show_notes((result, "accent"))

    def _lines(self, width: int) -> list[Line]:
        lines = list(_preview_lines(self.preview, width)) if self.preview else []
        if self.phase == "asking":
            return [*lines, [], [("Apply? y / n", "accent")], *([(one, tone)] for one, tone in self._notes)]
        return [
            *lines,
            *([(part, tone)] for words, tone in self._notes for part in ["", *wrapped(words, width)]),
        ]

    # ---- keys

    def on_key(self, event: events.Key) -> None:
        """Handle yes, no and scrolling; nothing while it is under way."""
        event.stop()
        event.prevent_default()
        scrolled = {"j": 1, "down": 1, "k": -1, "up": -1, "pagedown": 5, "pageup": -5}
        if event.key in scrolled:
            self._text.scroll_by(scrolled[event.key])
        elif self.phase == "asking" and event.key == "y":
            self.phase = "running"
            self._show_notes(("Running…", "accent"))
            self._run_in_thread(self._switch)
        elif self.phase == "asking" and event.key == "s" and self._on and self.preview:
            self._strict = not self.preview.strict
            self.phase = "reading"
            self._show_notes(("reading the host…", "dim"))
            self._run_in_thread(self._read_preview)
        elif self.phase == "asking" and event.key == "enter":
            self._show_notes(("y: apply, n: cancel", "warn"))
            self._text.reveal(len(self._text.text))
        elif self.phase != "running" and event.key in ("n", "escape", "q", "enter"):
            self.dismiss(None)


def _preview_lines(preview: FastPathPreview, width: int) -> Iterator[Line]:
    yield from ([(part, "title")] for part in wrapped(preview.title, width))
    for words in preview.nothing:
        yield from _bullet(words, "dim", width)
    if preview.refused:
        yield []
        yield [("Not possible on this host", "heading")]
        for words in preview.refused:
            yield from _bullet(words, "bad", width)
        return
    if preview.changes:
        yield []
        yield [("Changes", "heading")]
        for words in preview.changes:
            yield from _bullet(words, "", width)
    if preview.links:
        yield []
        yield [("Links", "heading")]
        yield from ([(part, "dim")] for part in wrapped(", ".join(preview.links), width))
    if preview.notes:
        yield []
        yield [("Warnings", "heading")]
        for words in preview.notes:
            yield from _bullet(words, "warn", width)


def _bullet(words: str, tone: str, width: int) -> Iterator[Line]:
    for number, part in enumerate(wrapped(words, max(10, width - 2))):
        yield [("  " if number else "• ", tone), (part, tone)]

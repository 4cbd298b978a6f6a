"""List past changes with a preview of each undo, and confirm guarded changes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Container
from textual.message import Message
from textual.strip import Strip

from core.operations import Operation, undo_of, undo_title
from core.plan import Plan, Refused
from core.plan.requests import Request
from core.text import safe
from tui.command import CommandError
from tui.screens.dialogs import NOT_BEGUN, Dialog, Line, Overlay, PreviewPane, change_lines, command_lines
from tui.screens.forms.change import ChangeScreen, Form, FormState, PlannedForm
from tui.services import ChangeResult, ChangeService, LoggedChange, PastChange, UnconfirmedChange
from tui.views.formatting import cut, fit, wrapped
from tui.widgets.lines import LinesPane, Span, strip_of

_UNDER = "can't undo it: later changes depend on it. Try: undo those first"
_ENDS = {
    "done": ("done", "ok"), "undone": ("undone", "dim"),
    "failed": ("partial", "bad"), "": ("interrupted", "bad"),
}  # fmt: skip


class HistoryPane(LinesPane):
    """The changes, one a line."""

    class Moved(Message):
        """The cursor stands on another change."""

    class Opened(Message):
        """The user wants to undo this change."""

    def __init__(self) -> None:
        super().__init__()
        self.entries: tuple[PastChange, ...] = ()
        self.message = "reading the journal…"

    @property
    def selected(self) -> PastChange | None:
        """The change that the cursor stands on."""
        return self.entries[self.cursor] if self.cursor < len(self.entries) else None

    def line_count(self) -> int:
        return len(self.entries)

    def moved(self) -> None:
        self.post_message(self.Moved())

    def action_open(self) -> None:
        self.post_message(self.Opened())

    def paint_empty(self, width: int, height: int) -> list[Strip]:
        return [strip_of([(f" {self.message}", self.style_of("dim"))], width)]

    def paint_lines(self, first: int, last: int, width: int) -> list[Strip]:
        return [self._line(place, width) for place in range(first, last)]

    def _line(self, place: int, width: int) -> Strip:
        entry = self.entries[place]
        over = self.cursor_style() if place == self.cursor else ""
        word, tone = _ENDS.get(entry.end, (entry.end, ""))
        spans: list[Span] = [
            ("▌" if over else " ", self.style_of("accent", over)),
            (f"{_when(entry)}  ", self.style_of("dim", over)),
            (fit(word, 12), self.style_of(tone, over)),
            (safe(entry.title), self.style_of("", over)),
        ]
        return strip_of(spans, width, self.style_of("", over) if over else None)


class UndoScreen(ChangeScreen):
    """The undo of one change, previewed; a yes does it."""

    def __init__(self, past: PastChange, change_service: ChangeService) -> None:
        super().__init__(Form("Undo", "light", lambda values, topology: (), is_question=True), change_service)
        self._past = past

    def make_plan(self, typed: dict[str, str]) -> PlannedForm:
        return PlannedForm({}, FormState(), (), undo_plan(self._past))

    def perform(
        self, requests: Sequence[Request], plan: Plan, progress: Callable[[Operation], None]
    ) -> ChangeResult:
        return self.change_service.undo(self._past, progress)

    @property
    def success(self) -> str:
        return "undone"


def undo_plan(past: PastChange) -> Plan | Refused:
    """Return the undo of a change as a plan, or the reasons why there is none."""
    if past.end == "undone":
        return Refused(("can't undo it: it is undone already",))
    if past.end == "under way":
        return Refused(("can't undo it: it is under way. Try: again in a moment",))
    if past.is_final:
        return Refused(
            ("can't undo it: it has no undo, as the kernel doesn't take back a forgotten connection",)
        )
    if past.dependents:
        return Refused((_UNDER, *past.dependents))
    return Plan(undo_title(past.title), undo_of(past.begun))


class HistoryScreen(Dialog[ChangeResult | None]):
    """Show past changes, and the commands of the selected one's undo.

    `only_open` leaves out those that were completed or undone.
    """

    AUTO_FOCUS = "HistoryPane"
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (110, "-wide")]
    BINDINGS = [
        Binding("escape,u,q", "dismiss", "Close", show=False),
        Binding("f", "forget", "Forget", show=False),
        Binding("pagedown", "scroll(1)", show=False, priority=True),
        Binding("pageup", "scroll(-1)", show=False, priority=True),
    ]

    def __init__(self, change_service: ChangeService, only_open: bool = False) -> None:
        super().__init__()
        self._change_service, self._only_open = change_service, only_open
        self._list, self._preview = HistoryPane(), PreviewPane(lambda width: [])

    def compose(self) -> ComposeResult:
        with Container(id="change-box") as box:
            box.border_title = " Interrupted changes " if self._only_open else " Changes "
            box.border_subtitle = " Enter: undo · f: forget (if interrupted) · Esc: close "
            yield self._list
            yield self._preview

    def on_mount(self) -> None:
        self._read()

    def _read(self) -> None:
        threading.Thread(target=self._read_journal, name="read-journal", daemon=True).start()

    def _read_journal(self) -> None:
        try:
            entries, message = self._change_service.history(), "no changes yet"
        except CommandError as error:
            entries, message = (), safe(str(error))
        found = tuple(one for one in entries if one.is_open or not self._only_open)
        with suppress(RuntimeError):  # the program has ended
            self.app.call_from_thread(self._show, found, message)

    def _show(self, entries: tuple[PastChange, ...], message: str) -> None:
        able = (place for place, one in enumerate(entries) if isinstance(undo_plan(one), Plan))
        cursor = self._list.cursor if self._list.entries else next(able, 0)
        self._list.entries, self._list.message = entries, message
        self._list.move_to(cursor)
        self.on_history_pane_moved()

    def on_history_pane_moved(self) -> None:
        """Show the undo of the selected change."""
        entry = self._list.selected
        self._preview.top = 0
        known = {one.entry_id: f"{_when(one)}  {one.title}" for one in self._list.entries}
        self._preview.show(lambda width: _undo_lines(entry, known, width) if entry else [])

    def on_history_pane_opened(self) -> None:
        """Ask whether it shall be undone."""
        entry = self._list.selected
        plan = undo_plan(entry) if entry else None
        if entry and isinstance(plan, Plan):
            self.app.push_screen(UndoScreen(entry, self._change_service), self._undo_ended)
        elif isinstance(plan, Refused):
            self.notify(plan.reasons[0], markup=False)

    def _undo_ended(self, ended: ChangeResult | None) -> None:
        if ended is not None:
            self.dismiss(ended)
        else:
            self._read()

    def action_forget(self) -> None:
        """Keep what an interrupted change has made, and don't offer it again."""
        entry = self._list.selected
        if entry is None or not entry.is_open:
            self.notify("can't forget it: only an interrupted change can be forgotten", markup=False)
            return
        try:
            self._change_service.forget(entry)
        except CommandError as error:
            self.notify(str(error), severity="error", markup=False)
        self._read()

    def action_scroll(self, pages: int) -> None:
        self._preview.scroll_by(pages * max(1, self._preview.page - 1))


def _when(entry: PastChange) -> str:
    return time.strftime("%m-%d %H:%M:%S", time.localtime(entry.at))


def _undo_lines(past: PastChange, known: Mapping[str, str], width: int) -> list[Line]:
    """Return the commands of the undo, or why there is none; `known` has titles by id."""
    plan = undo_plan(past)
    lines: list[Line] = [[(safe(one), "bad")] for one in past.errors]
    if isinstance(plan, Refused):
        return [
            [(safe(past.title), "title")],
            *lines,
            *([(safe(known.get(one, one)), "dim")] for one in plan.reasons),
        ]
    return [*lines, *change_lines(plan.title, plan.steps, (), (), NOT_BEGUN, width)]


_LOG_ENDS = {
    "done": ("done", "ok"), "undone": ("undone", "warn"), "failed": ("partly undone", "bad"),
    "": ("not started", "bad"), "…": ("running", "accent"),
}  # fmt: skip


def log_overlay(log: Sequence[LoggedChange]) -> Overlay:
    """Return an overlay of the whole log, the newest change first."""
    return Overlay(" Command log ", lambda width: lines_of(log, width), 110, "L")


def lines_of(log: Sequence[LoggedChange], width: int) -> list[Line]:
    """Return each change with its commands, wrapped to the width."""
    if not log:
        return [[("No commands have run in this session.", "dim")]]
    lines: list[Line] = []
    for logged in reversed(log):
        word, tone = _LOG_ENDS[logged.end]
        clock = time.strftime("%H:%M:%S", time.localtime(logged.at))
        title = cut(safe(logged.title), max(8, width - len(clock) - len(word) - 4))
        lines.append([(f"{clock}  ", "dim"), (title, "title"), ("  ", ""), (word, tone)])
        for number, command in enumerate(logged.commands):
            last = number == len(logged.commands) - 1
            mark = "✓ " if not logged.errors else "✗ " if last and logged.end == "undone" else "· "
            lines += command_lines(_short(command), mark, width)
        lines += [[(part, "bad")] for error in logged.errors for part in wrapped(safe(error), width)]
        if logged.undone:
            lines.append([("undone by", "heading")])
            lines += [
                line for command in logged.undone for line in command_lines(_short(command), "· ", width)
            ]
        lines.append([])
    return lines[:-1]


def _short(command: str) -> str:
    """Return a command without its input text."""
    first, *more = command.split("\n")
    return f"{first}   ({len(more)} lines: vnet-tui history --json has them)" if more else first


_TICK = 0.25  # seconds
_TOO_LATE = "can't keep it: its time is over. Try: u, which shows how it ended"


class ConfirmScreen(Dialog[str]):
    """Count down to the undo of a guarded change; returns a sentence about its end."""

    AUTO_FOCUS = ""

    def __init__(self, waiting: UnconfirmedChange, change_service: ChangeService) -> None:
        super().__init__()
        self._waiting, self._change_service = waiting, change_service
        self._until = time.monotonic() + waiting.seconds_left
        self._hint = ""
        self._text, self._answered = PreviewPane(self._lines), False

    def compose(self) -> ComposeResult:
        with Container(id="confirm-box") as box:
            box.border_title = " Keep it? "
            box.border_subtitle = " y: keep · n: undo now "
            yield self._text

    def on_mount(self) -> None:
        self.set_interval(_TICK, self._tick)

    @property
    def seconds_left(self) -> int:
        """Whole seconds until it is undone."""
        return max(0, int(self._until - time.monotonic() + 0.99))

    def _lines(self, width: int) -> list[Line]:
        left = self.seconds_left
        return [
            *([(part, "title")] for part in wrapped(safe(self._waiting.title), width)),
            [],
            [("Keep it? y / n", "accent"), (f"   undone in {left} s unless you press y", "warn")],
            [(self._hint, "warn")],
        ]

    def _tick(self) -> None:
        if self._answered:
            return
        self._text.show(self._lines)
        if not self.seconds_left:
            self.dismiss(f"Not confirmed, so it was undone: {self._waiting.title}")

    def on_key(self, event: events.Key) -> None:
        """Handle yes and no, and no other key."""
        event.stop()
        event.prevent_default()
        if event.key in ("enter", "escape", "q") and not self._answered:
            self._hint = "y: keep it, n: undo it"
            self._text.show(self._lines)
        if event.key in ("y", "n") and not self._answered:
            self._answered = True
            self._text.show(lambda width: [[("Running…", "accent")]])
            work = self._confirm if event.key == "y" else self._undo_now
            threading.Thread(target=lambda: self._end(work), name="keep").start()

    def _end(self, work: Callable[[], str]) -> None:
        try:
            sentence = work()
        except CommandError as error:
            sentence = str(error)
        with suppress(RuntimeError):  # the program has ended
            self.app.call_from_thread(self.dismiss, sentence)

    def _confirm(self) -> str:
        kept = self._change_service.confirm(self._waiting.entry_id)
        return f"Kept: {self._waiting.title}" if kept else _TOO_LATE

    def _undo_now(self) -> str:
        for entry in self._change_service.history():
            if entry.entry_id == self._waiting.entry_id:
                ended = self._change_service.undo(entry, lambda operation: None)
                return "; ".join(ended.errors) or f"Undone: {entry.title}"
        return "can't undo it: it isn't in the journal any more"

"""Define the screen on which a change is entered, previewed and executed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from textual import events
from textual.app import ComposeResult
from textual.containers import Container
from textual.message import Message

from core.model import Ref
from core.operations import Operation
from core.plan import Plan, Refused
from core.plan.requests import CreateContainer, CreateNetwork, Request
from core.text import safe
from core.topology import Topology
from tui.command import CommandError
from tui.presenter import Worker
from tui.screens.dialogs import NOT_BEGUN, Dialog, Line, PreviewPane, change_lines
from tui.services import ChangeResult, ChangeService, PlanScope
from tui.views.formatting import wrapped
from tui.widgets.form import Field, FormPane

type Values = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class FormState:
    """Proposals and options of fields, and the fields that are hidden now."""

    proposals: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    hidden: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Form:
    """A form.

    `fill` gets the typed values, `requests` the values of all visible fields; both may raise CommandError. A
    form that `is_question` has no fields and wants a yes.
    """

    title: str
    parts: PlanScope
    requests: Callable[[Values, Topology], Sequence[Request]]
    fields: tuple[Field, ...] = ()
    fill: Callable[[Topology, Values], FormState] = lambda topology, values: FormState()
    is_question: bool = False


def form_about(
    ref: Ref | None,
    title: str,
    fields: tuple[Field, ...],
    fill: Callable[[Topology, Values, Ref | None], FormState],
    request: Callable[[Values, Topology], Request],
    parts: PlanScope = "light",
) -> Form:
    """Return a form that makes one request; `fill` gets the selected row's ref."""
    return Form(
        title,
        parts,
        lambda values, topology: (request(values, topology),),
        fields,
        lambda topology, values: fill(topology, values, ref),
    )


def words(text: str) -> tuple[str, ...]:
    """Split the text of a field that takes several words."""
    return tuple(text.replace(",", " ").split())


def number(text: str, what: str, example: int) -> int:
    """Return the number in a field, 0 for an empty one.

    Raises CommandError.
    """
    if text and not (text.isascii() and text.isdecimal()):
        raise CommandError(f"can't use \"{safe(text)}\" as {what}: it isn't a number. Try: {example}")
    return int(text or 0)


_MAX_AGE = 2.0  # seconds after which the host is read again while the user types
_READING: list[Line] = [[("reading the host…", "dim")]]

Phase = Literal["planning", "running", "ended"]


@dataclass(frozen=True, slots=True)
class PlannedForm:
    """The plan of the values that the fields had."""

    values: dict[str, str]
    filled: FormState
    requests: Sequence[Request]
    plan: Plan | Refused


class WorkDone(Message):
    """Something that a thread has found out, or the exception that it ended with."""

    def __init__(self, result: Any) -> None:
        super().__init__()
        self.result = result


class ChangeScreen(Dialog[ChangeResult | None]):
    """Show fields, if there are any, and every command that they lead to.

    Keys go to the screen itself, so that none is lost or overtakes another, however fast they are typed.
    """

    AUTO_FOCUS = ""
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (110, "-wide")]

    def __init__(self, form: Form, change_service: ChangeService) -> None:
        super().__init__()
        self.form, self.change_service = form, change_service
        self.fields = FormPane(form.fields)
        self.preview = PreviewPane(lambda width: _READING)
        self.phase: Phase = "planning"
        self.planned: PlannedForm | None = None
        self._done = NOT_BEGUN
        self._topology: Topology | None = None
        self._read_at = 0.0
        self._is_zoomed = False
        self._worker = Worker(lambda kind, result: self._post_result(result))

    def compose(self) -> ComposeResult:
        with Container(id="change-box") as box:
            box.border_title = f" {self.form.title} "
            yield self.fields
            yield self.preview
        box.set_class(self.form.is_question, "-asks")

    def on_mount(self) -> None:
        self._worker.start()
        self._request_plan()
        self._show_keys()

    def on_unmount(self) -> None:
        self._worker.stop()

    def on_resize(self) -> None:
        self._fit()
        self.call_after_refresh(self._show_keys)

    def _fit(self) -> None:
        """Fit the form's height to its fields if the preview lies below it."""
        wide = self.has_class("-wide") and not self.form.is_question
        width = max(20, self.fields.size.width)
        most = max(6, self.size.height * 11 // 20)
        self.fields.styles.height = "1fr" if wide else min(most, self.fields.height_for(width))

    def _show_keys(self) -> None:
        does = "show commands" if self._hides_commands() else "apply"
        accepts = f"Enter: {does} · Tab: next · Esc: cancel"
        if self.planned is None:
            accepts = "reading… · Esc: close"
        elif self.form.is_question and isinstance(self.planned.plan, Refused):
            accepts = "Esc: close"
        elif self.form.is_question:
            accepts = f"y: {does} · n: cancel"
        elif self._is_zoomed:
            accepts = f"Enter or y: {does} · Esc: back"
        keys = {
            "planning": f" {accepts} · PgDn PgUp: scroll ",
            "running": " running… ",
            "ended": " Esc: close · PgDn PgUp: scroll ",
        }
        self.query_one("#change-box").border_subtitle = keys[self.phase]

    def _hides_commands(self) -> bool:
        """Whether there are commands, none of them on screen: the first Enter shows them."""
        return self.preview.first_command is not None and not self.preview.shows_commands

    # ---- keys

    async def on_key(self, event: events.Key) -> None:
        """Handle every key except those of the whole program."""
        event.stop()
        event.prevent_default()
        if event.key in ("pagedown", "pageup"):
            page = max(1, self.preview.page - 1)
            self.preview.scroll_by(page if event.key == "pagedown" else -page)
            self._show_keys()
        elif self.phase == "ended":
            if event.key in ("escape", "enter", "q"):
                self.dismiss(None)
        elif self.phase == "planning":
            self._answer(event) if self.form.is_question or self._is_zoomed else self._edit(event)

    def _answer(self, event: events.Key) -> None:
        """Handle yes, no and scrolling; Enter means yes only after fields."""
        steps = {"j": 1, "down": 1, "k": -1, "up": -1}
        if event.key == "y" or (event.key == "enter" and self._is_zoomed):
            self.execute()
        elif event.key == "enter":
            self.show_notes(("y: apply, n: cancel", "warn"))
        elif event.key in ("n", "escape", "q"):
            self._zoom_preview(False) if self._is_zoomed else self.dismiss(None)
        elif event.key in steps:
            self.preview.scroll_by(steps[event.key])
            self._show_keys()

    def _edit(self, event: events.Key) -> None:
        if event.key == "escape":
            self.dismiss(None)
        elif event.key in ("enter", "ctrl+s"):
            self.execute()
        elif event.key in ("tab", "down", "shift+tab", "up"):
            self.fields.current.typed.put(self.fields.current.value)
            self.fields.move(1 if event.key in ("tab", "down") else -1)
        elif self.fields.current.feed_key(event):
            self._changed()

    def on_paste(self, event: events.Paste) -> None:
        """Put what is pasted into the field."""
        event.stop()
        if self.phase == "planning" and not self.form.is_question:
            self.fields.current.paste(event.text)
            self._changed()

    def _changed(self) -> None:
        self.fields.repaint()
        self._request_plan()

    def _zoom_preview(self, zoomed: bool) -> None:
        """Show only the commands if the fields leave no room, or everything again."""
        self._is_zoomed = zoomed
        self.fields.display = not zoomed
        self.preview.top = 0
        self._show_keys()

    def _reveal_commands(self) -> None:
        """Scroll to the first command, where it is not in sight."""
        if not self.preview.shows_commands and self.preview.first_command is not None:
            self.preview.reveal(self.preview.first_command + 1)
        self._show_keys()

    # ---- planning, on the worker's thread

    def _typed(self) -> dict[str, str]:
        """Return the values that the user typed, without proposals."""
        return {one.name: one.value for one in self.form.fields if one.touched}

    def _request_plan(self) -> None:
        typed = self._typed()
        self._worker.submit("plan", lambda: self.make_plan(typed))

    def make_plan(self, typed: dict[str, str]) -> PlannedForm:
        """Make the plan of typed values. Raises CommandError."""
        if self._topology is None or time.monotonic() - self._read_at > _MAX_AGE:
            self._topology, self._read_at = (
                self.change_service.read_topology(self.form.parts),
                time.monotonic(),
            )
        topology = self._topology
        filled = self.form.fill(topology, typed)
        every = {one.name: "" for one in self.form.fields} | dict(filled.proposals) | typed
        values = {name: value for name, value in every.items() if name not in filled.hidden}
        requests: Sequence[Request] = ()
        plan: Plan | Refused
        try:
            _check_choices(self.form, values, typed)
            requests = self.form.requests(values, topology)
            plan = self.change_service.plan(requests, topology)
        except CommandError as error:
            plan = Refused((str(error),))
        return PlannedForm(values, filled, requests, plan)

    def _post_result(self, result: Any) -> None:
        with suppress(RuntimeError):  # the event loop has ended
            self.post_message(WorkDone(result))

    def on_work_done(self, message: WorkDone) -> None:
        """Handle the result of a thread."""
        match message.result:
            case PlannedForm() as planned:
                self._show_planned(planned)
            case ChangeResult() as ended:
                self._show_outcome(ended)
            case int() as done:
                self._done = done
                self._show_plan()
            case Exception() as error:
                self._fail(error)

    def _show_planned(self, planned: PlannedForm) -> None:
        """Show a plan; if the fields have changed, the next one is on its way."""
        if self.phase != "planning":
            return
        for one in self.form.fields:
            one.options = planned.filled.options.get(one.name, one.options)
            one.hidden = one.name in planned.filled.hidden
            one.propose(planned.filled.proposals.get(one.name, ""))
        self.planned = planned
        if not self._is_current(planned):
            self._request_plan()
        self._show_plan()
        self._show_keys()
        self.call_after_refresh(self._show_keys)

    def _is_current(self, planned: PlannedForm) -> bool:
        """Return whether the plan is that of the current values."""
        shown = {one.name: one.value for one in self.form.fields if not one.hidden}
        return shown == planned.values

    def _show_plan(self) -> None:
        """Show the plan, or why there is none."""
        if self.planned is None:
            return
        plan = self.planned.plan
        if isinstance(plan, Refused):
            self.show_notes(*((reason, "bad") for reason in plan.reasons if not self.form.is_question))
            self.preview.show(lambda width: self._refusal_lines(width, plan) if self.form.is_question else [])
            return
        if self._done == NOT_BEGUN:
            self.show_notes()
        self.preview.show(
            lambda width: change_lines(
                plan.title, plan.steps, plan.side_effects, plan.warnings, self._done, width
            )
        )
        ticks = [place for place, line in enumerate(self.preview.text) if line and line[0][0] == "▶ "]
        if ticks:
            self.preview.reveal(ticks[0])

    def _refusal_lines(self, width: int, refused: Refused) -> list[Line]:
        return [[(part, "bad")] for one in refused.reasons for part in wrapped(safe(one), width)]

    def show_notes(self, *notes: tuple[str, str]) -> None:
        """Show (text, tone) notes under the fields."""
        if self._is_zoomed and notes and self.phase != "running":
            self._zoom_preview(False)
        self.fields.set_notes(notes)
        self._fit()

    # ---- doing it

    def execute(self) -> None:
        """Do what is shown; where the commands are not in sight, show them first."""
        planned = self.planned
        if planned is None or not self._is_current(planned):
            self.show_notes(("The commands weren't on screen yet: press the key again.", "warn"))
            return
        if isinstance(planned.plan, Refused) or not planned.plan.steps:
            return
        if not self.preview.shows_commands:
            if not self.form.is_question:
                self._zoom_preview(True)
            self.call_after_refresh(self._reveal_commands)
            return
        self.phase, self._done = "running", 0
        self._show_keys()
        self.show_notes(("Running…", "accent"))
        plan = planned.plan
        # Not a daemon: it is completed even if the program ends meanwhile.
        threading.Thread(target=lambda: self._post_result(self._run(planned, plan)), name="change").start()

    def _run(self, planned: PlannedForm, plan: Plan) -> ChangeResult | Exception:
        count = 0

        def progress(operation: Operation) -> None:
            nonlocal count
            self._post_result(count)
            count += 1

        try:
            return self.perform(planned.requests, plan, progress)
        except Exception as error:
            return error

    def perform(
        self, requests: Sequence[Request], plan: Plan, progress: Callable[[Operation], None]
    ) -> ChangeResult:
        """Do it; on a thread of its own. Raises CommandError."""
        return self.change_service.change(requests, self.form.parts, plan, progress)

    def _show_outcome(self, ended: ChangeResult) -> None:
        """Show how it ended."""
        if ended.end == "":
            self._show_new_plan(ended)
        elif ended.end == self.success:
            requests = self.planned.requests if self.planned else ()
            made = [one.name for one in requests if isinstance(one, CreateNetwork | CreateContainer)]
            self.dismiss(replace(ended, made=next(iter(made), "")))
        else:
            self._end([*((error, "bad") for error in ended.errors), _after(ended)])

    @property
    def success(self) -> str:
        """The end that was wanted."""
        return "done"

    def _show_new_plan(self, ended: ChangeResult) -> None:
        """Show the plan again, as it isn't the one that was agreed to."""
        assert self.planned is not None
        self.phase, self._done, self._topology = "planning", NOT_BEGUN, None
        self.planned = PlannedForm(
            self.planned.values, self.planned.filled, self.planned.requests, ended.plan
        )
        self._show_plan()
        self._show_keys()
        if isinstance(ended.plan, Refused):
            reasons = () if self.form.is_question else ended.plan.reasons
            self.show_notes(
                ("The host has changed meanwhile.", "warn"), *((reason, "bad") for reason in reasons)
            )
        else:
            self.show_notes(("The host has changed meanwhile. The new plan:", "warn"))

    def _fail(self, error: Exception) -> None:
        """Show an error of planning or execution."""
        self.log.error(repr(error))
        is_running = self.phase == "running"
        unexpected = f"can't {'apply' if is_running else 'plan'} the change: {error!r}"
        message = str(error) if isinstance(error, CommandError) else unexpected
        if is_running:
            self._end([(message, "bad")])
        else:
            self.show_notes((message, "bad"))

    def _end(self, notes: Sequence[tuple[str, str]]) -> None:
        self.phase = "ended"
        self._show_keys()
        self.show_notes(*notes)


def _check_choices(form: Form, values: Mapping[str, str], typed: Mapping[str, str]) -> None:
    """Raise CommandError if a value isn't among a field's choices."""
    for one in form.fields:
        if one.choices and one.name in values and typed.get(one.name, one.choices[0]) not in one.choices:
            given = f'"{safe(typed[one.name])}"' if typed[one.name] else "an empty value"
            choices = ", ".join(one.choices)
            raise CommandError(f"can't use {given} as {one.label}: unknown choice. Try: {choices}")


def _after(ended: ChangeResult) -> tuple[str, str]:
    if ended.end == "undone":
        return "Everything was undone: the host is as it was before.", "ok"
    if ended.end == "kept":
        return "Nothing was undone: the host is unchanged.", "ok"
    return "can't undo everything: see the errors above. Try: Esc, then u", "warn"

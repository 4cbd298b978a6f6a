"""Edit text: the fields of a form, and the prompt for filters and commands."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from textual import events
from textual.strip import Strip

from core.text import safe
from tui.views.formatting import cut, fit, width_of, wrapped
from tui.widgets.lines import Painted, Span, strip_of


@dataclass(slots=True)
class LineEditor:
    """The text, and the place in it that typing goes to."""

    text: str = ""
    place: int = 0

    def put(self, text: str) -> None:
        """Set another text, with the cursor at its end."""
        self.text, self.place = text, len(text)

    def feed_key(self, event: events.Key) -> bool:
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
        """Insert text at the cursor; of several lines only the first."""
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


_EDITS: dict[str, Callable[[LineEditor], None]] = {
    "backspace": lambda typed: typed._remove(typed.place - 1, typed.place),
    "delete": lambda typed: typed._remove(typed.place, typed.place + 1),
    "ctrl+u": lambda typed: typed._remove(0, typed.place),
    "ctrl+w": LineEditor._remove_word,
    "left": lambda typed: typed._move(typed.place - 1),
    "right": lambda typed: typed._move(typed.place + 1),
    "home": lambda typed: typed._move(0),
    "ctrl+a": lambda typed: typed._move(0),
    "end": lambda typed: typed._move(len(typed.text)),
    "ctrl+e": lambda typed: typed._move(len(typed.text)),
}


_LABEL = 17
_LEAST_FIELDS = 2


@dataclass(slots=True)
class Field:
    """A field; it holds a proposal until the user has `touched` it.

    Typing replaces the proposal. With `options` the first one that begins with the typed text is meant; those
    given at the start are the only valid values, later ones are examples.
    """

    name: str
    label: str
    hint: str = ""
    options: tuple[str, ...] = ()
    touched: bool = False
    hidden: bool = False
    typed: LineEditor = field(default_factory=LineEditor)
    choices: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.choices = self.options

    @property
    def value(self) -> str:
        """What is meant."""
        return self.typed.text + self.completion

    @property
    def completion(self) -> str:
        """The rest of the option that was begun."""
        text = self.typed.text
        if not text or text in self.options:
            return ""
        return next((one[len(text) :] for one in self.options if one.startswith(text)), "")

    def propose(self, text: str) -> None:
        """Hold that, unless a person has said otherwise."""
        if not self.touched and text != self.typed.text:
            self.typed.put(text)

    def feed_key(self, event: events.Key) -> bool:
        """Take one key; whether the field may hold something else now."""
        if self.options and event.key in ("left", "right", "space"):
            self._choose(-1 if event.key == "left" else 1)
            return True
        if not self.touched and (event.is_printable or event.key in ("backspace", "delete")):
            self.typed.put("")
            self.touched = True
        before = self.typed.text
        taken = self.typed.feed_key(event)
        self.touched = self.touched or self.typed.text != before
        return taken

    def paste(self, text: str) -> None:
        """Take what is pasted."""
        if not self.touched:
            self.typed.put("")
        self.touched = True
        self.typed.insert(text)

    def _choose(self, step: int) -> None:
        """Go on to another option."""
        place = self.options.index(self.value) + step if self.value in self.options else 0
        self.typed.put(self.options[place % len(self.options)])
        self.touched = True


class FormPane(Painted):
    """Show fields, and below them notes such as errors of their values."""

    def __init__(self, fields: Sequence[Field]) -> None:
        super().__init__()
        self._fields, self._current, self._top = tuple(fields), 0, 0
        self.notes: tuple[tuple[str, str], ...] = ()

    @property
    def shown(self) -> list[Field]:
        """The fields in sight."""
        return [one for one in self._fields if not one.hidden]

    @property
    def current(self) -> Field:
        """The field that keys go to."""
        return self.shown[self.place]

    @property
    def place(self) -> int:
        """Its place among those in sight; it stays at its field when others come or go."""
        before = sum(not one.hidden for one in self._fields[: self._current])
        return min(before, len(self.shown) - 1)

    def move(self, step: int) -> None:
        """Go to another field."""
        self._current = self._fields.index(self.shown[(self.place + step) % len(self.shown)])
        self.repaint()

    def set_notes(self, notes: Sequence[tuple[str, str]]) -> None:
        """Say these (text, tone) under the fields."""
        self.notes = tuple(notes)
        self.repaint()

    def height_for(self, width: int) -> int:
        """Return the number of lines that it needs."""
        notes = len(list(self._note_lines(width)))
        return len(self.shown) + max(3, 1 + notes) if self.shown else notes

    def paint(self, width: int, height: int) -> list[Strip]:
        """Paint the notes, and as many fields as fit, with the current one."""
        notes = list(self._note_lines(width))
        if not self.shown:
            return notes
        room = max(_LEAST_FIELDS, height - len(notes) - 1)
        first = max(self.place - room + 1, min(self.place, self._top))
        self._top = max(0, min(len(self.shown) - room, first))
        last = min(len(self.shown), self._top + room)
        fields = [self._field(place, width) for place in range(self._top, last)]
        return [*fields, self._more(len(self.shown) - last, width), *notes]

    def _more(self, below: int, width: int) -> Strip:
        """Return the hints at fields above and below the visible ones."""
        more = [f"↑ {self._top} more"] if self._top else []
        more += [f"↓ {below} more"] if below else []
        return strip_of([(f" {'   '.join(more)}", self.style_of("dim"))], width)

    def _note_lines(self, width: int) -> Iterator[Strip]:
        for text, tone in self.notes:
            for line in wrapped(safe(text), max(10, width - 2)):
                yield strip_of([(" ", self.style_of("")), (line, self.style_of(tone))], width)

    def _field(self, place: int, width: int) -> Strip:
        one, current = self.shown[place], place == self.place
        label = fit(one.label, min(_LABEL, width // 3))
        spans: list[Span] = [("▌" if current else " ", self.style_of("accent"))]
        spans += [(label + " ", self.style_of("title" if current else "dim"))]
        room = max(4, width - width_of(label) - 3)
        return strip_of([*spans, *self._content(one, current, room)], width)

    def _content(self, one: Field, current: bool, room: int) -> Iterator[Span]:
        text, place = one.typed.text, one.typed.place
        error = self._error_of(one)
        if not current:
            tone = "bad" if error else "" if one.value else "dim"
            yield cut(safe(one.value) or one.hint, room), self.style_of(tone)
            return
        before, under, after = safe(text[:place]), safe(text[place : place + 1]), safe(text[place + 1 :])
        while before and width_of(before + under + after) >= room:
            before = before[1:]
        completion = safe(one.completion)
        if not under:
            under, completion = completion[:1] or " ", completion[1:]
        yield before, self.style_of("" if one.touched else "cursor")
        yield under, self.style_of("caret")
        yield after, self.style_of("")
        yield completion, self.style_of("dim")
        used = width_of(before + under + after + completion)
        left = max(0, room - used - 2)
        aside, tone = (error, "bad") if error else (self._aside(one, left), "dim")
        yield "  " + cut(aside, left), self.style_of(tone)

    def _aside(self, one: Field, width: int) -> str:
        """Return the text beside a field: the next options, or a hint."""
        place = one.options.index(one.value) if one.value in one.options else -1
        others = [safe(option) for option in (*one.options[place + 1 :], *one.options[: max(0, place)])]
        if others:
            return options_text(others, width)
        return "" if one.touched and one.value else one.hint

    def _error_of(self, one: Field) -> str:
        """Return why a typed value is wrong, "" if no note quotes it.

        Of "can't VERB OBJECT: REASON" it is only the reason: there is little space beside a field.
        """
        quoted = f'"{safe(one.value)}"'
        wrong = (safe(text) for text, tone in self.notes if tone == "bad" and one.touched and one.value)
        found = next((text for text in wrong if quoted in text), "")
        return found.partition(": ")[2] if found.startswith("can't ") else found

    def on_click(self, event: events.Click) -> None:
        if self._top + event.y < len(self.shown):
            self._place = self._top + event.y
            self.repaint()


def options_text(options: Sequence[str], width: int) -> str:
    """Return the first options that fit, and the number of the others."""
    for count in range(len(options), 0, -1):
        more = [f"+{len(options) - count}"] if count < len(options) else []
        text = f"‹ › {' · '.join([*options[:count], *more])}"
        if width_of(text) <= width:
            return text
    return f"‹ › +{len(options)}"


Kind = Literal["/", ":", "w"]
Outcome = Literal["typed", "accepted", "given up", ""]

HINTS: dict[Kind, str] = {
    "/": "word  key:value  !not      Enter: keep  Esc: show all",
    ":": "name of a view or item      Tab: complete  Enter: go there",
    "w": "NAME [PORT/PROTO]: can it be reached?      Tab: complete  Enter: ask",
}


class Prompt(Painted):
    """One line of typed text.

    It takes no focus: the dashboard feeds it keys in the order in which they were typed, however fast.
    """

    def __init__(self, complete: Callable[[str], str], hint: str = "") -> None:
        """`complete` completes what was typed after ":"; `hint` replaces the usual one."""
        super().__init__()
        self._hint = hint
        self.kind: Kind = "/"
        self._label = ""
        self._typed = LineEditor()
        self._complete = self._completer = complete

    @property
    def text(self) -> str:
        """The typed text."""
        return self._typed.text

    def open(
        self, kind: Kind, text: str = "", complete: Callable[[str], str] | None = None, label: str = ""
    ) -> None:
        """Open the prompt with that text; `complete` completes it, None does as after ":".

        `label` is shown before the text, by default the kind.
        """
        self.kind, self._label = kind, label or f"{kind} "
        self._completer = complete or self._complete
        self._typed.put(text)
        self.display = True
        self.repaint()

    def close(self) -> None:
        """Go away."""
        self.display = False

    # ---- typing

    def feed_key(self, event: events.Key) -> Outcome:
        """Handle one key; returns its effect."""
        if event.key == "enter":
            return "accepted"
        if event.key == "escape" or (event.key == "backspace" and not self.text):
            return "given up"
        before = self.text
        if event.key == "tab":
            self._apply_completion()
        else:
            self._typed.feed_key(event)
        self.repaint()
        return "typed" if self.text != before else ""

    def insert(self, text: str) -> None:
        """Insert text at the cursor; of several lines only the first."""
        self._typed.insert(text)

    def _apply_completion(self) -> None:
        if self.kind != "/":
            self._typed.put(self._completer(self.text))

    # ---- painting

    def paint(self, width: int, height: int) -> list[Strip]:
        before, under, after = self._parts()
        label = f" {cut(self._label, max(4, width // 2))}"
        shown = max(1, width - 4 - width_of(label) - width_of(under))
        while before and width_of(before) > shown:
            before = before[1:]
        spans: list[Span] = [(label, self.style_of("key")), (before, self.style_of(""))]
        spans += [(under, self.style_of("caret")), (after, self.style_of(""))]
        if self.kind != "/" and self._typed.place == len(self.text):
            spans.append((self._completer(self.text)[len(self.text) :], self.style_of("dim")))
        if not self.text:
            spans.append((f" {self._hint or HINTS[self.kind]}", self.style_of("dim")))
        return [strip_of(spans, width)]

    def _parts(self) -> tuple[str, str, str]:
        """Return the printable text before, under and after the cursor."""
        text, place = self._typed.text, self._typed.place
        return safe(text[:place]), safe(text[place : place + 1]) or " ", safe(text[place + 1 :])

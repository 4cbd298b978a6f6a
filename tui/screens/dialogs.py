"""Show panels above the dashboard: texts, plans, help, findings and problems."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial
from itertools import zip_longest
from typing import Any

from rich.style import Style
from textual import events
from textual.app import ComposeResult
from textual.await_complete import AwaitComplete
from textual.binding import Binding
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.strip import Strip

from core.diagnose import Finding
from core.model import Problem, Ref
from core.operations import Operation
from core.text import safe, split_commands
from tui import keys
from tui.keys import KeyScope
from tui.views import query
from tui.views.findings import tone_of
from tui.views.formatting import fit, width_of, wrapped
from tui.views.rows import ListView
from tui.widgets.lines import LinesPane, Span, strip_of


class Dialog[Result](ModalScreen[Result]):
    """A screen above the dashboard that is dismissed once.

    Keys that were typed before it disappeared still reach it. If another screen is above it, it is dismissed
    when it is on top again.
    """

    _ended = False
    _late: tuple[Result | None] | None = None

    def dismiss(self, result: Result | None = None) -> Any:
        """End with that result, unless it has ended."""
        if self._ended or not self.is_attached:
            return AwaitComplete()
        if self.app.screen is not self:
            self._late = self._late or (result,)
            return AwaitComplete()
        self._ended = True
        return super().dismiss(result)

    def on_screen_resume(self) -> None:
        """Close on return to the screen, if that was due."""
        if self._late:
            self.dismiss(*self._late)


# The share of the terminal that the box may take, as the style sheet has it, in percent; and what its frame
# takes of that, in cells.
_MOST, _FRAME = 96, 4
# One line as (text, tone) pieces.
Line = Sequence[tuple[str, str]]


class TextPane(LinesPane):
    """Lines of text, made for the width that there is."""

    def __init__(self, make: Callable[[int], list[Line]]) -> None:
        super().__init__()
        self._make = make
        self.text: list[Line] = []

    def on_resize(self) -> None:
        """Lay out the text for the new size."""
        self.text = self._make(self.size.width - 2)

    def line_count(self) -> int:
        return len(self.text)

    def scroll_to_cursor(self) -> None:
        """Scroll to the cursor's line, which isn't marked here."""
        self.top = self.cursor

    def action_cursor_down(self) -> None:
        self.scroll_by(1)

    def action_cursor_up(self) -> None:
        self.scroll_by(-1)

    def paint_lines(self, first: int, last: int, width: int) -> list[Strip]:
        return [self._line(self.text[place], width) for place in range(first, last)]

    def _line(self, line: Line, width: int) -> Strip:
        spans: list[Span] = [(" ", Style.null()), *((text, self.style_of(tone)) for text, tone in line)]
        return strip_of(spans, width)


class Overlay(Dialog[None]):
    """A titled pane of text over the dashboard."""

    BINDINGS = [Binding("escape,q", "dismiss", "Close", show=False)]

    def __init__(
        self, title: str, make: Callable[[int], list[Line]], width: int, also_closes: str = ""
    ) -> None:
        """`make` returns the lines for a width; `also_closes` is one more key."""
        super().__init__()
        self._title, self._text_maker, self._wanted = title, make, width
        if also_closes:
            self._bindings.bind(also_closes, "dismiss", show=False)

    def compose(self) -> ComposeResult:
        with Vertical() as box:
            box.border_title = self._title
            box.border_subtitle = "Esc: close"
            yield self.make_pane()

    def make_pane(self) -> TextPane:
        """Return the pane that shows the text."""
        return TextPane(self._text_maker)

    def on_mount(self) -> None:
        self._fit()

    def on_resize(self) -> None:
        self._fit()

    def _fit(self) -> None:
        """Fit the box to the text, as far as the terminal allows."""
        pane = self.query_one(TextPane)
        width = max(10, min(self._wanted, self.size.width * _MOST // 100 - _FRAME))
        pane.styles.width = width
        pane.styles.height = max(1, min(len(self._text_maker(width - 2)), self.size.height - 4))


NOT_BEGUN = -1
_MARKS = ("· ", "▶ ", "✓ ")  # before commands: pending, running, done


class PreviewPane(TextPane, can_focus=False):
    """Lines that scroll and that keys never go to; the screen around it scrolls it."""

    def show(self, make: Callable[[int], list[Line]]) -> None:
        """Show other lines."""
        self._make = make
        self.on_resize()
        self.repaint()

    def reveal(self, line: int) -> None:
        """Scroll so that a line is in sight."""
        self.top = max(line - self.page + 2, min(self.top, line))
        self.repaint()

    def paint(self, width: int, height: int) -> list[Strip]:
        """Return the visible lines; the last one counts those below."""
        strips = super().paint(width, height)
        below = self.line_count() - self.top - self.page
        if below > 0 and height > 1:
            strips[-1] = strip_of([(f" +{below + 1} more, PgDn", self.style_of("badge-warn"))], width)
        return strips

    @property
    def first_command(self) -> int | None:
        """The line of the first command, None where there is none."""
        marked = (place for place, line in enumerate(self.text) if line and line[0][0] in _MARKS)
        return next(marked, None)

    @property
    def shows_commands(self) -> bool:
        """Whether a command is in sight."""
        first, height = self.first_command, self.size.height
        more = height > 1 and self.line_count() > self.top + self.page
        return first is not None and first < self.top + height - more


def change_lines(
    title: str,
    steps: Sequence[Operation],
    side_effects: Sequence[str],
    warnings: Sequence[str],
    done: int,
    width: int,
) -> list[Line]:
    """Return the lines about a change.

    `done` is the number of commands that were run, or NOT_BEGUN.
    """
    lines: list[Line] = [[(part, "title")] for part in wrapped(safe(title), width)]
    for heading, sentences, tone in (("Also removed", side_effects, "bad"), ("Warnings", warnings, "warn")):
        if sentences:
            lines += [[], [(heading, "heading")]]
            lines += [line for one in sentences for line in _sentence_lines(safe(one), tone, width)]
    if not steps:
        return [*lines, *([[]] if lines else []), [("Nothing to do: nothing differs.", "dim")]]
    count = len(steps)
    lines += [[], [(f"{count} command{'s' if count > 1 else ''}", "heading")]]
    for number, step in enumerate(steps):
        first, more, _ = step.command().partition("\n")
        text = f"{first}   (input below)" if more else first
        lines += command_lines(text, _mark(number, done), width)
    for step in steps:
        if "\n" in step.command():
            lines += [[], [(safe(step.describe()), "heading")], *command_lines(step.command(), "  ", width)]
    return lines


def _mark(number: int, done: int) -> str:
    if done == NOT_BEGUN or number > done:
        return "· "
    return "✓ " if number < done else "▶ "


def command_lines(command: str, mark: str, width: int) -> Iterator[Line]:
    """Yield a command after its mark, wrapped."""
    tone = {"✓ ": "ok", "▶ ": "accent", "✗ ": "bad"}.get(mark, "dim")
    for number, text in enumerate(command.split("\n")):
        text = text.expandtabs(4)
        indent = len(text) - len(text.lstrip(" "))
        for part in wrapped(safe(text.strip(" ")), max(10, width - 2 - indent)):
            yield [("  " if number else mark, tone), (" " * indent + part, "")]
            number = 1


def _sentence_lines(text: str, tone: str, width: int) -> Iterator[Line]:
    """Yield a sentence with a bullet; commands at its end on lines of their own."""
    sentence, commands = split_commands(text)
    yield from _hanging("• ", sentence, tone, width)
    for command in commands:
        yield from _hanging("$ ", command, tone, width)


def _hanging(mark: str, text: str, tone: str, width: int) -> Iterator[Line]:
    for number, part in enumerate(wrapped(text, max(10, width - 2))):
        yield [("  " if number else mark, tone), (part, tone)]


Section = tuple[str, Sequence[tuple[str, str]]]

_TWO_COLUMNS = 100
_TIME_LINE = (
    ("●", "the moment shown; a click on the line goes to another one"),
    ("◆", "a moment at which something changed"),
)


def help_overlay(view: ListView, listed: Iterable[tuple[str, str]], scopes: Collection[KeyScope]) -> Overlay:
    """Return the help of one view; `listed` are all views with their number keys."""
    sections = sections_of(view, listed, scopes)
    return Overlay(f" {view.title}: keys ", lambda width: lay_out(sections, width), 112, "question_mark")


def sections_of(
    view: ListView, listed: Iterable[tuple[str, str]], scopes: Collection[KeyScope]
) -> list[Section]:
    """Return the help's contents: titled lists of (key or term, meaning)."""
    made: list[Section] = [
        (title, [(action.label, action.help) for action in actions])
        for title, actions in keys.grouped(scopes)
    ]
    if "replay" in scopes:
        place = [title for title, _ in made].index("Time line")
        made[place] = ("Time line", [*made[place][1], *_TIME_LINE])
    if view.help:
        made.insert(1, (view.title, view.help))
    if "list" in scopes:
        made.insert(2, ("Filter", query.HELP))
    made.append(("Views", list(listed)))
    return made


def lay_out(sections: Sequence[Section], width: int) -> list[Line]:
    """Return the sections below one another, or in two columns if they fit."""
    if width < _TWO_COLUMNS:
        return [line for section in sections for line in _lines(section, width)][:-1]
    half = width // 2 - 1
    blocks = [_lines(section, half) for section in sections]
    whole = sum(map(len, blocks))
    left: list[Line] = []
    while blocks and len(left) + len(blocks[0]) // 2 < whole / 2:
        left += blocks.pop(0)
    right = [line for block in blocks for line in block]
    pairs = zip_longest(left, right, fillvalue=())
    lines: list[Line] = [(*_padded(one, half), ("  ", ""), *other) for one, other in pairs]
    return lines[:-1]


def _padded(line: Line, width: int) -> list[tuple[str, str]]:
    return [*line, (" " * (width - sum(width_of(text) for text, _ in line)), "")]


def _lines(section: Section, width: int) -> list[Line]:
    title, entries = section
    column = min(max(width_of(key) for key, _ in entries), width // 2)
    lines: list[Line] = [[(title, "heading")]]
    for key, meaning in entries:
        for number, part in enumerate(wrapped(meaning, max(8, width - column - 2))):
            lines.append([(fit("" if number else key, column) + "  ", "key"), (part, "")])
    return [*lines, []]


# A line of the panel, and the number of the finding that it belongs to.
Marked = tuple[Line, int | None]
Jump = Callable[[Ref], None]

_WIDTH = 90
_SEVERITY = 5  # cells: "warn "


class ProblemsPane(TextPane):
    """Findings to choose from, then the problems."""

    def __init__(self, findings: Sequence[Finding], lines: Callable[[int], list[Marked]], jump: Jump) -> None:
        super().__init__(lambda width: [line for line, _ in lines(width)])
        self._findings, self._marked_lines, self._jump = findings, lines, jump
        self.chosen = 0

    def _places(self) -> list[int | None]:
        """Return the finding of each line."""
        return [number for _, number in self._marked_lines(self.size.width - 2)]

    def paint_lines(self, first: int, last: int, width: int) -> list[Strip]:
        style = self.style_of("cursor")
        strips = super().paint_lines(first, last, width)
        numbers = self._places()[first:last]
        return [
            strip.apply_style(style) if number == self.chosen else strip
            for strip, number in zip(strips, numbers, strict=True)
        ]

    def action_cursor_down(self) -> None:
        if self.chosen + 1 < len(self._findings):
            self._choose(self.chosen + 1)
        else:
            self.scroll_by(1)

    def action_cursor_up(self) -> None:
        """Scroll back to the findings line by line, then go from one to the next."""
        places = self._places()
        if (self.chosen in places and self.top > places.index(self.chosen)) or not self.chosen:
            self.scroll_by(-1)
        else:
            self._choose(self.chosen - 1)

    def _choose(self, number: int) -> None:
        self.chosen = number
        mine = [place for place, each in enumerate(self._places()) if each == number]
        if mine:
            self.top = min(max(self.top, mine[-1] - self.page + 1), mine[0])
        self.repaint()

    def action_open(self) -> None:
        """Go to the finding's subject."""
        if self._findings:
            self._jump(self._findings[self.chosen].ref)

    def on_click(self, event: events.Click) -> None:
        """Select on a click, open on a double click."""
        places, line = self._places(), self.top + event.y
        number = places[line] if line < len(places) else None
        if number is not None:
            self._choose(number)
            if event.chain == 2:
                self.action_open()


class ProblemsOverlay(Overlay):
    """The panel; a chosen finding closes it and is gone to by `jump`.

    `repair` opens its repair, or returns why that can't be.
    """

    BINDINGS = [Binding("F", "fix", "Fix", show=False)]

    def __init__(
        self,
        findings: Sequence[Finding],
        problems: Sequence[Problem],
        reading: str,
        jump: Jump,
        repair: Callable[[Finding], str],
    ) -> None:
        title = " Findings " if findings else " Problems "
        self._marked_lines = partial(lines_of, findings, problems, reading)
        super().__init__(
            title, lambda width: [line for line, _ in self._marked_lines(width)], _WIDTH, "exclamation_mark"
        )
        self._findings, self._jump, self._repair = findings, jump, repair

    def action_fix(self) -> None:
        """Open the preview of the chosen finding's repair, or say why not."""
        if self._findings:
            refusal = self._repair(self._findings[self.query_one(ProblemsPane).chosen])
            self.query_one(Vertical).border_subtitle = safe(refusal) or "Esc: close"

    def make_pane(self) -> TextPane:
        return ProblemsPane(self._findings, self._marked_lines, self._open_finding)

    def _open_finding(self, ref: Ref) -> None:
        self.dismiss()
        self._jump(ref)


def lines_of(
    findings: Sequence[Finding], problems: Sequence[Problem], reading: str, width: int
) -> list[Marked]:
    """Return findings, then problems, wrapped to the width.

    `reading` is the progress of the first snapshot, "" once it is complete.
    """
    lines: list[Marked] = []
    for number, finding in enumerate(findings):
        for place, part in enumerate(_wrapped(finding.sentence, width - _SEVERITY)):
            mark = "" if place else finding.severity
            lines.append(([(fit(mark, _SEVERITY), tone_of(finding)), (part, "")], number))
        if finding.fix is not None and finding.fix.steps:
            for part in _wrapped(f"F: {finding.fix.sentence}", width - _SEVERITY):
                lines.append(([(" " * _SEVERITY, ""), (part, "accent")], number))
        advice, commands = split_commands(finding.advice)
        for line in (f"Try: {advice}", *commands) if advice else ():
            for part in _wrapped(line, width - _SEVERITY):
                lines.append(([(" " * _SEVERITY, ""), (part, "dim")], number))
    if findings:
        lines += [(line, None) for line in ([], [("Enter: go to it   F: preview its repair", "dim")])]
    if reading:
        lines.append(([(f"Still reading: {reading} parts are complete.", "dim")], None))
    elif not problems:
        text = "Everything could be read." if findings else "No findings, and everything could be read."
        lines.append(([(text, "ok")], None))
    if not problems:
        return lines
    lines += [([], None)] if lines else []
    lines.append(([("Not read", "heading")], None))
    alike: dict[tuple[str, str, str], list[Problem]] = {}
    for problem in problems:
        alike.setdefault((problem.part, problem.why, problem.try_), []).append(problem)
    for group in alike.values():
        lines += [(line, None) for line in _problem_lines(group, width)]
    return lines


def _problem_lines(alike: Sequence[Problem], width: int) -> list[Line]:
    """Merge problems that have the same reason and remedy."""
    lines: list[Line] = []
    for what, count in Counter(f"{problem.part}: {problem.what}" for problem in alike).items():
        text = f"{what} ({count} namespaces)" if count > 1 else what
        lines += [[(part, "warn")] for part in _wrapped(text, width)]
    why, try_ = alike[0].why, alike[0].try_
    if why:
        lines += [[("  ", ""), (part, "")] for part in _wrapped(why, width - 2)]
    if try_:
        lines += [[("  ", ""), (part, "accent")] for part in _wrapped(f"Try: {try_}", width - 2)]
    return lines


def _wrapped(text: str, width: int) -> list[str]:
    return wrapped(safe(text), max(10, width))

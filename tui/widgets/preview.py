"""The preview of a change: what it hits, what to know before, and every command, ticked as it is run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from textual.strip import Strip

from core.ops import Operation
from core.text import safe, split_commands
from tui.present.fitting import wrapped
from tui.screens.overlay import Line, TextPane
from tui.widgets.painted import strip_of

NOT_BEGUN = -1
_MARKS = ("· ", "▶ ", "✓ ")  # that stand before commands: yet to be run, being run, done


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
        """The lines in sight; where more lie below, the last one says how many."""
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
    hits: Sequence[str],
    warnings: Sequence[str],
    done: int,
    width: int,
) -> list[Line]:
    """Everything about a change; `done` is how many of its commands were run, NOT_BEGUN before that."""
    lines: list[Line] = [[(part, "title")] for part in wrapped(safe(title), width)]
    for heading, sentences, tone in (("Also removed", hits, "bad"), ("Warnings", warnings, "warn")):
        if sentences:
            lines += [[], [(heading, "heading")]]
            lines += [line for one in sentences for line in _sentence_lines(safe(one), tone, width)]
    if not steps:
        return [*lines, *([[]] if lines else []), [("Nothing to do: nothing differs.", "dim")]]
    count = len(steps)
    lines += [[], [(f"{count} command{'s' if count > 1 else ''}", "heading")]]
    for number, step in enumerate(steps):
        first, more, _ = step.command().partition("\n")
        told = f"{first}   (its text is below)" if more else first
        lines += command_lines(told, _mark(number, done), width)
    for step in steps:
        if "\n" in step.command():
            lines += [[], [(safe(step.describe()), "heading")], *command_lines(step.command(), "  ", width)]
    return lines


def _mark(number: int, done: int) -> str:
    if done == NOT_BEGUN or number > done:
        return "· "
    return "✓ " if number < done else "▶ "


def command_lines(command: str, mark: str, width: int) -> Iterator[Line]:
    """A command behind its mark, wrapped."""
    tone = {"✓ ": "ok", "▶ ": "accent", "✗ ": "bad"}.get(mark, "dim")
    for number, text in enumerate(command.split("\n")):
        text = text.expandtabs(4)
        indent = len(text) - len(text.lstrip(" "))
        for part in wrapped(safe(text.strip(" ")), max(10, width - 2 - indent)):
            yield [("  " if number else mark, tone), (" " * indent + part, "")]
            number = 1


def _sentence_lines(text: str, tone: str, width: int) -> Iterator[Line]:
    """A sentence behind a bullet; the commands that it ends with on lines of their own."""
    sentence, commands = split_commands(text)
    yield from _hanging("• ", sentence, tone, width)
    for command in commands:
        yield from _hanging("$ ", command, tone, width)


def _hanging(mark: str, text: str, tone: str, width: int) -> Iterator[Line]:
    for number, part in enumerate(wrapped(text, max(10, width - 2))):
        yield [("  " if number else mark, tone), (part, tone)]

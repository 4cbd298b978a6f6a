"""The findings and the problems: what is wrong, one Enter away, and what could not be read, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

from textual import events
from textual.strip import Strip

from core.diagnose import Finding
from core.model import Problem, Ref
from core.text import safe, split_commands
from tui.present.fit_text import wrapped
from tui.screens.dialogs import Line, Overlay, TextPane

# A line of the panel, and the number of the finding that it belongs to.
Marked = tuple[Line, int | None]
Jump = Callable[[Ref], None]

_WIDTH = 90


class ProblemsPane(TextPane):
    """Findings to choose from, then the problems."""

    def __init__(self, findings: Sequence[Finding], lines: Callable[[int], list[Marked]], jump: Jump) -> None:
        super().__init__(lambda width: [line for line, _ in lines(width)])
        self._findings, self._marked_lines, self._jump = findings, lines, jump
        self.chosen = 0

    def _places(self) -> list[int | None]:
        """The finding of each line."""
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
        """Back to the findings line by line, then from one to the next."""
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
        """Go to what the finding is about."""
        if self._findings:
            self._jump(self._findings[self.chosen].ref)

    def on_click(self, event: events.Click) -> None:
        """A click chooses, a double click opens."""
        places, line = self._places(), self.top + event.y
        number = places[line] if line < len(places) else None
        if number is not None:
            self._choose(number)
            if event.chain == 2:
                self.action_open()


class ProblemsOverlay(Overlay):
    """The panel; a chosen finding closes it and is gone to by `jump`."""

    def __init__(
        self, findings: Sequence[Finding], problems: Sequence[Problem], reading: str, jump: Jump
    ) -> None:
        title = " Findings " if findings else " Problems "
        self._marked_lines = partial(lines_of, findings, problems, reading)
        super().__init__(
            title, lambda width: [line for line, _ in self._marked_lines(width)], _WIDTH, "exclamation_mark"
        )
        self._findings, self._jump = findings, jump

    def make_pane(self) -> TextPane:
        return ProblemsPane(self._findings, self._marked_lines, self._go)

    def _go(self, ref: Ref) -> None:
        self.dismiss()
        self._jump(ref)


def lines_of(
    findings: Sequence[Finding], problems: Sequence[Problem], reading: str, width: int
) -> list[Marked]:
    """The findings, then the problems, below one another, wrapped to the width; `reading` says how many
    parts were read, "" where all were."""
    lines: list[Marked] = []
    for number, finding in enumerate(findings):
        for place, part in enumerate(_wrapped(finding.sentence, width - 2)):
            lines.append(([("• " if not place else "  ", finding.severity), (part, "")], number))
        advice, commands = split_commands(finding.advice)
        for line in (f"Try: {advice}", *commands) if advice else ():
            for part in _wrapped(line, width - 2):
                lines.append(([("  ", ""), (part, "dim")], number))
    if findings:
        lines += [(line, None) for line in ([], [("Enter goes there.", "dim")])]
    if reading:
        lines.append(([(f"Still reading: {reading} parts are complete.", "dim")], None))
    elif not problems:
        told = "Everything could be read." if findings else "Nothing is wrong, and everything could be read."
        lines.append(([(told, "ok")], None))
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
    """Problems of one reason and one remedy, which are told once."""
    lines: list[Line] = []
    for what, count in Counter(f"{problem.part}: {problem.what}" for problem in alike).items():
        told = f"{what} ({count} namespaces)" if count > 1 else what
        lines += [[(part, "warn")] for part in _wrapped(told, width)]
    why, try_ = alike[0].why, alike[0].try_
    if why:
        lines += [[("  ", ""), (part, "")] for part in _wrapped(why, width - 2)]
    if try_:
        lines += [[("  ", ""), (part, "accent")] for part in _wrapped(f"try: {try_}", width - 2)]
    return lines


def _wrapped(text: str, width: int) -> list[str]:
    return wrapped(safe(text), max(10, width))

"""The command log: every command that this session has run, and how each change ended."""

from __future__ import annotations

import time
from collections.abc import Sequence

from core.text import safe
from tui.changer import Logged
from tui.present.fitting import cut, wrapped
from tui.screens.overlay import Line, Overlay
from tui.widgets.preview import command_lines

_ENDS = {
    "done": ("done", "ok"), "undone": ("taken back", "warn"), "failed": ("taken back in part", "bad"),
    "": ("not begun", "bad"), "…": ("under way", "accent"),
}  # fmt: skip


def log_overlay(log: Sequence[Logged]) -> Overlay:
    """The whole log, the newest change first."""
    return Overlay(" Command log ", lambda width: lines_of(log, width), 110, "L")


def lines_of(log: Sequence[Logged], width: int) -> list[Line]:
    """Each change with its commands, wrapped to the width."""
    if not log:
        return [[("No command was run in this session.", "dim")]]
    lines: list[Line] = []
    for logged in reversed(log):
        word, tone = _ENDS[logged.end]
        clock = time.strftime("%H:%M:%S", time.localtime(logged.at))
        title = cut(safe(logged.title), max(8, width - len(clock) - len(word) - 4))
        lines.append([(f"{clock}  ", "dim"), (title, "title"), ("  ", ""), (word, tone)])
        for number, command in enumerate(logged.commands):
            last = number == len(logged.commands) - 1
            mark = "✓ " if not logged.errors else "✗ " if last and logged.end == "undone" else "· "
            lines += command_lines(_short(command), mark, width)
        lines += [[(part, "bad")] for error in logged.errors for part in wrapped(safe(error), width)]
        if logged.undone:
            lines.append([("taken back by", "heading")])
            lines += [
                line for command in logged.undone for line in command_lines(_short(command), "· ", width)
            ]
        lines.append([])
    return lines[:-1]


def _short(command: str) -> str:
    """A command without the text that it is fed."""
    first, *more = command.split("\n")
    return f"{first}   ({len(more)} lines: vnet-tui history --json has them)" if more else first

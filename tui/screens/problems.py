"""The problems: what could not be read, why, and what to try."""

from __future__ import annotations

from collections.abc import Sequence

from core.model import Problem
from core.text import safe
from tui.present.fitting import wrapped
from tui.screens.overlay import Line, Overlay


def problems_overlay(problems: Sequence[Problem]) -> Overlay:
    """All problems, in words."""
    return Overlay(" Problems ", lambda width: lines_of(problems, width), 90, "exclamation_mark")


def lines_of(problems: Sequence[Problem], width: int) -> list[Line]:
    """The problems below one another, wrapped to the width."""
    if not problems:
        return [[("Nothing is wrong: every part could be read.", "ok")]]
    lines: list[Line] = []
    for problem in problems:
        lines += [[(part, "warn")] for part in _wrapped(f"{problem.part}: {problem.what}", width)]
        if problem.why:
            lines += [[("  ", ""), (part, "")] for part in _wrapped(problem.why, width - 2)]
        if problem.try_:
            lines += [[("  ", ""), (part, "accent")] for part in _wrapped(f"try: {problem.try_}", width - 2)]
        lines.append([])
    return lines[:-1]


def _wrapped(text: str, width: int) -> list[str]:
    return wrapped(safe(text), max(10, width))

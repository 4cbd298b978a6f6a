"""The help: the keys that mean something in the view at hand, and what its filter understands."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from itertools import zip_longest

from tui import keys
from tui.keys import Where
from tui.present import query
from tui.present.fitting import fit, width_of, wrapped
from tui.present.rows import ListView
from tui.screens.overlay import Line, Overlay

Section = tuple[str, Sequence[tuple[str, str]]]

_TWO_COLUMNS = 100


def help_overlay(view: ListView, listed: Iterable[tuple[str, str]], wheres: Collection[Where]) -> Overlay:
    """The help of one view; `listed` are all views with their number keys."""
    sections = sections_of(view, listed, wheres)
    return Overlay(f" {view.title}: keys ", lambda width: lay_out(sections, width), 112, "question_mark")


def sections_of(
    view: ListView, listed: Iterable[tuple[str, str]], wheres: Collection[Where]
) -> list[Section]:
    """What the help says, as titled lists of (key or term, meaning)."""
    made: list[Section] = [
        (title, [(action.label, action.help) for action in actions])
        for title, actions in keys.grouped(wheres)
    ]
    if view.help:
        made.insert(1, (view.title, view.help))
    if "list" in wheres:
        made.insert(2, ("Filter", query.HELP))
    made.append(("Views", list(listed)))
    return made


def lay_out(sections: Sequence[Section], width: int) -> list[Line]:
    """The sections below one another, or in two columns where there is room."""
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

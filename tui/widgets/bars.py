"""Paint the bars: header, tabs, breadcrumbs, footer, banner, fast path, time line."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.style import Style
from textual.strip import Strip

from core.model import FastPath
from core.text import safe
from tui.command import span_of
from tui.keys import Action
from tui.sources import Mode
from tui.views import formatting
from tui.views.fastpath import MARK, STATES
from tui.views.formatting import cut, fit, width_of, wrapped
from tui.widgets.lines import Painted, Span, strip_of

if TYPE_CHECKING:
    from tui.sources import Position


_LEAST_CRUMB = 6
_NOTICE_LINES = 3  # at most
_MODES = {
    "live": ("●", "ok"), "paused": ("■", "warn"), "offline": ("○", "dim"), "replay": ("▶", "accent"),
}  # fmt: skip


def clickable(style: Style, action: str) -> Style:
    """Return the style with an action of the screen that a click runs."""
    return style + Style(meta={"@click": f"screen.{action}"})


def both_ends(left: Sequence[Span], right: Sequence[Span], width: int) -> Strip:
    """Return a line with text at both ends; if both don't fit, the right one stays."""
    need = sum(width_of(text) for text, _ in right)
    start = strip_of(left, max(0, width - need))
    return Strip.join([start, strip_of(right, min(need, width))])


class Bar(Painted):
    """One line; clicks on it are actions, not links."""

    auto_links = False


@dataclass(frozen=True, slots=True)
class HeaderState:
    """Contents of the header.

    Numbers of `findings` and `problems`, whether changes are allowed (`writing`), progress of a `recording`
    and of the first `reading` ("" where there is none).
    """

    hostname: str = ""
    source: str = ""
    mode: Mode = "live"
    findings: int = 0
    problems: int = 0
    writing: bool = False
    recording: str = ""
    reading: str = ""


class HeaderBar(Bar):
    """Product, host, whether the picture is live, and how much is wrong or unread."""

    state = HeaderState()

    def show(self, state: HeaderState) -> None:
        """Say something else."""
        self.state = state
        self.repaint()

    def paint(self, width: int, height: int) -> list[Strip]:
        return [both_ends(self._left(), self._right(), width)]

    def _left(self) -> list[Span]:
        spans = [
            (" vnet-tui ", self.style_of("title")),
            (f" {safe(self.state.hostname)} ", self.style_of("")),
        ]
        return [*spans, (f" {safe(self.state.source)}", self.style_of("dim"))]

    def _right(self) -> list[Span]:
        spans: list[Span] = []
        if self.state.recording:
            words = f" ● {self.state.recording} "
            spans += [(words, clickable(self.style_of("badge-bad"), "record")), (" ", Style.null())]
        wrong, unread = self.state.findings, self.state.problems
        if wrong:
            words = f" {wrong} finding{'s' * (wrong != 1)} "
            spans += [(words, clickable(self.style_of("badge-warn"), "problems")), (" ", Style.null())]
        if unread:
            spans.append((f" {unread} not read  ", clickable(self.style_of("dim"), "problems")))
        words, badge = (" WRITE ", "badge-warn") if self.state.writing else ("read-only", "dim")
        spans += [(words, clickable(self.style_of(badge), "write")), ("  ", Style.null())]
        mark, tone = _MODES[self.state.mode]
        words = self.state.mode
        if self.state.reading and words == "live":
            mark, tone, words = "○", "accent", f"reading {self.state.reading}"
        return [*spans, (f"{mark} {words} ", clickable(self.style_of(tone), "pause"))]


class TabsBar(Bar):
    """Views by number, with the current one marked.

    Narrow terminals get short names, or the current one alone.
    """

    tabs: tuple[tuple[int, str, str], ...] = ()
    active = 0
    badge = ""

    def show(self, tabs: tuple[tuple[int, str, str], ...], active: int, badge: str) -> None:
        """Show (number, title, short name) tabs, and the badge if it fits."""
        self.tabs, self.active, self.badge = tabs, active, badge
        self.repaint()

    def paint(self, width: int, height: int) -> list[Strip]:
        for titles in self._variants():
            spans = [span for number, title in titles for span in self._tab(number, title)]
            if sum(width_of(text) for text, _ in spans) <= width:
                break
        room = width - sum(width_of(text) for text, _ in spans)
        badge = f" {self.badge} " if self.badge and width_of(self.badge) + 2 <= room else ""
        return [both_ends(spans, [(badge, self.style_of("dim"))], width)]

    def _variants(self) -> Iterable[list[tuple[int, str]]]:
        yield [(number, title) for number, title, _ in self.tabs]
        yield [(number, short) for number, _, short in self.tabs]  # each as wide whichever is active
        yield [(number, title if number == self.active else "") for number, title, _ in self.tabs]

    def _tab(self, number: int, title: str) -> list[Span]:
        active = number == self.active
        style = clickable(self.style_of("tab" if active else "dim"), f"view({number})")
        key = clickable(self.style_of("tab" if active else "key"), f"view({number})")
        return [(f" {number}", key), (f" {title} " if title else " ", style)]


class CrumbsBar(Bar):
    """Show how the user came here, and how much of the list is visible."""

    crumbs: tuple[str, ...] = ()
    badge = ""
    filtered = False

    def show(self, crumbs: tuple[str, ...], badge: str, filtered: bool) -> None:
        """Show the way here, and the badge at the right."""
        self.crumbs, self.badge, self.filtered = crumbs, badge, filtered
        self.repaint()

    def paint(self, width: int, height: int) -> list[Strip]:
        tone = "badge" if self.filtered else "dim"
        badge = (
            fit(
                f" {self.badge} ",
                min(width // 2 if self.crumbs[1:] else max(width // 2, width - 14), width_of(self.badge) + 2),
            )
            if self.badge
            else ""
        )
        return [
            both_ends(self._crumb_spans(width - width_of(badge) - 1), [(badge, self.style_of(tone))], width)
        ]

    def _crumb_spans(self, width: int) -> list[Span]:
        """Return the stops; if they don't fit, without those in the middle."""
        crumbs = [safe(stop) for stop in self.crumbs]
        while len(crumbs) > 2 and sum(width_of(stop) + 3 for stop in crumbs) + 1 > width:
            crumbs = ["…", *crumbs[2:]]
        if len(crumbs) > 1:
            room = width - 1 - width_of(crumbs[-1]) - sum(width_of(stop) for stop in crumbs[:-2])
            crumbs[-2] = cut(crumbs[-2], max(_LEAST_CRUMB, room - 3 * (len(crumbs) - 1)))
        spans: list[Span] = [(" ", Style.null())]
        if self.screen.has_class("-small"):  # where there is no room for tabs
            spans += [("1-9", self.style_of("key")), (" ", Style.null())]
        for stop in crumbs[:-1]:
            spans += [(stop, self.style_of("dim")), (" › ", self.style_of("faint"))]
        return [*spans, (crumbs[-1], self.style_of("title"))] if crumbs else spans


class FooterBar(Bar):
    """The keys that are available; for some seconds a notice in their place."""

    actions: tuple[Action, ...] = ()
    notice = ("", "")

    def show(self, actions: Iterable[Action]) -> None:
        """Show these actions, as many as there is room for, the first ones foremost."""
        self.actions = tuple(actions)
        self.repaint()

    def show_notice(self, text: str, tone: str = "") -> None:
        """Show the text on as many lines as it takes; "" shows the keys again."""
        self.notice = text, tone
        self.styles.height = min(len(self._notice_lines(self.size.width)), _NOTICE_LINES)
        self.repaint()

    def _notice_lines(self, width: int) -> list[str]:
        return wrapped(self.notice[0], max(8, width - 2))

    def paint(self, width: int, height: int) -> list[Strip]:
        text, tone = self.notice
        if text:
            return [
                strip_of([(f" {line}", self.style_of(tone))], width) for line in self._notice_lines(width)
            ]
        spans: list[Span] = []
        room = width
        for action in self.actions:
            need = width_of(action.label) + width_of(action.title) + 4
            if need > room:
                break
            room -= need
            spans.append((f" {action.label} ", clickable(self.style_of("key"), action.name)))
            spans.append((f"{action.title}  ", clickable(self.style_of("dim"), action.name)))
        return [strip_of(spans, width)]


_MOST_LINES = 2
_MARGIN = 2


class Banner(Bar):
    """A name as a badge and a sentence, on as many lines as they take, two at most."""

    badge, words = "", ""
    lines = 0  # that it takes

    def show(self, badge: str, words: str) -> None:
        """Show these; `fit` gives them their place."""
        self.badge, self.words = badge, words
        self.display = bool(words)

    def fit(self, width: int, most: int = _MOST_LINES) -> None:
        """Take the lines that it needs at that width."""
        self.lines = min(len(self._wrapped(width)), most) if self.words else 0
        self.styles.height = self.lines
        self.repaint()

    def _wrapped(self, width: int) -> list[str]:
        """Return the lines of the sentence; the first leaves room for the badge."""
        blank = "\N{NO-BREAK SPACE}" * (len(self.badge) + 2)
        return wrapped(f"{blank} {self.words}", max(8, width - _MARGIN))

    def paint(self, width: int, height: int) -> list[Strip]:
        lines = self._wrapped(width)
        if len(lines) > height:
            lines = [*lines[: height - 1], cut(" ".join(lines[height - 1 :]), width - _MARGIN)]
        badge: Span = (f" {self.badge} ", self.style_of("badge-warn"))
        first: list[Span] = [badge, (lines[0][len(badge[0]) :], self.style_of(""))]
        rest: list[list[Span]] = [[(f" {line}", self.style_of(""))] for line in lines[1:]]
        return [strip_of(spans, width) for spans in ([(" ", self.style_of("")), *first], *rest)]


_BADGES = {"on": "badge", "changing": "badge", "paused": "badge-warn", "silent": "badge-bad"}


class FastBar(Bar):
    """One line; a click on it opens the fast path's view."""

    fast = FastPath()

    def show(self, fast: FastPath) -> None:
        """Show that state."""
        self.fast = fast
        self.repaint()

    def paint(self, width: int, height: int) -> list[Strip]:
        fast = self.fast
        words = "changing" if fast.state == "changing" else fast.state
        badge = f" {MARK} fast path {words} "
        right = f" {self._share()} " if fast.share is not None else ""
        if width_of(badge) + width_of(right) + 12 > width:
            right = ""
        room = max(0, width - width_of(badge) - width_of(right) - 2)
        left: list[Span] = [
            (badge, clickable(self.style_of(_BADGES.get(fast.state, "badge")), "fast_path")),
            (f" {cut(self._about(), room)}", clickable(self.style_of(self._tone()), "fast_path")),
        ]
        return [both_ends(left, [(right, self.style_of("dim"))], width)]

    def _tone(self) -> str:
        return "warn" if self.fast.state in ("paused", "silent") else ""

    def _about(self) -> str:
        """Return why it is paused, or else what is accelerated."""
        fast = self.fast
        if fast.state == "paused" and fast.reasons:
            more = f" (and {len(fast.reasons) - 1} more)" if len(fast.reasons) > 1 else ""
            return safe(fast.reasons[0]) + more
        if fast.state == "silent":
            return STATES[fast.state]
        missing = f"; not there: {', '.join(map(safe, fast.unknown))}" if fast.unknown else ""
        return ", ".join(map(safe, fast.targets)) + missing

    def _share(self) -> str:
        return f"{self.fast.share or 0:.0%} of {formatting.count(self.fast.packets)} packets"


LEGEND = " ◆ change "
_LEAST_LINE = 10  # cells of the line itself, before texts beside it are shortened


class TimeBar(Bar):
    """One line; a click on it goes to that time."""

    position: Position | None = None
    marks: Sequence[float] = ()

    def show(self, position: Position, marks: Sequence[float]) -> None:
        """Show a position; `marks` are parts of the line, 0 to 1, with changes."""
        self.position, self.marks = position, marks
        self.repaint()

    def paint(self, width: int, height: int) -> list[Strip]:
        at = self.position
        if at is None:
            return []
        mark, tone = ("▶", "ok") if at.playing else ("■", "warn")
        left: list[Span] = [
            (f" {mark} ", clickable(self.style_of(tone), "play")),
            (f"{_time_of_day(at)} ", self.style_of("title")),
        ]
        for words in self._variants(at):
            room = width - sum(width_of(text) for text, _ in left) - width_of(words)
            if room >= _LEAST_LINE:
                break
        return [strip_of([*left, *self._line(at, max(1, room)), (words, self.style_of("dim"))], width)]

    def _variants(self, at: Position) -> list[str]:
        """Return the texts for the right end, the longest first."""
        place, speed = f" {at.place + 1}/{at.count}", f" {at.speed:g}x"
        seconds = f" {span_of(at.seconds)} of {span_of(at.length)}"
        clock = f" clock set by {at.stepped:+.0f} s" if at.stepped else ""
        return [
            f"{LEGEND}{clock}{seconds} {place} {speed} ",
            f"{clock}{seconds} {place} {speed} ",
            f"{clock}{place}{speed} ",
            f"{place}{speed} ",
            place,
        ]

    def _line(self, at: Position, width: int) -> list[Span]:
        """Return the line: past, shown moment and future, with marks of changes."""
        here = _cell(at.seconds / at.length if at.length else 0.0, width)
        changed = {_cell(mark, width) for mark in self.marks}
        spans: list[Span] = []
        for cell in range(width):
            text, tone = ("━", "accent") if cell < here else ("─", "faint")
            if cell in changed:
                text, tone = "◆", "warn"
            if cell == here:
                text, tone = "●", "title"
            part = cell / (width - 1) if width > 1 else 0.0
            spans.append((text, clickable(self.style_of(tone), f"seek({part:.4f})")))
        return spans


def _cell(part: float, width: int) -> int:
    return min(width - 1, int(part * (width - 1) + 0.5))


def _time_of_day(at: Position) -> str:
    return time.strftime("%H:%M:%S", time.localtime(at.wall)) + f".{int(at.wall * 10) % 10}"

"""The banner of the fast path: shown in every view as long as it is on."""

from __future__ import annotations

from textual.strip import Strip

from core.model import FastPath
from core.text import safe
from tui.present import units
from tui.present.fast_marks import MARK
from tui.present.fastpath import STATES
from tui.present.fitting import cut, width_of
from tui.widgets.bars import Bar, both_ends, clickable
from tui.widgets.painted import Span

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
        """Why it is paused, or else what is accelerated."""
        fast = self.fast
        if fast.state == "paused" and fast.reasons:
            more = f" (and {len(fast.reasons) - 1} more)" if len(fast.reasons) > 1 else ""
            return safe(fast.reasons[0]) + more
        if fast.state == "silent":
            return STATES[fast.state]
        missing = f"; not there: {', '.join(map(safe, fast.unknown))}" if fast.unknown else ""
        return ", ".join(map(safe, fast.targets)) + missing

    def _share(self) -> str:
        return f"{self.fast.share or 0:.0%} of {units.count(self.fast.packets)} packets"

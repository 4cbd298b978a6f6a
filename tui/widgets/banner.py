"""The banner under the bars: what the person should know about the whole picture, as long as it is shown."""

from __future__ import annotations

from textual.strip import Strip

from tui.present.fitting import cut, wrapped
from tui.widgets.bars import Bar
from tui.widgets.painted import Span, strip_of

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
        """The sentence; its first line leaves room for the badge."""
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

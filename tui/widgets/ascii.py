"""The ASCII mode: every drawing character that is about to be shown is replaced, cell for cell."""

from __future__ import annotations

from rich.segment import Segment
from textual.color import Color
from textual.filter import LineFilter

from tui.present.glyphs import ascii_only


class AsciiFilter(LineFilter):
    """Replaces drawing characters in finished lines, also those of Textual's own borders."""

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        """The same segments in ASCII."""
        return [Segment(ascii_only(text), style, control) for text, style, control in segments]

"""The base of every screen that lies over the dashboard until it ends."""

from __future__ import annotations

from typing import Any

from textual.await_complete import AwaitComplete
from textual.screen import ModalScreen


class Dialog[Result](ModalScreen[Result]):
    """Ends once, however often it is told to: keys typed before it was gone still reach it. Where another
    lies over it, it ends when it is in sight again, as ending takes away whatever is on top."""

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
        """In sight again: end, if that was due."""
        if self._late:
            self.dismiss(*self._late)

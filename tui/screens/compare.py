"""Choose the moment with which `:diff` compares: a mark, a file, a start."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from core.model import Snapshot
from core.text import safe
from tui.baseline import Baseline
from tui.command import CommandError
from tui.presenter import Presenter
from tui.screens.layout import Layout

_NOTICE = 12.0  # seconds that an error is shown


class CompareController:
    """Mark moments and open the view of what changed since."""

    def __init__(self, screen: Layout, presenter: Presenter, show: Callable[[], None]) -> None:
        self._screen, self._presenter, self._show = screen, presenter, show

    def mark(self) -> None:
        """Compare with the present picture from now on."""
        snapshot = self._presenter.context.snapshot
        if snapshot.pending:
            self._screen.notify("can't mark this moment: it isn't read completely yet", markup=False)
            return
        clock = time.strftime("%H:%M:%S", time.localtime(_taken_at(self._presenter, snapshot)))
        self._presenter.set_baseline(Baseline(f"the mark of {clock}", snapshot))
        self._screen.notify(f"Marked {clock}. :diff lists what changed since.", markup=False, timeout=3)

    def open(self, text: str = "") -> None:
        """Open the view; `text` names the other side: FILE, FILE@TIME, or "".

        "" is the mark, or else the start of the recording, or else the newest file."""
        if text or self._presenter.baseline is None:
            self._screen.run_worker(self._load(text), group="compare", exclusive=True)
        else:
            self._show()

    async def _load(self, text: str) -> None:
        try:
            baseline = await asyncio.to_thread(self._baseline, text)
        except CommandError as error:
            self._screen.notify(safe(str(error)), severity="error", markup=False, timeout=_NOTICE)
            return
        if baseline is not None:
            self._presenter.set_baseline(baseline)
        self._show()

    def _baseline(self, text: str) -> Baseline | None:
        """Return the other side, None if there is no usual one. Raises CommandError."""
        from tui.moments import moment_of, newest_file

        player = self._presenter.player
        if not text and player is not None:
            return Baseline("the start of the recording", player.first) if player.first else None
        path = text or str(newest_file() or "")
        if not path:
            return None
        moment = moment_of(path)
        return Baseline(moment.title, moment.snapshot)


def _taken_at(presenter: Presenter, snapshot: Snapshot) -> float:
    """Return when the picture was taken; a live one is always that of now."""
    return time.time() if presenter.source.live and not presenter.paused else snapshot.taken_at

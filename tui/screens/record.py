"""Record the host, write bundles, and control the time line of a recording."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from textual.message import Message
from textual.timer import Timer

from core.text import safe
from tui.command import CommandError, display_path, free_path, save, size_of, span_of
from tui.presenter import Presenter
from tui.screens.change import ChangeController
from tui.screens.layout import Layout

if TYPE_CHECKING:
    from core.recording import Recorder


_TICK = 1.0
_ROOMY = 110  # cells from which on the header has room for the recording's limits
_PATIENCE = 1.0  # seconds that the dashboard waits at its end for a recording to be completed
_NOTICE = 12.0  # seconds that the end of a recording is shown


class RecordingEnded(Message):
    """A recording is complete."""


class RecordController:
    """Record until the user ends it, visibly, in a thread; write bundles."""

    def __init__(self, screen: Layout, presenter: Presenter, changes: ChangeController) -> None:
        self._screen, self._presenter, self._changes = screen, presenter, changes
        self._recorder: Recorder | None = None
        self._ticker: Timer | None = None

    # ---- recordings

    def toggle(self) -> None:
        """Start a recording, or end it."""
        if self._recorder is not None:
            self._recorder.stop("R ended it")
            return
        screen, presenter = self._screen, self._presenter
        if not presenter.source.live:
            words = "can't record a file: only this host can be recorded"
            screen.notify(words, severity="warning", markup=False)
            return
        from core.recording import Limits, Recorder

        limits = Limits()
        path = free_path("record", presenter.hostname, ".vnetrec")
        self._recorder = Recorder(path, limits, lambda: screen.post_from_thread(RecordingEnded()))
        self._recorder.start()
        presenter.set_listener(self._recorder.put)
        self._ticker = screen.set_interval(_TICK, screen.show_bars)
        most = f"{limits.seconds / 60:g} min or {size_of(limits.size)}"
        screen.notify(
            f"Recording to {display_path(path)} (at most {most}). R stops it.", markup=False, timeout=6
        )
        screen.show_bars()

    @property
    def status(self) -> str:
        """The progress of a recording, "" where there is none."""
        if self._recorder is None:
            return ""
        made, limits = self._recorder.progress, self._recorder.limits
        words = f"REC {span_of(made.seconds)}"
        if self._screen.size.width < _ROOMY:
            return words
        return f"{words} of {span_of(limits.seconds)}, {size_of(made.size)} of {size_of(limits.size)}"

    def report_end(self) -> None:
        """Report the recording that was written, or why that failed."""
        recorder, self._recorder = self._recorder, None
        self._presenter.set_listener(None)
        if self._ticker:
            self._ticker.stop()
        self._screen.show_bars()
        if recorder is None:
            return
        made, name = recorder.progress, display_path(recorder.path)
        if made.failed:
            words = f"can't record into {name}: {made.ended}"
            self._screen.notify(words, severity="error", markup=False, timeout=_NOTICE)
            return
        length = f"{span_of(made.seconds)}, {made.moments} moments, {size_of(made.size)}"
        words = f"Recorded {length}, until {made.ended}. To open it: vnet-tui replay {name}"
        self._screen.notify(words, markup=False, timeout=_NOTICE)

    def close(self) -> None:
        """Complete a recording that still runs."""
        if self._recorder is not None:
            self._recorder.stop("the dashboard was closed")
            self._recorder.join(_PATIENCE)

    # ---- bundles

    def bundle(self) -> None:
        """Write everything that belongs to the current picture into one file, in a thread."""
        self._screen.run_worker(self._write_bundle(), group="bundle", exclusive=True)

    async def _write_bundle(self) -> None:
        path = free_path("bundle", self._presenter.hostname, ".tar.gz")
        self._screen.notify(f"Writing {display_path(path)}", markup=False)
        try:
            words = await asyncio.to_thread(self._bundled, path)
        except CommandError as error:
            self._screen.notify(safe(str(error)), severity="error", markup=False, timeout=_NOTICE)
            return
        words = f"W{words[1:]}. It contains addresses and names, so check it before you send it."
        self._screen.notify(words, markup=False, timeout=_NOTICE)

    def _bundled(self, path: Path) -> str:
        """Write the bundle; returns a sentence about it. Raises CommandError."""
        from tui.bundle import BundleContents, bundle_of

        service, update, context = (
            self._changes.service,
            self._presenter.current_update,
            self._presenter.context,
        )
        counters = update.rates.counters if update and update.rates else None
        fast = update.fast if update else None
        read = getattr(self._presenter.source, "fast_flows", None)
        if fast is None and read:  # they are not part of every update
            fast = read()
        flows = context.flows if context.flows and context.flows.index.topology is context.topology else None
        log = service.log if service else ()
        history = service.history() if service and not service.missing_rights() else ()
        contents = BundleContents(context.topology, flows, counters, fast, context.log.changes, log, history)
        return save(path, bundle_of(path.name, contents))


_REPLAY_TICK = 0.1  # seconds between two updates of the time line


class ReplayController:
    """Control the time line of a recording; without one, do nothing."""

    def __init__(self, screen: Layout, presenter: Presenter) -> None:
        self._screen, self.player = screen, presenter.player

    def start(self) -> None:
        """Show the time line, if there is one."""
        player, screen = self.player, self._screen
        if player is None:
            return
        screen.time_bar.display = True
        screen.banner.show(*player.banner)
        screen.allot()
        screen.set_interval(_REPLAY_TICK, self.show_time)
        if player.notice:
            screen.call_after_refresh(self._warn, player.notice)

    def _warn(self, words: str) -> None:
        self._screen.notify(safe(words), severity="warning", markup=False, timeout=8)

    def show_time(self) -> None:
        """Update the time line."""
        if self.player:
            self._screen.time_bar.show(self.player.position, self.player.marks)

    def play(self) -> None:
        """Play, or pause."""
        if self.player:
            self.player.toggle()
            self.show_time()

    def step(self, count: int) -> None:
        """Go that many moments forwards, or backwards."""
        if self.player:
            self.player.step(count)
            self.show_time()

    def seek_change(self, direction: int) -> None:
        """Go to the next moment (1), or the one before (-1), at which something changed."""
        if self.player and self.player.seek_change(direction):
            self.show_time()
        elif self.player:
            self.show_time()
            end = "later change: this is the last" if direction > 0 else "earlier change: this is the first"
            self._screen.notify(f"No {end} moment.", markup=False, timeout=3)

    def change_speed(self, steps: int) -> None:
        """Play that many steps faster, or slower."""
        if self.player:
            self.player.faster(steps)
            self.show_time()

    def seek(self, part: float) -> None:
        """Go to that part of the time line, 0 to 1."""
        if self.player:
            self.player.seek(part)
            self.show_time()

"""Keeps what is seen: the key that records, and the key that writes a moment into one file."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from textual.message import Message
from textual.timer import Timer

from core.text import safe
from tui.command import CommandError
from tui.keepsake import free_path, save, size_of, span_of, told
from tui.keys import Where, named
from tui.replay import ReplaySource
from tui.screens.changing import Changing
from tui.widgets.bars import Mode

if TYPE_CHECKING:
    from core.recording import Recorder


_TICK = 1.0
_ROOMY = 110  # cells from which on the header has room for the recording's limits
_PATIENCE = 1.0  # seconds in which a recording comes to its end when the dashboard closes
_TOLD = 12.0  # seconds that the end of a recording is told


class Keeping(Changing):
    """Records as long as the person wants, in a visible way; the file is written by a thread."""

    _recorder: Recorder | None = None
    _ticker: Timer | None = None

    class RecordingEnded(Message):
        """A recording came to its end."""

    # ---- recording

    def action_record(self) -> None:
        """Begin to record; or end it."""
        if self._recorder is not None:
            self._recorder.stop("R ended it")
            return
        if not self.desk.source.live:
            self.notify("Only this host can be recorded, not a file.", severity="warning", markup=False)
            return
        from core.recording import Limits, Recorder

        limits = Limits()
        path = free_path("record", self.desk.hostname, ".vnetrec")
        self._recorder = Recorder(path, limits, lambda: self._from_thread(self.RecordingEnded()))
        self._recorder.start()
        self.desk.source.read_all(True)
        self.desk.listen(self._recorder.put)
        self._ticker = self.set_interval(_TICK, self.show_bars)
        most = f"{limits.seconds / 60:g} min or {size_of(limits.size)}"
        self.notify(f"Recording into {told(path)}, {most} at most. R ends it.", markup=False, timeout=6)
        self.show_bars()

    def _from_thread(self, message: Message) -> None:
        if self.is_attached:
            self.post_message(message)

    def recorded(self) -> str:
        if self._recorder is None:
            return ""
        made, limits = self._recorder.progress, self._recorder.limits
        words = f"REC {span_of(made.seconds)}"
        if self.size.width < _ROOMY:
            return words
        return f"{words} of {span_of(limits.seconds)}, {size_of(made.size)} of {size_of(limits.size)}"

    def on_keeping_recording_ended(self, message: RecordingEnded) -> None:
        """Say what was written, or why it could not be."""
        recorder, self._recorder = self._recorder, None
        self.desk.listen(None)
        self.desk.source.read_all(False)
        if self._ticker:
            self._ticker.stop()
        self.show_bars()
        if recorder is None:
            return
        made, name = recorder.progress, told(recorder.path)
        if made.failed:
            self.notify(
                f"Recording into {name} failed: {made.ended}.", severity="error", markup=False, timeout=_TOLD
            )
            return
        length = f"{span_of(made.seconds)}, {made.moments} moments, {size_of(made.size)}"
        words = f"Recorded {length}, until {made.ended}. Look at it with: vnet-tui replay {name}"
        self.notify(words, markup=False, timeout=_TOLD)

    def on_unmount(self) -> None:
        """A recording under way is brought to its end."""
        if self._recorder is not None:
            self._recorder.stop("the dashboard was closed")
            self._recorder.join(_PATIENCE)

    # ---- one moment

    def action_bundle(self) -> None:
        """Write the picture on the screen, with all that belongs to it, into one file."""
        self.run_worker(self._write_bundle(), group="bundle", exclusive=True)

    async def _write_bundle(self) -> None:
        path = free_path("bundle", self.desk.hostname, ".tar.gz")
        self.notify(f"Writing {told(path)}", markup=False)
        try:
            words = await asyncio.to_thread(self._bundled, path)
        except CommandError as error:
            self.notify(safe(str(error)), severity="error", markup=False, timeout=_TOLD)
            return
        words = f"W{words[1:]}. It holds addresses and names: look it through."
        self.notify(words, markup=False, timeout=_TOLD)

    def _bundled(self, path: Path) -> str:
        """Write it; what was written, in words. Raises CommandError."""
        from tui.bundle import Kept, bundle_of

        changer, shown, scene = self.changer, self.desk.shown, self.desk.scene
        counters = shown.rates.counters if shown and shown.rates else None
        fast = getattr(shown, "fast", None)
        read = getattr(self.desk.source, "fast_flows", None)
        if fast is None and read:  # they are not part of every picture
            fast = read()
        flows = scene.flows if scene.flows and scene.flows.index.topology is scene.topology else None
        log = changer.log if changer else ()
        earlier = changer.earlier() if changer and not changer.lacking() else ()
        kept = Kept(scene.topology, flows, counters, fast, scene.log.changes, log, earlier)
        return save(path, bundle_of(path.name, kept))


_REPLAY_TICK = 0.1  # seconds between two looks at where a recording that plays is


class Replaying(Keeping):
    """Goes along the time line; where there is none, its keys mean nothing."""

    def on_mount(self) -> None:
        """Show the time line, if there is one."""
        player = self.player
        if player is None:
            return
        self.time_bar.display = True
        self.banner.show(*player.banner)
        self.allot()
        self.set_interval(_REPLAY_TICK, self._show_time)
        if player.notice:
            self.call_after_refresh(self._tell, player.notice)

    def _tell(self, words: str) -> None:
        self.notify(safe(words), severity="warning", markup=False, timeout=8)

    @property
    def player(self) -> ReplaySource | None:
        """What plays the recording; None where none is open."""
        source = self.desk.source
        return source if isinstance(source, ReplaySource) else None

    def wheres(self) -> frozenset[Where]:
        return super().wheres() | ({"replay"} if self.player else frozenset())

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Keys of the time line are free for others where there is none."""
        if action == "seek" or named(action, "replay"):
            return self.player is not None
        return super().check_action(action, parameters)

    def _mode(self) -> Mode:
        return "replay" if self.player else super()._mode()

    def show_bars(self) -> None:
        super().show_bars()
        self._show_time()

    def _show_time(self) -> None:
        if self.player:
            self.time_bar.show(self.player.position, self.player.marks)

    # ---- what the keys do

    def action_play(self) -> None:
        if self.player:
            self.player.toggle()
            self._show_time()

    def action_later(self) -> None:
        self._step(1)

    def action_earlier(self) -> None:
        self._step(-1)

    def _step(self, count: int) -> None:
        if self.player:
            self.player.step(count)
            self._show_time()

    def action_next_change(self) -> None:
        self._to_change(1)

    def action_last_change(self) -> None:
        self._to_change(-1)

    def _to_change(self, direction: int) -> None:
        if self.player and self.player.seek_change(direction):
            self._show_time()
        elif self.player:
            self._show_time()
            end = "further change: this is the last" if direction > 0 else "earlier change: this is the first"
            self.notify(f"No {end} moment.", markup=False, timeout=3)

    def action_faster(self) -> None:
        self._speed(1)

    def action_slower(self) -> None:
        self._speed(-1)

    def _speed(self, steps: int) -> None:
        if self.player:
            self.player.faster(steps)
            self._show_time()

    def action_to_start(self) -> None:
        self.action_seek(0.0)

    def action_to_end(self) -> None:
        self.action_seek(1.0)

    def action_seek(self, part: float) -> None:
        """To that part of the time line, 0 to 1."""
        if self.player:
            self.player.seek(part)
            self._show_time()

"""The keys of the time line, while a recording is open."""

from __future__ import annotations

from core.text import safe
from tui.keys import Where, named
from tui.replay import ReplaySource
from tui.screens.keeping import Keeping
from tui.widgets.bars import Mode

_TICK = 0.1  # seconds between two looks at where a recording that plays is


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
        self.set_interval(_TICK, self._show_time)
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

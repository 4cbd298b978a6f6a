"""The fast path in the dashboard: the key that turns it on and off, the banner while it is on, and who asks
how it stands."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from textual.message import Message

from core.model import FastPath, Requirement
from core.text import safe
from tui.present.fast_targets import EVERYTHING, Choice, chosen, is_covered
from tui.screens.changing import Changing
from tui.source import Source

if TYPE_CHECKING:
    from tui.changer import Accelerator, Changer

_EVERY = 1.0  # seconds
_SOON = 0.2  # where the state will be another one in a moment
_SELECT = "Select a bridge, a network, a container or a flow of one first: f accelerates it."


class FastTold(Message):
    """How the fast path stands."""

    def __init__(self, fast: FastPath) -> None:
        super().__init__()
        self.fast = fast


class Accelerating(Changing):
    """Asks once a second, on a thread, how the fast path stands; asks closely only while its view is in
    sight."""

    def __init__(
        self,
        source: Source,
        make_changer: Callable[[], Changer] | None = None,
        write: bool = False,
        make_accelerator: Callable[[], Accelerator] | None = None,
    ) -> None:
        super().__init__(source, make_changer, write)
        self._make_accelerator = make_accelerator
        self._accelerator: Accelerator | None = None
        self.fast = FastPath()
        self._has_looked = False
        self._asking, self._closing = threading.Event(), False
        self._requirements: tuple[Requirement, ...] = ()

    def on_mount(self) -> None:
        """Begin to ask after the first paint; a file has nobody to ask."""
        if not self.desk.source.live:
            self.desk.stand(FastPath("unknown"))
        if self._make_accelerator is not None and self.desk.source.live:
            self.call_after_refresh(
                threading.Thread(target=self._watch, name="watch-fast-path", daemon=True).start
            )

    def on_unmount(self) -> None:
        """What was turned on here ends with the dashboard."""
        self._closing = True
        self._asking.set()
        if self._accelerator is not None:
            self._accelerator.close()

    def show_bars(self) -> None:
        super().show_bars()
        self._place_banner()

    def _place_banner(self) -> None:
        """Show the banner while it is on, but for its own view, which says the same."""
        wanted = self.fast.is_running and not self._closely
        if self.fast_bar.display != wanted:
            self.fast_bar.display = wanted
            self.allot()

    # ---- asking, on a thread

    def _watch(self) -> None:
        assert self._make_accelerator is not None
        accelerator = self._accelerator = self._make_accelerator()
        before: FastPath | None = None
        while not self._closing:
            found = self._asked(accelerator)
            if found != before:
                before = found
                self._from_watch(FastTold(found))
            self._asking.wait(_SOON if found.state == "changing" else _EVERY)
            self._asking.clear()

    def _asked(self, accelerator: Accelerator) -> FastPath:
        closely = self._closely
        if closely and not self._requirements:
            self._requirements = accelerator.requirements()
        return replace(accelerator.status(closely), requirements=self._requirements)

    @property
    def _closely(self) -> bool:
        return self.nav.here.view == "fastpath"

    def _from_watch(self, message: Message) -> None:
        if self.is_attached:
            self.post_message(message)

    def ask_soon(self) -> None:
        """Ask how it stands now."""
        self._asking.set()

    def on_fast_told(self, message: FastTold) -> None:
        """Bring the banner and, where it shows, the view up to date."""
        before, self.fast = self.fast, message.fast
        self.fast_bar.show(message.fast)
        self._place_banner()
        if self._closely or not self._has_looked or _essence(before) != _essence(message.fast):
            self.desk.stand(message.fast)
        self._has_looked = True

    def arrive(self) -> None:
        super().arrive()
        if self._closely:
            self.ask_soon()

    # ---- keys

    def action_fast_path(self) -> None:
        """A click on the banner."""
        self.go_to("fastpath")

    def action_accelerate(self) -> None:
        """Ask whether what is selected shall be accelerated, or no longer."""
        if self._writer() is None or self._accelerator is None:
            return
        choices = self._choices()
        able = [one for one in choices if one.target]
        if not able:
            told = [f"{one.label}: {one.nothing}" for one in choices]
            self.notify("; ".join(told) or _SELECT, markup=False, timeout=6)
            return
        from tui.screens.forms.accelerate import AccelerateScreen

        on = not all(is_covered(one, self.fast) for one in able)
        self.app.push_screen(AccelerateScreen(choices, on, self._accelerator), self._switched)

    def _choices(self) -> tuple[Choice, ...]:
        """What the selected thing stands for; in the fast path's own view, everything that it accelerates."""
        if self.view.name != "fastpath":
            return chosen(self.desk.scene.topology, self.ref)
        if not self.fast.is_running:
            return (EVERYTHING,)
        return tuple(Choice(safe(name), name, "", frozenset({name})) for name in self.fast.targets)

    def _switched(self, words: str | None) -> None:
        """It was turned on or off, or left as it was."""
        self.ask_soon()
        if words:
            self.notify(words, title="Fast path", markup=False, timeout=6)


def _essence(fast: FastPath) -> tuple[object, ...]:
    """What the marks in lists and the events depend on."""
    return fast.state, fast.targets, fast.bridges, fast.reasons

"""Watch the fast path in a thread, show its state, and turn it on and off."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from textual.message import Message

from core.model import FastPath, Requirement
from core.text import safe
from tui.presenter import Presenter
from tui.screens.change import ChangeController
from tui.screens.layout import Layout
from tui.screens.navigation import NavigationController
from tui.views.fast_targets import EVERYTHING, BridgeChoice, choices_of, is_covered

if TYPE_CHECKING:
    from tui.services import FastPathService

_EVERY = 1.0  # seconds
_SOON = 0.2  # while it is being turned on or off
_SELECT = "can't accelerate: this has no bridge. Try: select a bridge, a network, a container or a flow"


class FastPathChanged(Message):
    """The state of the fast path is another one."""

    def __init__(self, fast: FastPath) -> None:
        super().__init__()
        self.fast = fast


class FastPathController:
    """Poll the state of the fast path every second, in detail only in its view."""

    def __init__(
        self,
        screen: Layout,
        presenter: Presenter,
        navigation: NavigationController,
        changes: ChangeController,
        make_service: Callable[[], FastPathService] | None,
    ) -> None:
        self._screen, self._presenter = screen, presenter
        self._navigation, self._changes = navigation, changes
        self._make_service = make_service
        self._service: FastPathService | None = None
        self._fast = FastPath()
        self._is_known = False
        self._wake, self._closing = threading.Event(), False
        self._requirements: tuple[Requirement, ...] = ()

    def start(self) -> None:
        """Begin to poll after the first paint; a file has no fast path."""
        if not self._presenter.source.live:
            self._presenter.set_fast_path(FastPath("unknown"))
        if self._make_service is not None and self._presenter.source.live:
            self._screen.call_after_refresh(
                threading.Thread(target=self._poll, name="watch-fast-path", daemon=True).start
            )

    def close(self) -> None:
        """End the thread and everything that was turned on here."""
        self._closing = True
        self._wake.set()
        if self._service is not None:
            self._service.close()

    # ---- in the thread

    def _poll(self) -> None:
        assert self._make_service is not None
        service = self._service = self._make_service()
        before: FastPath | None = None
        while not self._closing:
            found = self._read(service)
            if found != before:
                before = found
                self._screen.post_from_thread(FastPathChanged(found))
            self._wake.wait(_SOON if found.state == "changing" else _EVERY)
            self._wake.clear()

    def _read(self, service: FastPathService) -> FastPath:
        in_detail = self._in_detail
        if in_detail and not self._requirements:
            self._requirements = service.requirements()
        return replace(service.status(in_detail), requirements=self._requirements)

    @property
    def _in_detail(self) -> bool:
        return self._navigation.state.current.view == "fastpath"

    # ---- on the screen

    def view_changed(self) -> None:
        """Poll at once if the fast path's own view was opened."""
        if self._in_detail:
            self._wake.set()

    def show(self, fast: FastPath) -> None:
        """Update the bar and, where it matters, the rows."""
        before, self._fast = self._fast, fast
        self._screen.fast_bar.show(fast)
        self.place_bar()
        if self._in_detail or not self._is_known or _essence(before) != _essence(fast):
            self._presenter.set_fast_path(fast)
        self._is_known = True

    def place_bar(self) -> None:
        """Show the bar while the fast path runs, except in its own view."""
        wanted = self._fast.is_running and not self._in_detail
        if self._screen.fast_bar.display != wanted:
            self._screen.fast_bar.display = wanted
            self._screen.allot()

    # ---- turn it on and off

    def accelerate(self) -> None:
        """Ask whether to accelerate the selected thing, or to end that."""
        if self._changes.require_service() is None or self._service is None:
            return
        choices = self._choices()
        able = [one for one in choices if one.target]
        if not able:
            words = [f"{one.label}: {one.nothing}" for one in choices]
            self._screen.notify("; ".join(words) or _SELECT, markup=False, timeout=6)
            return
        from tui.screens.forms.accelerate import AccelerateScreen

        on = not all(is_covered(one, self._fast) for one in able)
        self._screen.app.push_screen(AccelerateScreen(choices, on, self._service), self._report)

    def _choices(self) -> tuple[BridgeChoice, ...]:
        """Return the bridges of the selected row; in the fast path's view, its targets."""
        if self._navigation.view.name != "fastpath":
            return choices_of(self._presenter.context.topology, self._navigation.ref)
        if not self._fast.is_running:
            return (EVERYTHING,)
        return tuple(BridgeChoice(safe(name), name, "", frozenset({name})) for name in self._fast.targets)

    def _report(self, words: str | None) -> None:
        self._wake.set()
        if words:
            self._screen.notify(words, title="Fast path", markup=False, timeout=6)


def _essence(fast: FastPath) -> tuple[object, ...]:
    """Return the values that marks in lists and events depend on."""
    return fast.health, fast.state, fast.bridges

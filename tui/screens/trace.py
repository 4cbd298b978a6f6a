"""Show the packets of a flow at each link that they pass, over the dashboard."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from threading import Event
from typing import TYPE_CHECKING

from textual.binding import Binding

from core.capture.targets import flow_name
from core.flows import ConntrackEntry, entry_of
from core.model import Ref
from core.text import safe
from core.topology.related import entry_table
from tui.presenter import Presenter
from tui.screens.capture import flow_entry
from tui.screens.dialogs import Line, Overlay, TextPane
from tui.screens.layout import Layout

if TYPE_CHECKING:
    from tui.services import FlowTracer

_WIDTH = 130


def _waiting(width: int) -> list[Line]:
    return [[("waiting for packets of this flow, at most 5 s …", "dim")]]


def open_trace(screen: Layout, presenter: Presenter, ref: Ref) -> None:
    """Trace the selected flow, or say why that isn't possible."""
    entry = _entry(presenter, ref)
    if not presenter.source.live:
        screen.notify("can't trace a flow: this isn't a live host", markup=False)
    elif entry is None:
        screen.notify("can't trace the flow: it no longer exists. Try: :flows", markup=False)
    else:
        screen.app.push_screen(TraceOverlay(flow_name(entry), presenter.flow_tracer(int(ref.key[0]), entry)))


def _entry(presenter: Presenter, ref: Ref) -> ConntrackEntry | None:
    """Return the conntrack entry of a flow or entry on screen, None if it is gone."""
    if (row := flow_entry(presenter, ref)) is not None:
        return entry_of(row)
    table = entry_table(presenter.context.topology, ref)
    return entry_of(table.entries[0]) if table is not None and len(table.entries) else None


class TraceOverlay(Overlay):
    """One packet of each direction at each link; `t` traces again."""

    BINDINGS = [Binding("t", "trace", "Trace", show=False), Binding("x", "dismiss", show=False)]

    def __init__(self, name: str, tracer: FlowTracer) -> None:
        self._tracer, self._cancelled = tracer, Event()
        self._is_tracing = False
        self._make_lines: Callable[[int], list[Line]] = _waiting
        super().__init__(f" Trace {safe(name)} ", self._lay_out, _WIDTH)

    def _lay_out(self, width: int) -> list[Line]:
        return self._make_lines(width)

    def on_mount(self) -> None:
        super().on_mount()
        self.query_one("Vertical").border_subtitle = "t: again  Esc: close"
        self.run_worker(self.action_trace())

    def on_unmount(self) -> None:
        """End the trace; its thread gives the flow back to the fast path."""
        self._cancelled.set()

    async def action_trace(self) -> None:
        """Trace the flow's packets, and show them."""
        if self._is_tracing:
            return
        self._is_tracing = True
        self._show(_waiting)
        make_lines = await asyncio.to_thread(self._tracer, self._cancelled.is_set)
        self._is_tracing = False
        if not self._cancelled.is_set():
            self._show(make_lines)

    def _show(self, make_lines: Callable[[int], list[Line]]) -> None:
        self._make_lines = make_lines
        pane = self.query_one(TextPane)
        pane.on_resize()
        pane.top = 0
        self._fit()
        pane.repaint()

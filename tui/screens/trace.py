"""Show the packets of a flow, or the flows of an OVS bridge, over the dashboard."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from threading import Event
from typing import TYPE_CHECKING

from textual.binding import Binding

from core.capture.targets import flow_name
from core.flows import ConntrackEntry, entry_of
from core.model import OvsBridge, Ref
from core.text import safe
from core.topology import Topology
from core.topology.related import entry_table
from tui.presenter import Presenter
from tui.screens.capture import flow_entry
from tui.screens.dialogs import Line, Overlay, TextPane
from tui.screens.layout import Layout

if TYPE_CHECKING:
    from tui.services import FlowTracer

_WIDTH = 130


_WAITING = "waiting for packets of this flow, at most 5 s …"


def open_trace(screen: Layout, presenter: Presenter, ref: Ref) -> None:
    """Trace the selected flow, or say why that isn't possible."""
    entry = _entry(presenter, ref)
    if not presenter.source.live:
        screen.notify("can't trace a flow: this isn't a live host", markup=False)
    elif entry is None:
        screen.notify("can't trace the flow: it no longer exists. Try: :flows", markup=False)
    else:
        tracer = presenter.flow_tracer(int(ref.key[0]), entry)
        screen.app.push_screen(TraceOverlay(f"Trace {safe(flow_name(entry))}", tracer))


def ovs_bridge_of(topology: Topology, ref: Ref | None) -> OvsBridge | None:
    """Return the Open vSwitch bridge that a link is, or that a port belongs to."""
    if ref is not None and ref.kind == "ovs":
        return next((one for one in topology.snapshot.ovs if one.name == ref.key[0]), None)
    if ref is None or ref.kind != "link":
        return None
    link = topology.snapshot.link((int(ref.key[0]), int(ref.key[1])))
    return topology.ovs_bridge(link) if link else None


def open_ovs_flows(screen: Layout, presenter: Presenter, bridge: OvsBridge) -> None:
    """Read the OpenFlow flows of a bridge and show them."""
    if not presenter.source.live:
        screen.notify("can't read flows: this isn't a live host", markup=False)
        return
    title, reader = f"OpenFlow flows of {safe(bridge.name)}", presenter.ovs_flow_reader(bridge)
    screen.app.push_screen(TraceOverlay(title, reader, "reading flows …"))


def _entry(presenter: Presenter, ref: Ref) -> ConntrackEntry | None:
    """Return the conntrack entry of a flow or entry on screen, None if it is gone."""
    if (row := flow_entry(presenter, ref)) is not None:
        return entry_of(row)
    table = entry_table(presenter.context.topology, ref)
    return entry_of(table.entries[0]) if table is not None and len(table.entries) else None


class TraceOverlay(Overlay):
    """What a thread finds out about a flow or about flows; `t` starts it again."""

    BINDINGS = [Binding("t", "trace", "Trace", show=False), Binding("x", "dismiss", show=False)]

    def __init__(self, title: str, tracer: FlowTracer, waiting: str = _WAITING) -> None:
        self._tracer, self._cancelled, self._waiting = tracer, Event(), waiting
        self._is_tracing = False
        self._make_lines: Callable[[int], list[Line]] = self._wait_lines
        super().__init__(f" {title} ", self._lay_out, _WIDTH)

    def _wait_lines(self, width: int) -> list[Line]:
        return [[(self._waiting, "dim")]]

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
        self._show(self._wait_lines)
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

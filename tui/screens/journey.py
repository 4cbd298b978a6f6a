"""Where the person is and how they get on: shows the present stop, takes what comes, follows, goes back."""

from __future__ import annotations

import asyncio

from core.model import Ref
from core.text import safe
from tui import keys
from tui.desk import Arrived, Desk, DetailReady, Failed, RowsReady, WayReady
from tui.keys import Where
from tui.navigation import Navigation, Stop
from tui.present import views
from tui.present.fit_text import cut
from tui.present.rows import ListView
from tui.screens.frame import NUMBERED, TABS, Frame
from tui.source import Source
from tui.stage import Shown
from tui.widgets.bars import HeaderState, Mode
from tui.widgets.detail import DetailPane
from tui.widgets.lines import LinesPane
from tui.widgets.table import TableView

READING = "reading…"

# Views in which a cursor on the first line stays there: the newest, the biggest, what
# became of all packets.
_FOLLOWING = frozenset({"events", "flows", "fastpath"})
# Views of what recordings do not hold either.
_UNRECORDED = frozenset({"fastpath"})
# Seconds that a key waits for what the keys before it led to, and after which what was there before goes.
_KEY_PATIENCE = 0.1
_OLD_PATIENCE = 0.1
_CRUMB = 32  # cells of a breadcrumb at most


class Journey(Frame):
    """Shows one view at a time, and beside it everything about the selected thing."""

    def __init__(self, source: Source) -> None:
        super().__init__()
        self.desk = Desk(source, self.post_message)
        self.nav = Navigation(NUMBERED[0][1].name)
        self._drawn: Stop | None = None
        self._total = 0
        self._remarked: tuple[str, ...] = ()
        self.writing = False
        self._timed = False
        self._requests = self._awaited = 0
        self._caught_up = asyncio.Event()

    def on_mount(self) -> None:
        """Paint the frame; data is asked for only after that."""
        self.table.clear(READING)
        self.arrive()
        self.call_after_refresh(self.desk.start)

    def on_unmount(self) -> None:
        self.desk.stop()

    # ---- what is in sight

    @property
    def view(self) -> ListView:
        """The view in sight."""
        found = views.view_named(self.nav.here.view)
        assert found is not None
        return found.list

    @property
    def ref(self) -> Ref | None:
        """The selected thing."""
        return self.nav.here.state.ref

    @property
    def settled(self) -> bool:
        """Whether all that was asked for is shown."""
        shown = self._drawn is self.nav.here and self._caught_up.is_set()
        return shown and self.desk.idle and not self._timed

    def wheres(self) -> frozenset[Where]:
        """Where, as the registry of keys means it, the person is."""
        found: set[Where] = {"any", "app", "lines", "list", "pane"}
        if self.table.foldable:
            found.add("fold")
        if self.table.header_height:
            found.add("order")
        if self.view.name == "flows":
            found.add("flows")
        if self.writing:
            found.add("change")
        return frozenset(found)

    def show_bars(self) -> None:
        """Bring the bars up to date."""
        desk = self.desk
        mode = self._mode()
        found, unread = len(desk.findings), len(desk.problems)
        state = HeaderState(
            desk.hostname, desk.source.title, mode, found, unread, self.writing, self.recorded(), desk.reading
        )
        self.header.show(state)
        passed = [stop.label for stop in self.nav.trail[:-1]]
        filtered = bool(self.nav.here.state.filter)
        self.crumbs.show((*passed, self._title()), self._badge(), filtered)
        active = next((number for number, view in NUMBERED if view is self.view), 0)
        self.crumbs.set_class(bool(passed) or filtered or not active, "-needed")
        self.tabs.show(TABS, active, "" if self._crumbs_shown() else self._badge())
        self.footer.show(keys.footer(self.wheres()))

    def _mode(self) -> Mode:
        return "paused" if self.desk.paused else "live" if self.desk.source.live else "offline"

    def recorded(self) -> str:
        """How far a recording is, "" where there is none."""
        return ""

    def _title(self) -> str:
        """The view's name; of flows added up, by what."""
        lens = self.nav.here.state.lens
        if not lens.by or self.view.name != "flows":
            return self.view.title
        return f"{self.view.title} {lens.told}" if lens.told.startswith("by ") else lens.told.capitalize()

    def _crumbs_shown(self) -> bool:
        return self.crumbs.has_class("-needed") or not self.has_class("-short")

    def _badge(self) -> str:
        text, shown = self.nav.here.state.filter, len(self.table.rows)
        if not text:
            return f"{shown} row{'s' * (shown != 1)}" if shown and self.table.header_height else ""
        return f"filtered {shown} of {self._total}  /{safe(text)}"

    # ---- coming and going

    def arrive(self) -> None:
        """Show the present stop: its rows as soon as they are worked out."""
        state = self.nav.here.state
        if not state.sort:
            state.sort, state.reverse = self.view.sort, self.view.reverse
        self._drawn = None
        self.desk.source.show(self.view.name)
        self.ask()
        self.set_timer(_OLD_PATIENCE, self._clear_the_old)
        self.show_bars()

    def _clear_the_old(self) -> None:
        """Rows take their time: do not show those of another view meanwhile."""
        if self._drawn is not self.nav.here:
            self.table.clear(READING)
            self.pane.show(None, None)

    def go_to(self, view: str, filter_text: str = "") -> None:
        """Jump to a view by its name."""
        self.nav.here.state.top = self.table.top
        self.nav.jump(view)
        self.nav.here.state.filter = filter_text or self.nav.here.state.filter
        self.arrive()
        self.to_the_table()

    def on_table_view_opened(self, message: TableView.Opened) -> None:
        self._follow()

    def on_detail_pane_opened(self, message: DetailPane.Opened) -> None:
        self._follow(message.ref)

    def _follow(self, target: Ref | None = None) -> None:
        self._caught_up.clear()
        self.desk.way(self.nav.here, self.nav.refs, target)

    def on_way_ready(self, message: WayReady) -> None:
        """Go where Enter leads."""
        if message.origin is not self.nav.here:
            return
        if message.way is None:
            self._caught_up.set()
            self.notify("Nothing else hangs together with this.", markup=False)
            return
        self.nav.here.state.top = self.table.top
        self.nav.follow(message.way, self._label())
        self.arrive()
        self.to_the_table()

    def _label(self) -> str:
        """What the breadcrumbs call the selected thing."""
        detail, row = self.pane.detail, self.table.selected_row()
        if detail is not None and self.pane.about == self.ref:
            return cut(safe(detail.title), _CRUMB)
        return cut(safe(row.cells[0].text), _CRUMB) if row else self.view.title

    # ---- asking

    def ask(self) -> None:
        """Ask for what a person wants to see; keys wait for it."""
        state = self.nav.here.state
        self.table.sort, self.table.reverse, self.table.closed = state.sort, state.reverse, state.closed
        self._request()
        self._awaited = self._requests
        self._caught_up.clear()

    def _request(self) -> None:
        self._requests += 1
        self.desk.rows(self.nav.here, self.view, self._requests)

    async def caught_up(self) -> None:
        """Wait a moment for what was asked for, so that a key acts upon what the keys before it led to."""
        barrier = LinesPane.Barrier()
        self.focused_pane.post_message(barrier)
        try:
            async with asyncio.timeout(_KEY_PATIENCE):
                await barrier.passed.wait()
                await self._caught_up.wait()
        except TimeoutError:
            self._caught_up.set()

    def on_lines_pane_barrier(self, message: LinesPane.Barrier) -> None:
        message.passed.set()

    # ---- data comes

    def on_arrived(self, message: Arrived) -> None:
        """Something new: have it worked out, not sooner than the pace allows."""
        if not self.desk.paused and not self._timed:
            self._timed = True
            wait = self.desk.wait  # once: it runs down to 0 meanwhile, and a timer of 0 seconds fails
            self.set_timer(wait, self._take_up) if wait else self._take_up()

    def _take_up(self) -> None:
        self._timed = False
        self._request()

    def on_rows_ready(self, message: RowsReady) -> None:
        """Rows: the first for a stop, or newer ones."""
        stop, shown = message.origin, message.shown
        if stop is not self.nav.here:
            return
        if message.number >= self._awaited:
            self._caught_up.set()
        self._total = shown.total
        if len(shown.rows) and shown.remarks and shown.remarks != self._remarked:
            self.notify(safe(" ".join(shown.remarks)), severity="warning", markup=False, timeout=6)
        self._remarked = shown.remarks
        self.table.message = self._explanation(shown)
        if self._drawn is stop and len(self.table.rows) and self._same_columns(shown):
            self.table.columns = shown.columns or self.view.columns
            self.table.update(shown.rows, stop.view in _FOLLOWING)
        else:
            added_up = self._drawn is stop and not self._same_columns(shown)
            gone = stop.state.ref is not None and shown.rows.index(stop.state.ref) is None
            if gone and len(shown.rows) and not added_up and not stop.state.filter:
                self.notify("What was selected is not in this list now.", markup=False, timeout=3)
            self.table.show(shown.columns or self.view.columns, shown.rows, stop.state.ref, stop.state.top)
        self._drawn = stop
        self.want(
            shown.total + self.table.header_height if len(shown.rows) and self.table.header_height else 0
        )
        if not len(shown.rows):
            self.pane.show(None, None)
        elif stop.state.ref is not None:
            self.desk.detail(stop.state.ref)
        self.show_bars()

    def _same_columns(self, shown: Shown) -> bool:
        """Whether the table's columns stay; which give way first on a narrow terminal may change."""
        names = [(column.name, column.title) for column in shown.columns or self.view.columns]
        return [(column.name, column.title) for column in self.table.columns] == names

    def _explanation(self, shown: Shown) -> str:
        """What an empty table says."""
        if shown.pending:
            return READING
        text = self.nav.here.state.filter
        if text and shown.total:
            wanted = [f"No line matches {safe(text)}", *map(safe, shown.remarks)]
            return "\n".join((*wanted, f"Esc shows all {shown.total} again."))
        from_file = self._mode() == "offline" or (self._mode() == "replay" and self.view.name in _UNRECORDED)
        return (from_file and self.view.empty_file) or shown.empty

    def on_table_view_selected(self, message: TableView.Selected) -> None:
        """The cursor stands on another thing. Of several that a line stands for, the one followed stays."""
        state, ref = self.nav.here.state, message.ref
        if self._drawn is not self.nav.here or ref != self.table.ref:
            return
        if ref is None:
            self.pane.show(None, None)
            return
        rows = self.table.rows
        if state.ref is None or rows.index(state.ref) != rows.index(ref):
            state.ref = ref
        self.desk.detail(state.ref)

    def on_detail_ready(self, message: DetailReady) -> None:
        """Show it, if it is still what is selected."""
        if message.ref == self.ref and len(self.table.rows):
            self.pane.show(message.ref, message.detail)

    def on_failed(self, message: Failed) -> None:
        """A picture could not be worked out: say so, and go on."""
        self._caught_up.set()
        words = safe(repr(message.error))
        self.log.error(words)
        if self._drawn is not self.nav.here:
            self._drawn = self.nav.here
            self.table.clear(f"This could not be shown.\n{words}")
        else:
            self.notify(words, title="This could not be shown", severity="error", markup=False)

"""Show the current view: request rows, follow links, go back, filter, sort, fold."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from core.model import Demand, Ref
from core.text import safe
from tui.keys import KeyScope
from tui.presenter import DetailReady, Presenter, QueryFailed, RowsReady, TargetReady
from tui.screens.layout import NUMBERED, TABS, Layout
from tui.view_model import HistoryEntry, Navigation, ViewData
from tui.views import registry
from tui.views.formatting import cut
from tui.views.rows import FlowViewOptions, ListView
from tui.widgets.lines import LinesPane

READING = "reading…"

# Seconds that a key waits for what the keys before it led to, and after which old rows are cleared.
_KEY_TIMEOUT = 0.1
_OLD_ROWS_TIMEOUT = 0.1
_CRUMB = 32  # cells of a breadcrumb at most


class NavigationController:
    """Show one view at a time, and beside it the details of the selected thing.

    `on_change` is called after each change of the view.
    """

    def __init__(self, screen: Layout, presenter: Presenter, on_change: Callable[[], None]) -> None:
        self._screen, self._presenter, self._on_change = screen, presenter, on_change
        self.state = Navigation(NUMBERED[0][1].name)
        self._shown_entry: HistoryEntry | None = None  # the one whose rows the table shows
        self._total = 0
        self._last_remarks: tuple[str, ...] = ()
        self._is_scheduled = False
        self._last_request = self._awaited_request = 0
        self._caught_up = asyncio.Event()

    @property
    def view(self) -> ListView:
        """The current view."""
        found = registry.view_named(self.state.current.view)
        assert found is not None
        return found.list

    @property
    def ref(self) -> Ref | None:
        """The selected thing, None while no row shows it: a filter may hide it."""
        ref = self.state.current.state.ref
        return ref if ref is not None and self._screen.table.rows.index(ref) is not None else None

    def refusal(self, what: str) -> str:
        """Return why an action can't be done while the filter hides every row, else ""."""
        hides_all = self.state.current.state.filter and not len(self._screen.table.rows)
        return self.nothing_selected(what) if hides_all else ""

    def nothing_selected(self, what: str) -> str:
        """Return why an action can't be done without a selected row."""
        remedy = "Esc, which clears the filter" if self.state.current.state.filter else "select a row"
        return f"can't {what}: nothing is selected. Try: {remedy}"

    @property
    def up_to_date(self) -> bool:
        """Whether everything that was requested is shown."""
        shown = self._shown_entry is self.state.current and self._caught_up.is_set()
        return shown and self._presenter.idle and not self._is_scheduled

    def key_scopes(self) -> set[KeyScope]:
        """Return where keys are pressed now, in the terms of the key registry."""
        found: set[KeyScope] = {"any", "app", "lines", "list", "pane"}
        if self._screen.table.foldable:
            found.add("fold")
        if self._screen.table.header_height:
            found.add("order")
        if self.view.groupings:
            found.add("group")
        if self.view.name in ("flows", "drops"):
            found.add("flows" if self.view.name == "flows" else "drops")
        return found

    # ---- bars

    def show_bars(self) -> None:
        """Update breadcrumbs and tabs."""
        screen = self._screen
        passed = [entry.label for entry in self.state.history[:-1]]
        filtered = bool(self.state.current.state.filter)
        screen.crumbs.show((*passed, self._title()), self._badge(), filtered)
        grouped = self._title() != self.view.title
        active = next((number for number, view in NUMBERED if view is self.view), 0)
        screen.crumbs.set_class(bool(passed) or filtered or not active or grouped, "-needed")
        crumbs_shown = screen.crumbs.has_class("-needed") or not screen.has_class("-short")
        screen.tabs.show(TABS, active, "" if crumbs_shown else self._badge())

    def _title(self) -> str:
        """Return the view's name; of grouped flows, the grouping."""
        options = self.state.current.state.flow_options
        if not options.by or not self.view.groupings:
            return self.view.title
        if options.title.startswith("by "):
            return f"{self.view.title} {options.title}"
        return options.title.capitalize()

    def _badge(self) -> str:
        table = self._screen.table
        text, shown = self.state.current.state.filter, len(table.rows)
        if not text:
            return f"{shown} row{'s' * (shown != 1)}" if shown and table.header_height else ""
        return f"filtered {shown} of {self._total}  /{safe(text)}"

    # ---- from view to view

    def start(self) -> None:
        """Paint the empty view; data is requested only after the first paint."""
        self._screen.table.clear(READING)
        self.show_entry()
        self._screen.call_after_refresh(self._presenter.start)

    def show_entry(self) -> None:
        """Show the current history entry, its rows as soon as they are ready."""
        state = self.state.current.state
        if not state.sort:
            state.sort, state.reverse = self.view.sort, self.view.reverse
        self._shown_entry = None
        self._presenter.set_demand(self.view.demand)
        self.request_rows()
        self._screen.set_timer(_OLD_ROWS_TIMEOUT, self._clear_old_rows)
        self._screen.show_bars()
        self._on_change()

    def _clear_old_rows(self) -> None:
        """Remove the rows of the view before, if those of this one take their time."""
        if self._shown_entry is not self.state.current:
            self._screen.table.clear(READING)
            self._screen.pane.show(None, None)

    def go_to(self, view: str, filter_text: str = "") -> None:
        """Jump to a view by its name."""
        self.state.current.state.top = self._screen.table.top
        self.state.jump(view)
        self.state.current.state.filter = filter_text or self.state.current.state.filter
        self.show_entry()
        self._screen.focus_table()

    def go_back(self) -> None:
        """Leave the details, reset the filter, or return to the view before."""
        current = self.state.current
        if self._screen.pane.has_focus:
            self._screen.focus_table()
        elif current.state.filter not in ("", current.filter):
            self.set_filter(current.filter)
        elif self.state.back():
            self.show_entry()
            self._screen.focus_table()

    def follow(self, target: Ref | None = None) -> None:
        """Request where Enter leads: to `target`, or else to the foremost related thing."""
        self._caught_up.clear()
        self._presenter.request_target(self.state.current, self.state.refs, target)

    def show_target(self, message: TargetReady) -> None:
        """Go where Enter leads."""
        if message.entry is not self.state.current:
            return
        if message.target is None:
            self._caught_up.set()
            self._screen.notify("No other item is related to this one.", markup=False)
            return
        self.state.current.state.top = self._screen.table.top
        self.state.follow(message.target, self._label())
        self.show_entry()
        self._screen.focus_table()

    def _label(self) -> str:
        """Return the breadcrumb of the selected row."""
        pane, row = self._screen.pane, self._screen.table.selected_row()
        if pane.detail is not None and pane.about == self.ref:
            return cut(safe(pane.detail.title), _CRUMB)
        return cut(safe(row.cells[0].text), _CRUMB) if row else self.view.title

    # ---- the rows of the current view

    def set_filter(self, text: str) -> None:
        """Filter the rows."""
        if text != self.state.current.state.filter:
            self.state.current.state.filter = text
            self.request_rows()

    def sort_by(self, column: str) -> None:
        """Sort by a column, in reverse if the rows are in its order already."""
        state = self.state.current.state
        state.reverse = state.sort == column and not state.reverse
        state.sort = column
        self.request_rows()

    def sort_by_next(self) -> None:
        """Sort by the next visible column."""
        names, sort = self._sortable(), self.state.current.state.sort
        if names:
            self.sort_by(names[(names.index(sort) + 1) % len(names) if sort in names else 0])

    def reverse(self) -> None:
        """Reverse the order."""
        names = self._sortable()
        if names:
            self.sort_by(self.state.current.state.sort or names[0])

    def _sortable(self) -> list[str]:
        table = self._screen.table
        return table.visible_columns() if table.header_height else []

    def fold(self, ref: Ref, closed: bool) -> None:
        """Fold or unfold the rows below a thing."""
        state = self.state.current.state
        state.closed = state.closed | {ref} if closed else state.closed - {ref}
        self.request_rows()

    @property
    def flow_options(self) -> FlowViewOptions:
        """How the current view shows flows."""
        return self.state.current.state.flow_options

    def set_flow_options(self, options: FlowViewOptions, keep_selection: bool = True) -> None:
        """Change how flows are shown; without `keep_selection` nothing is selected then."""
        if not keep_selection:
            self.state.current.state.ref = None
        self.state.current.state.flow_options = options
        self.request_rows()

    def inspect_drops(self) -> None:
        """List each dropped packet for a while, in the details of the selected line."""
        if Demand.DROPS in self.view.demand:
            self._presenter.set_demand(self.view.demand)
            self._presenter.set_demand(self.view.demand | {Demand.DROP_PACKETS})

    # ---- requests

    def request_rows(self) -> None:
        """Request rows that a person waits for; keys wait for them as well."""
        state, table = self.state.current.state, self._screen.table
        table.sort, table.reverse, table.closed = state.sort, state.reverse, state.closed
        self._request()
        self._awaited_request = self._last_request
        self._caught_up.clear()

    def _request(self) -> None:
        self._last_request += 1
        self._presenter.request_rows(self.state.current, self.view, self._last_request)

    async def catch_up(self) -> None:
        """Wait a moment for requested rows, so that a key applies to them."""
        barrier = LinesPane.Barrier()
        self._screen.focused_pane.post_message(barrier)
        try:
            async with asyncio.timeout(_KEY_TIMEOUT):
                await barrier.passed.wait()
                await self._caught_up.wait()
        except TimeoutError:
            self._caught_up.set()

    def schedule_update(self) -> None:
        """Request the rows of a new update, not sooner than the presenter's pace allows.

        Textual's `set_timer` never calls back if its task is held up for longer than the delay while it
        starts (`Timer._run`), and no later update would be shown.
        """
        if not self._presenter.paused and not self._is_scheduled:
            self._is_scheduled = True
            asyncio.get_running_loop().call_later(self._presenter.delay, self._request_update)

    def _request_update(self) -> None:
        self._is_scheduled = False
        self._request()

    # ---- answers

    def show_rows(self, message: RowsReady) -> None:
        """Show rows: the first of a history entry, or newer ones."""
        entry, data = message.entry, message.data
        screen, table = self._screen, self._screen.table
        if entry is not self.state.current:
            return
        if message.number >= self._awaited_request:
            self._caught_up.set()
        self._total = data.total
        if len(data.rows) and data.remarks and data.remarks != self._last_remarks:
            screen.notify(safe("; ".join(data.remarks)), severity="warning", markup=False, timeout=6)
        self._last_remarks = data.remarks
        table.message = self._explanation(data)
        if self._shown_entry is entry and len(table.rows) and self._same_columns(data):
            table.columns = data.columns or self.view.columns
            table.update(data.rows, self.view.stays_on_top)
        else:
            regrouped = self._shown_entry is entry and not self._same_columns(data)
            gone = entry.state.ref is not None and data.rows.index(entry.state.ref) is None
            if gone and len(data.rows) and not regrouped and not entry.state.filter:
                screen.notify("The selected item is no longer in this list.", markup=False, timeout=3)
            table.show(data.columns or self.view.columns, data.rows, entry.state.ref, entry.state.top)
        self._shown_entry = entry
        screen.reserve_lines(
            data.total + table.header_height if len(data.rows) and table.header_height else 0
        )
        if not len(data.rows):
            screen.pane.show(None, None)
        elif entry.state.ref is not None:
            self._presenter.request_detail(entry.state.ref)
        screen.show_bars()

    def _same_columns(self, data: ViewData) -> bool:
        """Return whether the columns stay; the order of dropping them may change."""
        names = [(column.name, column.title) for column in data.columns or self.view.columns]
        return [(column.name, column.title) for column in self._screen.table.columns] == names

    def _explanation(self, data: ViewData) -> str:
        """Return the text of an empty table."""
        if data.pending:
            return READING
        text = self.state.current.state.filter
        if text and data.total:
            wanted = [f"No row matches {safe(text)}", *map(safe, data.remarks)]
            return "\n".join((*wanted, f"Esc shows all {data.total} rows again."))
        mode = self._presenter.mode
        from_file = mode == "offline" or (mode == "replay" and not self.view.is_recorded)
        return (from_file and self.view.empty_file) or data.empty

    def select_again(self, ref: Ref) -> None:
        """Select a thing when the next rows are shown."""
        self._shown_entry = None
        self.state.current.state.ref, self.state.current.state.top = ref, self._screen.table.top

    def select(self, ref: Ref | None) -> None:
        """Take over the table's cursor; of a row's things, the selected one stays."""
        state, table = self.state.current.state, self._screen.table
        if self._shown_entry is not self.state.current or ref != table.ref:
            return
        if ref is None:
            self._screen.pane.show(None, None)
            return
        if state.ref is None or table.rows.index(state.ref) != table.rows.index(ref):
            state.ref = ref
        self._presenter.request_detail(state.ref)

    def show_detail(self, message: DetailReady) -> None:
        """Show the details, unless another thing is selected by now."""
        if message.ref == self.ref and len(self._screen.table.rows):
            self._screen.pane.show(message.ref, message.detail)

    def show_failure(self, message: QueryFailed) -> None:
        """Report a failed query, and go on."""
        self._caught_up.set()
        words = f"can't show {self.view.title}: {safe(repr(message.error))}"
        self._screen.log.error(words)
        if self._shown_entry is not self.state.current:
            self._shown_entry = self.state.current
            self._screen.table.clear(words)
        else:
            self._screen.notify(words, severity="error", markup=False)

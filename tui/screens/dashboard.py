"""The dashboard: panes, bars and prompt, and what keys do to them."""

from __future__ import annotations

import asyncio

from textual import events
from textual.app import ComposeResult
from textual.containers import Container
from textual.screen import Screen

from core.model import Ref
from core.text import safe
from tui import commands, keys, themes
from tui.desk import Arrived, Desk, DetailReady, Failed, RowsReady, WayReady
from tui.keys import Where
from tui.navigation import Navigation, Stop
from tui.present import views
from tui.present.rows import ListView
from tui.source import Source
from tui.widgets.bars import CrumbsBar, FooterBar, HeaderBar, HeaderState, Mode, TabsBar
from tui.widgets.detail import DetailPane
from tui.widgets.lines import LinesPane
from tui.widgets.overview import MainPane
from tui.widgets.painted import cut
from tui.widgets.prompt import Kind, Prompt
from tui.widgets.table import TableView

NUMBERED = tuple((view.number, view.list) for view in views.VIEWS if view.number is not None)
TABS = tuple((number, view.title, min(view.name, view.aliases[0], key=len)) for number, view in NUMBERED)

_FOLLOWING = frozenset({"events"})  # views in which a cursor on the first line stays there: the newest
READING = "reading…"
_PATIENCE = 0.1  # seconds
_CRUMB = 32  # cells of a breadcrumb at most


class Dashboard(Screen[None]):
    """Shows one view at a time, and beside it everything about the selected thing."""

    AUTO_FOCUS = "TableView"
    BINDINGS = [*keys.bindings("any", "list", "order", "pane"), *keys.view_bindings(9)]
    HORIZONTAL_BREAKPOINTS = [(0, "-tiny"), (60, "-narrow"), (110, "-wide")]
    VERTICAL_BREAKPOINTS = [(0, "-small"), (16, "-tall")]

    def __init__(self, source: Source) -> None:
        super().__init__()
        self.desk = Desk(source, self.post_message)
        self.nav = Navigation(NUMBERED[0][1].name)
        self._enter(self.nav.here)
        self._drawn: Stop | None = None
        self._total = 0
        self._timed = False
        self._requests = self._awaited = 0
        self._caught_up = asyncio.Event()

    def compose(self) -> ComposeResult:
        yield HeaderBar()
        yield TabsBar()
        yield CrumbsBar()
        with Container(id="body"):
            with Container(id="main"):
                yield MainPane()
            with Container(id="side"):
                yield DetailPane()
        yield Prompt(commands.completed)
        yield FooterBar()

    def on_mount(self) -> None:
        """Paint the frame; data is asked for only after that."""
        self.table, self.pane = self.query_one(TableView), self.query_one(DetailPane)
        self.prompt = self.query_one(Prompt)
        self._zoomed: LinesPane | None = None
        self.table.clear(READING)
        self._arrive()
        self.call_after_refresh(self.desk.start)

    def on_unmount(self) -> None:
        self.desk.stop()

    @property
    def settled(self) -> bool:
        """Whether all that was asked for is shown."""
        return (
            self.desk.idle and not self._timed and self._drawn is self.nav.here and self._caught_up.is_set()
        )

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

    def wheres(self) -> frozenset[Where]:
        """Where, as the registry of keys means it, the person is."""
        found: set[Where] = {"any", "app", "lines", "list", "pane"}
        if self.table.foldable:
            found.add("fold")
        if self.table.header_height:
            found.add("order")
        return frozenset(found)

    def _enter(self, stop: Stop) -> None:
        """Give a stop that was never seen its view's own order."""
        view = views.view_named(stop.view)
        if view and not stop.state.sort:
            stop.state.sort = view.list.sort

    def _arrive(self) -> None:
        """Show the present stop: what is known at once, its rows as soon as they are worked out."""
        self._enter(self.nav.here)
        self._drawn = None
        self.desk.source.show(self.view.name)
        self._ask()
        self.set_timer(_PATIENCE, self._clear_the_old)
        self._show_bars()

    def _clear_the_old(self) -> None:
        """Rows take their time: do not show those of another view meanwhile."""
        if self._drawn is not self.nav.here:
            self.table.clear(READING)
            self.pane.show(None, None)

    def _leave(self) -> None:
        self.nav.here.state.top = self.table.top

    def _ask(self) -> None:
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
        (self.pane if self.pane.has_focus else self.table).post_message(barrier)
        try:
            async with asyncio.timeout(_PATIENCE):
                await barrier.passed.wait()
                await self._caught_up.wait()
        except TimeoutError:
            self._caught_up.set()

    def on_lines_pane_barrier(self, message: LinesPane.Barrier) -> None:
        message.passed.set()

    def _show_bars(self) -> None:
        desk = self.desk
        mode: Mode = "paused" if desk.paused else "live" if desk.source.live else "offline"
        self.query_one(HeaderBar).show(HeaderState(desk.hostname, mode, len(desk.problems)))
        active = next((number for number, view in NUMBERED if view is self.view), 0)
        self.query_one(TabsBar).show(TABS, active)
        self.query_one(CrumbsBar).show(self._stops(), self._badge(), bool(self.nav.here.state.filter))
        self.query_one(FooterBar).show(keys.footer(self.wheres()))

    def _stops(self) -> tuple[str, ...]:
        """In words, the things that the way led over, and the view in sight."""
        passed = [stop.label for stop in self.nav.trail[:-1]]
        return (*passed, self.view.title)

    def _badge(self) -> str:
        text, shown = self.nav.here.state.filter, len(self.table.rows)
        if not text:
            return f"{shown} rows" if shown and self.table.header_height else ""
        return f"filtered {shown} of {self._total}  /{safe(text)}"

    # ---- data comes

    def on_arrived(self, message: Arrived) -> None:
        """Something new: have it worked out, not sooner than the pace allows."""
        if not self.desk.paused and not self._timed:
            self._timed = True
            self.set_timer(self.desk.wait, self._take_up) if self.desk.wait else self._take_up()

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
        self.table.message = self._explanation(shown.pending)
        if self._drawn is stop and len(self.table.rows):
            self.table.update(shown.rows, stop.view in _FOLLOWING)
        else:
            self.table.show(self.view.columns, shown.rows, stop.state.ref, stop.state.top)
        self._drawn = stop
        if stop.state.ref is not None:
            self.desk.detail(stop.state.ref)
        self._show_bars()

    def _explanation(self, pending: bool) -> str:
        """What an empty table says."""
        if pending:
            return READING
        if self.nav.here.state.filter and self._total:
            return f"No line matches {safe(self.nav.here.state.filter)}\nEsc shows all {self._total} again."
        return self.view.empty

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
        if message.ref == self.ref:
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

    # ---- following

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
        self._leave()
        self.nav.follow(*message.way, self._label())
        self._arrive()
        self._to_the_table()

    def _label(self) -> str:
        """What the breadcrumbs call the selected thing."""
        detail, row = self.pane.detail, self.table.selected_row()
        if detail is not None and self.pane.about == self.ref:
            return cut(safe(detail.title), _CRUMB)
        return cut(safe(row.cells[0].text), _CRUMB) if row else self.view.title

    def action_back(self) -> None:
        if self.nav.here.state.filter:
            self._set_filter("")
        elif self.nav.back():
            self._arrive()

    def action_view(self, number: int) -> None:
        self.go_to(next((view.name for each, view in NUMBERED if each == number), self.view.name))

    def action_previous(self) -> None:
        if self.nav.previous:
            self.go_to(self.nav.previous)

    def go_to(self, view: str, filter_text: str = "") -> None:
        """Jump to a view by its name."""
        self._leave()
        self.nav.jump(view)
        if filter_text:
            self.nav.here.state.filter = filter_text
        self._arrive()
        self._to_the_table()

    def _to_the_table(self) -> None:
        if self._zoomed is self.pane:
            self._zoomed = None
            self._arrange()
        self.set_focus(self.table)

    # ---- filter and commands

    def action_filter(self) -> None:
        self._open_prompt("/", self.nav.here.state.filter)

    def action_command(self) -> None:
        self._open_prompt(":", "")

    def _open_prompt(self, kind: Kind, text: str) -> None:
        self.prompt.open(kind, text)

    async def feed_prompt(self, event: events.Key) -> bool:
        """Give a key to the prompt, as long as it is open; False where it is not."""
        if not self.prompt.display:
            return False
        kind, outcome = self.prompt.kind, self.prompt.feed(event)
        if outcome in ("accepted", "given up"):
            self.prompt.close()
        if kind == "/" and outcome:
            self._set_filter("" if outcome == "given up" else self.prompt.text.strip())
        elif outcome == "accepted" and self.prompt.text.strip():
            await self._run_command(self.prompt.text)
        return True

    def on_paste(self, event: events.Paste) -> None:
        """Put what is pasted into the prompt."""
        if self.prompt.display:
            self.prompt.insert(event.text)
            self.prompt.repaint()
            if self.prompt.kind == "/":
                self._set_filter(self.prompt.text.strip())

    def _set_filter(self, text: str) -> None:
        if text != self.nav.here.state.filter:
            self.nav.here.state.filter = text
            self._ask()

    async def _run_command(self, text: str) -> None:
        found = commands.understood(text)
        if found is None:
            names = " ".join(f":{short}" for _, _, short in TABS)
            self.notify(f"Nothing is called {safe(text)!r}. Try {names}", severity="warning", markup=False)
        elif isinstance(found, str):
            await self.run_action(found)
        else:
            self.go_to(found[0].name, found[1])

    # ---- order and folds

    def on_table_view_sort_asked(self, message: TableView.SortAsked) -> None:
        state = self.nav.here.state
        state.reverse = not state.reverse if state.sort == message.column else False
        state.sort = message.column
        self._ask()

    def on_table_view_fold_asked(self, message: TableView.FoldAsked) -> None:
        state = self.nav.here.state
        state.closed = state.closed | {message.ref} if message.closed else state.closed - {message.ref}
        self._ask()

    def action_sort(self) -> None:
        """By the next column in sight."""
        names = self.table.columns_in_sight() if self.table.header_height else []
        sort = self.nav.here.state.sort
        after = names.index(sort) + 1 if sort in names else 0
        if names:
            self.on_table_view_sort_asked(TableView.SortAsked(names[after % len(names)]))

    def action_reverse(self) -> None:
        sort = self.nav.here.state.sort or next(iter(self.table.columns_in_sight()), "")
        if sort:
            self.nav.here.state.sort, self.nav.here.state.reverse = sort, not self.nav.here.state.reverse
            self._ask()

    # ---- panes

    def on_resize(self) -> None:
        self._arrange()

    def _arrange(self) -> None:
        """Give the panes their places: both, or the one that has room or is zoomed."""
        alone = self._zoomed or (self.table if min(self.size.width - 60, self.size.height - 16) < 0 else None)
        self.query_one("#main").display = alone is not self.pane
        self.query_one("#side").display = alone is not self.table
        self.set_class(alone is self.pane, "-side-alone")

    def action_next_pane(self) -> None:
        """To the other pane; where only one is in sight, it takes that one's place."""
        target: LinesPane = self.table if self.pane.has_focus else self.pane
        if self._zoomed or not self.query_one("#side").display:
            self._zoomed = target
        self._arrange()
        self.set_focus(target)
        self._show_bars()

    def action_zoom(self) -> None:
        """The pane at hand alone, and back."""
        focused: LinesPane = self.pane if self.pane.has_focus else self.table
        self._zoomed = None if self._zoomed else focused
        self._arrange()
        if self.pane.has_focus and not self.query_one("#side").display:
            self.set_focus(self.table)
        self._show_bars()

    # ---- the rest

    def action_copy(self) -> None:
        """The name of the selected thing; the line, where it has none."""
        text = self.pane.selected_text() if self.pane.has_focus else self.table.selected_text()
        if text:
            self.app.copy_to_clipboard(text)
            self.notify(text, title="Copied", markup=False, timeout=2)

    def action_pause(self) -> None:
        self.desk.paused = not self.desk.paused
        self._ask()
        self._show_bars()

    def action_refresh(self) -> None:
        self.desk.source.refresh()
        self.notify("Reading everything again", timeout=1.5, markup=False)

    def action_theme(self) -> None:
        self.app.theme = themes.after(self.app.theme)

    def action_problems(self) -> None:
        from tui.screens.problems import problems_overlay

        self.app.push_screen(problems_overlay(self.desk.problems))

    def action_help(self) -> None:
        from tui.screens.help import help_overlay

        numbers = [(number, view.title) for number, view in NUMBERED]
        self.app.push_screen(help_overlay(self.view, numbers, self.wheres()))

    def action_palette(self) -> None:
        self.app.action_command_palette()

    def action_open(self) -> None:
        """A click on the footer: what Enter does in the pane at hand."""
        (self.pane if self.pane.has_focus else self.table).action_open()

    async def action_quit(self) -> None:
        self.app.exit()

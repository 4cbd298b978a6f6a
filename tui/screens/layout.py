"""Lay out the main screen: bars, two panes, and the prompt."""

from __future__ import annotations

from functools import partial

from textual.app import ComposeResult
from textual.containers import Container
from textual.message import Message
from textual.screen import Screen
from textual.timer import Timer

from tui.views import registry
from tui.views.registry import complete_command
from tui.widgets.bars import Banner, CrumbsBar, FastBar, FooterBar, HeaderBar, TabsBar, TimeBar
from tui.widgets.detail import DetailPane
from tui.widgets.form import Prompt
from tui.widgets.lines import LinesPane
from tui.widgets.table import MainPane

NUMBERED = tuple((view.number, view.list) for view in registry.VIEWS if view.number is not None)
TABS = tuple((number, view.title, min(view.name, view.aliases[0], key=len)) for number, view in NUMBERED)

_LEAST_WIDTH, _LEAST_HEIGHT = 60, 16  # of a terminal that has room for both panes
_WIDE = 110  # from here on the panes lie beside one another
_ROOMY_HEIGHT = 30  # from here on there is a line for breadcrumbs, even if they repeat the tabs
_BARS = 4
_NOTICE_SECONDS = 4.0


class Layout(Screen[None]):
    """Place the widgets, and give one of the two panes the focus and the room."""

    AUTO_FOCUS = "MainPane"
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (_WIDE, "-wide")]
    VERTICAL_BREAKPOINTS = [(0, "-small"), (_LEAST_HEIGHT, "-short"), (_ROOMY_HEIGHT, "-tall")]

    def __init__(self) -> None:
        super().__init__()
        self.table, self.pane, self.prompt = MainPane(), DetailPane(), Prompt(complete_command)
        self.header, self.tabs, self.crumbs, self.footer = HeaderBar(), TabsBar(), CrumbsBar(), FooterBar()
        self.time_bar, self.fast_bar, self.banner = TimeBar(), FastBar(), Banner()
        self._notice_end: Timer | None = None
        self._wanted = 0
        self._main = Container(self.table, id="main")
        self._side = Container(self.pane, id="side")
        self._zoomed: LinesPane | None = None

    def compose(self) -> ComposeResult:
        """Yield the bars above and below, and the panes between them."""
        yield self.header
        yield self.tabs
        yield self.crumbs
        yield self.banner
        yield self.fast_bar
        yield Container(self._main, self._side, id="body")
        yield self.time_bar
        yield self.prompt
        yield self.footer

    def notify(
        self, message: str, *, title: str = "", severity: str = "information",
        timeout: float | None = None, markup: bool = True,
    ) -> None:  # fmt: skip
        """Show a notice in place of the footer, replacing the notice before."""
        if self._notice_end is not None:
            self._notice_end.stop()
        tone = {"warning": "warn", "error": "bad"}.get(severity, "accent")
        self.footer.show_notice(f"{title}: {message}" if title else message, tone)
        self._notice_end = self.set_timer(timeout or _NOTICE_SECONDS, partial(self.footer.show_notice, ""))

    @property
    def focused_pane(self) -> LinesPane:
        """The pane that keys go to."""
        return self.pane if self.pane.has_focus else self.table

    def on_resize(self) -> None:
        """Make the best of the new size."""
        self.allot()
        self.call_after_refresh(self.show_bars)

    def reserve_lines(self, lines: int) -> None:
        """Set the number of lines that the list needs, 0 for as many as there are."""
        if lines != self._wanted:
            self._wanted = lines
            self.allot()

    def show_bars(self) -> None:
        """Update the bars; implemented by the subclass."""

    def post_from_thread(self, message: Message) -> None:
        """Post a message from any thread, unless the screen is gone."""
        if self.is_attached:
            self.post_message(message)

    def allot(self) -> None:
        """Lay out the panes: both, or only the one that is zoomed or has room.

        If they are stacked, the list takes no more lines than it needs.
        """
        cramped = self.size.width < _LEAST_WIDTH or self.size.height < _LEAST_HEIGHT
        alone = self._zoomed or (self.table if cramped else None)
        self._main.display = alone is not self.pane
        self._side.display = alone is not self.table
        self.set_class(alone is self.pane, "-side-alone")
        stacked = alone is None and self.size.width < _WIDE
        self.banner.fit(self.size.width, 1 if self.size.height < _LEAST_HEIGHT else 2)
        bars = _BARS + self.time_bar.display + self.fast_bar.display + self.banner.lines
        most = (self.size.height - bars) * 3 // 5
        self._main.styles.height = min(self._wanted or most, most) if stacked else None
        self._side.styles.height = "1fr" if stacked else None
        if alone and not alone.has_focus:
            self.set_focus(alone)

    def focus_table(self) -> None:
        """Give the list the focus, and its place back where the other pane had taken it."""
        if self._zoomed is self.pane:
            self._zoomed = None
        self.allot()
        self.set_focus(self.table)

    def action_next_pane(self) -> None:
        """Go to the other pane; if only one is visible, it replaces that one."""
        target: LinesPane = self.table if self.pane.has_focus else self.pane
        if self._zoomed or not self._side.display:
            self._zoomed = target
        self.allot()
        self.set_focus(target)

    def action_zoom(self) -> None:
        """Show only the focused pane, or all again."""
        self._zoomed = None if self._zoomed else self.focused_pane
        self.allot()

    def action_open(self) -> None:
        """Do what Enter does in the focused pane: a click on the footer."""
        self.focused_pane.action_open()

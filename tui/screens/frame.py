"""The dashboard's frame: bars, two panes and the prompt, and the places that they have."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.containers import Container
from textual.screen import Screen

from tui import commands
from tui.present import views
from tui.widgets.bars import CrumbsBar, FooterBar, HeaderBar, TabsBar
from tui.widgets.detail import DetailPane
from tui.widgets.lines import LinesPane
from tui.widgets.overview import MainPane
from tui.widgets.prompt import Prompt

NUMBERED = tuple((view.number, view.list) for view in views.VIEWS if view.number is not None)
TABS = tuple((number, view.title, min(view.name, view.aliases[0], key=len)) for number, view in NUMBERED)

_LEAST_WIDTH, _LEAST_HEIGHT = 60, 16  # of a terminal that has room for both panes


class Frame(Screen[None]):
    """The widgets, which pane has the focus, and which one has the room."""

    AUTO_FOCUS = "MainPane"
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (110, "-wide")]
    VERTICAL_BREAKPOINTS = [(0, "-small"), (_LEAST_HEIGHT, "-tall")]

    def __init__(self) -> None:
        super().__init__()
        self.table, self.pane, self.prompt = MainPane(), DetailPane(), Prompt(commands.completed)
        self.header, self.tabs, self.crumbs, self.footer = HeaderBar(), TabsBar(), CrumbsBar(), FooterBar()
        self._main = Container(self.table, id="main")
        self._side = Container(self.pane, id="side")
        self._zoomed: LinesPane | None = None

    def compose(self) -> ComposeResult:
        """Bars above and below, the panes between them."""
        yield self.header
        yield self.tabs
        yield self.crumbs
        yield Container(self._main, self._side, id="body")
        yield self.prompt
        yield self.footer

    @property
    def focused_pane(self) -> LinesPane:
        """The pane that keys go to."""
        return self.pane if self.pane.has_focus else self.table

    def on_resize(self) -> None:
        """Make the best of the new size."""
        self.allot()

    def allot(self) -> None:
        """Give the panes their places: both, or only the one that is zoomed or has room."""
        cramped = self.size.width < _LEAST_WIDTH or self.size.height < _LEAST_HEIGHT
        alone = self._zoomed or (self.table if cramped else None)
        self._main.display = alone is not self.pane
        self._side.display = alone is not self.table
        self.set_class(alone is self.pane, "-side-alone")
        if alone and not alone.has_focus:
            self.set_focus(alone)

    def to_the_table(self) -> None:
        """Give the list the focus, and its place back where the other pane had taken it."""
        if self._zoomed is self.pane:
            self._zoomed = None
        self.allot()
        self.set_focus(self.table)

    def action_next_pane(self) -> None:
        """To the other pane; where only one is in sight, it takes that one's place."""
        target: LinesPane = self.table if self.pane.has_focus else self.pane
        if self._zoomed or not self._side.display:
            self._zoomed = target
        self.allot()
        self.set_focus(target)

    def action_zoom(self) -> None:
        """The pane at hand alone, and back."""
        self._zoomed = None if self._zoomed else self.focused_pane
        self.allot()

    def action_open(self) -> None:
        """A click on the footer: what Enter does in the pane at hand."""
        self.focused_pane.action_open()

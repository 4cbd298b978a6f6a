"""The dashboard: what each key does."""

from __future__ import annotations

from dataclasses import replace

from textual import events
from textual.message import Message

from core.text import safe
from core.topology.related import thing_named
from tui import keys, themes
from tui.present import views
from tui.present.findings import nothing_to_see
from tui.present.scene import Lens
from tui.present.views import understood
from tui.screens.accelerating import Accelerating
from tui.screens.frame import NUMBERED
from tui.screens.keeping import Replaying
from tui.widgets.prompt import Kind
from tui.widgets.table import TableView


class Dashboard(Accelerating, Replaying):
    """The screen that lies under all others."""

    BINDINGS = [
        *keys.bindings("any", "change", "flows", "replay", "demo", "list", "order", "pane"),
        *keys.view_bindings(9),
    ]

    class DemoAsked(Message):
        """The person wants to see the demo."""

    # ---- getting about

    def action_view(self, number: int) -> None:
        self.go_to(next((view.name for each, view in NUMBERED if each == number), self.view.name))

    def action_previous(self) -> None:
        if self.nav.previous:
            self.go_to(self.nav.previous)

    def action_back(self) -> None:
        """From the detail to the list; there, show what was shown at first; where that is shown, go back."""
        here = self.nav.here
        if self.pane.has_focus:
            self.to_the_table()
        elif here.state.filter not in ("", here.filter):
            self._set_filter(here.filter)
        elif self.nav.back():
            self.arrive()
            self.to_the_table()

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
            self.ask()

    async def _run_command(self, text: str) -> None:
        found = understood(text)
        thing = thing_named(self.desk.scene.topology, text.strip()) if found is None else None
        if thing is not None:
            self._follow(thing)
        elif found is None:
            names = " ".join(f":{view.name}" for view in views.VIEWS)
            told = f"No view, container, network, link or namespace is called {safe(text)!r}. Try {names}"
            self.notify(told, severity="warning", markup=False)
        elif isinstance(found, str):
            await self.run_action(found)
        else:
            self.go_to(found[0].name, found[1])

    # ---- order and folds

    def on_table_view_sort_asked(self, message: TableView.SortAsked) -> None:
        self._sort_by(message.column)

    def _sort_by(self, column: str) -> None:
        """By that column; backwards, where it is in its order already."""
        state = self.nav.here.state
        state.reverse = state.sort == column and not state.reverse
        state.sort = column
        self.ask()

    def action_sort(self) -> None:
        """By the next column in sight."""
        names, sort = self._sortable(), self.nav.here.state.sort
        if names:
            self._sort_by(names[(names.index(sort) + 1) % len(names) if sort in names else 0])

    def action_reverse(self) -> None:
        """By the same column, the other way round."""
        names = self._sortable()
        if names:
            self._sort_by(self.nav.here.state.sort or names[0])

    def _sortable(self) -> list[str]:
        return self.table.columns_in_sight() if self.table.header_height else []

    def on_table_view_fold_asked(self, message: TableView.FoldAsked) -> None:
        state = self.nav.here.state
        state.closed = state.closed | {message.ref} if message.closed else state.closed - {message.ref}
        self.ask()

    # ---- how flows are looked at

    def _look(self, lens: Lens) -> None:
        self.nav.here.state.lens = lens
        self.ask()

    def action_group(self) -> None:
        """Add up by the next thing; what was selected is not among the rows of another look."""
        lens = self.nav.here.state.lens.grouped_next()
        self.nav.here.state.ref = None
        self._look(lens)
        self.notify(lens.told[0].upper() + lens.told[1:], markup=False, timeout=2)

    def action_hops(self) -> None:
        lens = self.nav.here.state.lens
        self._look(replace(lens, per_hop=not lens.per_hop))

    def action_pin(self) -> None:
        if self.ref is not None and self.ref.kind == "talk":
            self._look(self.nav.here.state.lens.pinned(self.ref))

    # ---- the demo

    def wheres(self) -> frozenset[keys.Where]:
        return super().wheres() | ({"demo"} if self._offers_demo else frozenset())

    @property
    def _offers_demo(self) -> bool:
        """Whether this host has nothing better to show."""
        return self.desk.source.live and nothing_to_see(self.desk.scene.snapshot)

    def action_demo(self) -> None:
        """Leave for the demo, which has a terminal's worth of its own."""
        if self._offers_demo:
            self.post_message(self.DemoAsked())

    # ---- the rest

    def action_window(self) -> None:
        """Curves of the next length of time."""
        self.pane.next_window()

    def action_copy(self) -> None:
        """The line of the detail; of a list what its detail says it is called, or else its name or line."""
        known = self.pane.detail if self.pane.about == self.ref else None
        text = (known.copy if known else "") or self.table.selected_text()
        if self.pane.has_focus:
            text = self.pane.selected_text()
        if text:
            self.app.copy_to_clipboard(text)
            self.notify(text, title="Copied", markup=False, timeout=2)

    def action_pause(self) -> None:
        """Take no further picture; then the newest. A file has one only."""
        if self.player:
            self.action_play()
            return
        if not self.desk.source.live:
            self.notify("A file shows one moment: there is nothing to pause.", markup=False)
            return
        self.desk.paused = not self.desk.paused
        self.ask()
        self.show_bars()

    def action_refresh(self) -> None:
        """Read everything again; a file has nothing new to tell."""
        if not self.desk.source.live:
            self.notify("What a file shows does not change: there is nothing to read again.", markup=False)
            return
        self.desk.source.refresh()
        self.notify("Reading everything again", timeout=1.5, markup=False)

    def action_theme(self) -> None:
        self.app.theme = themes.after(self.app.theme)

    def action_problems(self) -> None:
        from tui.screens.problems import ProblemsOverlay

        desk = self.desk
        self.app.push_screen(ProblemsOverlay(desk.findings, desk.problems, desk.reading, self._follow))

    def action_help(self) -> None:
        from tui.screens.dialogs import help_overlay

        listed = [
            (str(view.number or ""), f"{view.list.title}  :{view.list.name} :{view.list.aliases[0]}")
            for view in views.VIEWS
        ]
        listed.append(("", ":web1  the container, network, link or namespace of that name"))
        self.app.push_screen(help_overlay(self.view, listed, self.wheres() | {"change"}))

    def action_palette(self) -> None:
        self.app.action_command_palette()

    async def action_quit(self) -> None:
        self.app.exit()

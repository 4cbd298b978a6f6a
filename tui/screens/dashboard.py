"""Define the main screen: it owns the controllers, and delegates to them."""

from __future__ import annotations

from dataclasses import replace

from textual import events
from textual.message import Message

from core.model import Ref
from core.text import safe
from core.topology.related import find_by_name, shell_target
from tui import keys, themes
from tui.presenter import DetailReady, Presenter, QueryFailed, RowsReady, TargetReady, UpdateArrived
from tui.screens.change import ChangeController
from tui.screens.compare import CompareController
from tui.screens.fast_path import FastPathChanged, FastPathController
from tui.screens.layout import NUMBERED, Layout
from tui.screens.navigation import NavigationController
from tui.screens.record import RecordController, RecordingEnded, ReplayController
from tui.screens.why import WhyController
from tui.services import NO_SERVICES, Services
from tui.sources import ReplaySource, Source
from tui.view_model import Navigation
from tui.views import registry
from tui.views.findings import no_container_visible
from tui.views.registry import parse_command
from tui.views.rows import ListView
from tui.widgets.bars import HeaderState
from tui.widgets.detail import DetailPane
from tui.widgets.form import Kind
from tui.widgets.lines import LinesPane
from tui.widgets.table import TableView


class Dashboard(Layout):
    """The screen below all others."""

    BINDINGS = [
        *keys.bindings(
            "any", "change", "flows", "group", "drops", "replay", "demo", "hosts", "list", "order", "pane"
        ),
        *keys.view_bindings(9),
    ]

    class DemoAsked(Message):
        """The user wants to see the demo."""

    class NextHostAsked(Message):
        """The user wants to see the next host of the demo lab."""

    class ShellAsked(Message):
        """The user wants a shell in a container or namespace, given by its id."""

        def __init__(self, target: str) -> None:
            super().__init__()
            self.target = target

    def __init__(self, source: Source, services: Services = NO_SERVICES, write: bool = False) -> None:
        super().__init__()
        self._services, self._write = services, write
        self.presenter = Presenter(source, self.post_message)
        self.navigation = NavigationController(self, self.presenter, self._on_view_change)
        self.changes = ChangeController(self, self.presenter, self.navigation, services.change)
        self.why = WhyController(self, self.presenter, self.navigation, self.changes)
        self.recording = RecordController(self, self.presenter, self.changes)
        self.replay = ReplayController(self, self.presenter)
        self.comparison = CompareController(self, self.presenter, lambda: self.go_to("diff"))
        self.fast_path = FastPathController(
            self, self.presenter, self.navigation, self.changes, services.fast_path
        )

    def on_mount(self) -> None:
        """Paint the empty screen; data is requested only after the first paint."""
        self.fast_path.start()
        self.replay.start()
        if self._write:
            self.call_after_refresh(self.action_write)
        self.navigation.start()

    def on_unmount(self) -> None:
        """End the threads and everything that was started here."""
        self.fast_path.close()
        self.recording.close()
        self.presenter.stop()

    # ---- the state that tests and the app read

    @property
    def nav(self) -> Navigation:
        """The navigation history."""
        return self.navigation.state

    @property
    def view(self) -> ListView:
        """The current view."""
        return self.navigation.view

    @property
    def ref(self) -> Ref | None:
        """The selected thing."""
        return self.navigation.ref

    @property
    def up_to_date(self) -> bool:
        """Whether everything that was requested is shown."""
        return self.navigation.up_to_date

    @property
    def player(self) -> ReplaySource | None:
        """The recording that is open, None where there is none."""
        return self.replay.player

    def go_to(self, view: str, filter_text: str = "") -> None:
        """Jump to a view by its name."""
        self.navigation.go_to(view, filter_text)

    async def catch_up(self) -> None:
        """Wait a moment for the result of earlier keys."""
        await self.navigation.catch_up()

    def key_scopes(self) -> frozenset[keys.KeyScope]:
        """Return where keys are pressed now, in the terms of the key registry."""
        found = self.navigation.key_scopes()
        if self.changes.writing:
            found.add("change")
        if self.player:
            found.add("replay")
        if self._offers_demo:
            found.add("demo")
        if self._services.lab_hosts:
            found.add("hosts")
        return frozenset(found)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Leave the keys of the time line to other actions where there is none."""
        if action == "seek" or keys.has_action(action, "replay"):
            return self.player is not None
        return super().check_action(action, parameters)

    # ---- bars

    def show_bars(self) -> None:
        """Update all bars."""
        presenter = self.presenter
        state = HeaderState(
            presenter.hostname, presenter.source.title, presenter.mode, len(presenter.findings),
            len(presenter.problems), self.changes.writing, self.recording.status, presenter.progress,
        )  # fmt: skip
        self.header.show(state)
        self.navigation.show_bars()
        self.footer.show(keys.footer(self.key_scopes()))
        self.replay.show_time()
        self.fast_path.place_bar()

    def _on_view_change(self) -> None:
        self.fast_path.view_changed()

    # ---- messages

    def on_update_arrived(self, message: UpdateArrived) -> None:
        self.navigation.schedule_update()

    def on_rows_ready(self, message: RowsReady) -> None:
        self.changes.select_made(message)
        self.navigation.show_rows(message)

    def on_detail_ready(self, message: DetailReady) -> None:
        self.navigation.show_detail(message)

    def on_target_ready(self, message: TargetReady) -> None:
        self.navigation.show_target(message)

    def on_query_failed(self, message: QueryFailed) -> None:
        self.navigation.show_failure(message)

    def on_fast_path_changed(self, message: FastPathChanged) -> None:
        self.fast_path.show(message.fast)

    def on_recording_ended(self, message: RecordingEnded) -> None:
        self.recording.report_end()

    def on_lines_pane_barrier(self, message: LinesPane.Barrier) -> None:
        message.passed.set()

    def on_table_view_selected(self, message: TableView.Selected) -> None:
        self.navigation.select(message.ref)

    def on_table_view_opened(self, message: TableView.Opened) -> None:
        self.navigation.follow()

    def on_detail_pane_opened(self, message: DetailPane.Opened) -> None:
        self.navigation.follow(message.ref)

    def on_table_view_sort_asked(self, message: TableView.SortAsked) -> None:
        self.navigation.sort_by(message.column)

    def on_table_view_fold_asked(self, message: TableView.FoldAsked) -> None:
        self.navigation.fold(message.ref, message.closed)

    # ---- filter and commands

    def _open_prompt(self, kind: Kind, text: str) -> None:
        self.prompt.open(kind, text)

    async def feed_prompt(self, event: events.Key) -> bool:
        """Give a key to the prompt while it is open; False where it is not."""
        if not self.prompt.display:
            return False
        kind, outcome = self.prompt.kind, self.prompt.feed_key(event)
        if outcome in ("accepted", "given up"):
            self.prompt.close()
        if kind == "/" and outcome:
            self.navigation.set_filter("" if outcome == "given up" else self.prompt.text.strip())
        elif outcome == "accepted" and kind == "w":
            self.prompt.display = not await self.why.answer(self.prompt.text)
        elif outcome == "accepted" and self.prompt.text.strip():
            await self._run_command(self.prompt.text)
        return True

    def on_paste(self, event: events.Paste) -> None:
        """Insert pasted text into the prompt."""
        if self.prompt.display:
            self.prompt.insert(event.text)
            self.prompt.repaint()
            if self.prompt.kind == "/":
                self.navigation.set_filter(self.prompt.text.strip())

    async def _run_command(self, text: str) -> None:
        found = parse_command(text)
        thing = find_by_name(self.presenter.context.topology, text.strip()) if found is None else None
        if thing is not None:
            self.navigation.follow(thing)
        elif found is None:
            names = " ".join(f":{view.name}" for view in registry.VIEWS)
            words = (
                f'can\'t go to "{safe(text)}": no view, container, network, link or namespace has that name. '
                f"Try: {names}"
            )
            self.notify(words, severity="warning", markup=False)
        elif isinstance(found, str):
            await self.run_action(found)
        elif found[0].name == "diff":
            self.comparison.open(found[1])
        else:
            self.go_to(found[0].name, found[1])

    # ---- actions: views and their rows

    def action_view(self, number: int) -> None:
        self.go_to(next((view.name for each, view in NUMBERED if each == number), self.view.name))

    def action_previous(self) -> None:
        if self.nav.previous:
            self.go_to(self.nav.previous)

    def action_back(self) -> None:
        self.navigation.go_back()

    def action_why(self) -> None:
        self.why.open_prompt()

    def action_fix(self) -> None:
        self.why.fix_selected()

    def action_mute(self) -> None:
        self.why.mute_selected()

    def action_filter(self) -> None:
        self._open_prompt("/", self.nav.current.state.filter)

    def action_command(self) -> None:
        self._open_prompt(":", "")

    def action_sort(self) -> None:
        self.navigation.sort_by_next()

    def action_reverse(self) -> None:
        self.navigation.reverse()

    def action_group(self) -> None:
        if self.view.groupings:
            options = self.navigation.flow_options.grouped_next(self.view.groupings)
            self.navigation.set_flow_options(options, keep_selection=False)
            title = options.title if options.by or self.view.name == "flows" else "by reason"
            self.notify(title[0].upper() + title[1:], markup=False, timeout=2)

    def action_inspect(self) -> None:
        self.navigation.inspect_drops()

    def action_hops(self) -> None:
        options = self.navigation.flow_options
        self.navigation.set_flow_options(replace(options, per_hop=not options.per_hop))

    def action_pin(self) -> None:
        if self.ref is not None and self.ref.kind == "flow":
            self.navigation.set_flow_options(self.navigation.flow_options.pinned(self.ref))

    def action_window(self) -> None:
        """Show the curves of the next length of time."""
        self.pane.next_window()

    def action_copy(self) -> None:
        """Copy the selected line of the details, or the name of the selected thing."""
        known = self.pane.detail if self.pane.about == self.ref else None
        text = (known.copy if known else "") or self.table.selected_text()
        if self.pane.has_focus:
            text = self.pane.selected_text()
        if text:
            self.app.copy_to_clipboard(text)
            self.notify(text, title="Copied", markup=False, timeout=2)

    # ---- actions: changes

    def action_write(self) -> None:
        self.changes.toggle_writing()

    def action_make_network(self) -> None:
        self.changes.make_network()

    def action_attach(self) -> None:
        self.changes.attach()

    def action_detach(self) -> None:
        self.changes.detach()

    def action_move(self) -> None:
        self.changes.move()

    def action_join(self) -> None:
        self.changes.join()

    def action_edit(self) -> None:
        self.changes.edit()

    def action_tune(self) -> None:
        self.changes.tune()

    def action_publish(self) -> None:
        self.changes.publish()

    def action_make_container(self) -> None:
        self.changes.make_container()

    def action_delete(self) -> None:
        self.changes.delete()

    def action_count(self) -> None:
        self.changes.count()

    def action_undo(self) -> None:
        self.changes.undo()

    def action_log(self) -> None:
        self.changes.show_log()

    def action_accelerate(self) -> None:
        self.fast_path.accelerate()

    def action_fast_path(self) -> None:
        """Open the fast path's view: a click on its bar."""
        self.go_to("fastpath")

    # ---- actions: recordings

    def action_mark(self) -> None:
        self.comparison.mark()

    def action_record(self) -> None:
        self.recording.toggle()

    def action_bundle(self) -> None:
        self.recording.bundle()

    def action_capture(self) -> None:
        """Show the packets of the selected item in a screen of their own."""
        from tui.screens.capture import open_capture

        if refusal := self.navigation.refusal("capture"):
            self.notify(refusal, severity="warning", markup=False)
            return
        open_capture(self, self.presenter, self.ref, self._services.capture)

    def action_play(self) -> None:
        self.replay.play()

    def action_later(self) -> None:
        self.replay.step(1)

    def action_earlier(self) -> None:
        self.replay.step(-1)

    def action_next_change(self) -> None:
        self.replay.seek_change(1)

    def action_last_change(self) -> None:
        self.replay.seek_change(-1)

    def action_faster(self) -> None:
        self.replay.change_speed(1)

    def action_slower(self) -> None:
        self.replay.change_speed(-1)

    def action_to_start(self) -> None:
        self.replay.seek(0.0)

    def action_to_end(self) -> None:
        self.replay.seek(1.0)

    def action_seek(self, part: float) -> None:
        """Go to that part of the time line, 0 to 1."""
        self.replay.seek(part)

    # ---- actions: everywhere

    @property
    def _offers_demo(self) -> bool:
        """Whether this host has nothing to show."""
        return self.presenter.source.live and no_container_visible(self.presenter.context.snapshot)

    def action_demo(self) -> None:
        if self._offers_demo:
            self.post_message(self.DemoAsked())

    def action_next_host(self) -> None:
        self.post_message(self.NextHostAsked())

    def action_shell(self) -> None:
        """Open a shell, trace the selected flow, or show the flows of an OVS bridge."""
        from tui.screens.trace import open_ovs_flows, open_trace, ovs_bridge_of

        topology = self.presenter.context.topology
        if self.ref is not None and self.ref.kind in ("flow", "conntrack"):
            open_trace(self, self.presenter, self.ref)
            return
        if (bridge := ovs_bridge_of(topology, self.ref)) is not None:
            open_ovs_flows(self, self.presenter, bridge)
            return
        target = shell_target(topology, self.ref)
        if not self.presenter.source.live:
            self.notify("can't open a shell: this isn't a live host", markup=False)
        elif refusal := self.navigation.refusal("open a shell"):
            self.notify(refusal, markup=False)
        elif not target:
            self.notify("can't open a shell here. Try: select a container or namespace", markup=False)
        else:
            self.post_message(self.ShellAsked(target))

    def action_pause(self) -> None:
        """Pause the picture, or the recording; resume with the newest update."""
        if self.player:
            self.replay.play()
            return
        if not self.presenter.source.live:
            self.notify("can't pause a file: it holds one moment", markup=False)
            return
        self.presenter.paused = not self.presenter.paused
        self.navigation.request_rows()
        self.show_bars()

    def action_refresh(self) -> None:
        """Read everything again."""
        if not self.presenter.source.live:
            self.notify("can't read a file again: it doesn't change", markup=False)
            return
        self.presenter.source.refresh()
        self.notify("Reading everything again", timeout=1.5, markup=False)

    def action_theme(self) -> None:
        self.app.theme = themes.after(self.app.theme)

    def action_problems(self) -> None:
        from tui.screens.dialogs import ProblemsOverlay

        presenter = self.presenter
        overlay = ProblemsOverlay(
            presenter.findings, presenter.problems, presenter.progress, self.navigation.follow,
            self.why.repair_of,
        )  # fmt: skip
        self.app.push_screen(overlay)

    def action_help(self) -> None:
        from tui.screens.dialogs import help_overlay

        listed = []
        for number, view in ((view.number, view.list) for view in registry.VIEWS):
            names = dict.fromkeys((view.name, view.aliases[0]))
            listed.append((str(number or ""), f"{view.title}  {' '.join(f':{name}' for name in names)}"))
        listed.append(("", ":web1  the container, network, link or namespace of that name"))
        self.app.push_screen(help_overlay(self.view, listed, self.key_scopes() | {"change"}))

    def action_palette(self) -> None:
        self.app.action_command_palette()

    async def action_quit(self) -> None:
        self.app.exit()

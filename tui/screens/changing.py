"""The keys that change networks: allowed or not, and what each of them opens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from core.model import Ref, flow_ref, link_ref
from core.text import safe
from core.topology import Topology
from core.topology.related import things_named
from tui import keys
from tui.command import CommandError
from tui.desk import RowsReady
from tui.screens.journey import Journey
from tui.source import Source

if TYPE_CHECKING:
    from tui.changer import Changer, Ended, Waiting
    from tui.screens.forms.change import Form


_PAST = {
    "make": "made", "set": "set", "keep": "kept", "forget": "forgot", "withdraw": "withdrew", "take": "took",
}  # fmt: skip


class Changing(Journey):
    """Read-only until a person says otherwise; the forms are loaded when they are opened."""

    def __init__(
        self, source: Source, make_changer: Callable[[], Changer] | None = None, write: bool = False
    ) -> None:
        super().__init__(source)
        self._make_changer, self._write = make_changer, write
        self._changer: Changer | None = None
        self._made = ""

    def on_mount(self) -> None:
        """Where changes are allowed from the start, after the first paint."""
        if self._write:
            self.call_after_refresh(self.action_write)

    @property
    def changer(self) -> Changer | None:
        """Who makes changes, None where nothing can be changed."""
        if self._changer is None and self._make_changer is not None and self.desk.source.live:
            self._changer = self._make_changer()
        return self._changer

    # ---- allowed or not

    def action_write(self) -> None:
        """Allow changes, or forbid them again."""
        changer = self.changer
        lacking = changer.lacking() if changer else self._unchangeable or "Nothing can be changed here."
        if not self.writing and lacking:
            self.notify(lacking, title="Still read-only", severity="warning", markup=False)
            return
        self.writing = not self.writing
        self.show_bars()
        if self.writing and changer:
            self._offer_what_is_open(changer)

    @property
    def _unchangeable(self) -> str:
        """Why nothing here can ever be changed, "" where it can."""
        if self.desk.source.live:
            return "" if self._make_changer else "The dashboard was opened with --read-only."
        kind = "recording" if self._mode() == "replay" else "picture out of a file"
        return f"This is a {kind}: it cannot be changed."

    def _offer_what_is_open(self, changer: Changer) -> None:
        """Changes that were cut off want to be taken back; guarded ones want a yes."""
        from tui.screens.forms.history import EarlierScreen

        try:
            waiting = changer.waiting()
            held = {one.entry_id for one in waiting}
            is_open = any(one.is_open and one.entry_id not in held for one in changer.earlier())
        except CommandError as error:
            self.notify(safe(str(error)), severity="error", markup=False)
            return
        if is_open:
            self.app.push_screen(EarlierScreen(changer, only_open=True), self._changed)
        for one in waiting:
            self._ask_to_keep(one)

    def _writer(self) -> Changer | None:
        """Who makes changes, if they are allowed; else the person is told how to allow them."""
        if not self.writing:
            self.notify(self._unchangeable or keys.READ_ONLY, severity="warning", markup=False, timeout=3)
            return None
        return self.changer

    # ---- what the keys open

    def action_make_network(self) -> None:
        from tui.screens.forms.network import network_form

        self._open(network_form)

    def action_attach(self) -> None:
        from tui.screens.forms.attach import attach_form

        self._open(lambda: attach_form(self.ref))

    def action_detach(self) -> None:
        from tui.screens.forms.attach import detach_form

        self._open(lambda: detach_form(self.ref))

    def action_move(self) -> None:
        from tui.screens.forms.attach import move_form

        self._open(lambda: move_form(self.ref))

    def action_join(self) -> None:
        from tui.screens.forms.network import join_form

        self._open(lambda: join_form(self.ref))

    def action_edit(self) -> None:
        from tui.screens.forms.settings import settings_form

        self._open(lambda: settings_form(self.ref))

    def action_tune(self) -> None:
        from tui.screens.forms.settings import tune_form

        self._open(lambda: tune_form(self.ref))

    def action_publish(self) -> None:
        from tui.screens.forms.publish import publish_form

        self._open(lambda: publish_form(self.ref))

    def action_make_container(self) -> None:
        from tui.screens.forms.network import container_form

        self._open(lambda: container_form(self.ref))

    def action_delete(self) -> None:
        """Ask whether what is selected shall go; a connection, whether the kernel shall forget it."""
        from tui.screens.forms.publish import delete_form, forget_form

        ref = self.ref
        if ref is not None and ref.kind == "talk":
            ref = flow_ref(int(ref.key[0]), int(ref.key[1]))
        request = self.desk.forgetting(ref) if ref and ref.kind == "flow" else None
        if ref is None:
            self._open(lambda: None, "Nothing is selected.")
        elif ref.kind == "event":
            self._open(
                lambda: None,
                "An event cannot be deleted: it has happened. Enter leads to what it is about.",
            )
        elif ref.kind == "flow":
            self._open(lambda: forget_form(request) if request else None, "That connection is gone already.")
        else:
            self._open(lambda: delete_form(ref))

    def _open(self, make: Callable[[], Form | None], otherwise: str = "") -> None:
        """Open a form, if changes are allowed and there is one; else say what is to be said."""
        from tui.screens.forms.change import ChangeScreen

        changer = self._writer()
        form = make() if changer else None
        if changer and form:
            self.app.push_screen(ChangeScreen(form, changer), self._changed)
        elif changer:
            self.notify(otherwise, markup=False, timeout=2)

    def action_count(self) -> None:
        from tui.screens.forms.publish import counting_form

        told = "Every namespace with connections counts already."
        self._open(lambda: counting_form(self.desk.uncounted), told)

    def action_undo(self) -> None:
        from tui.screens.forms.history import EarlierScreen

        if changer := self._writer():
            self.app.push_screen(EarlierScreen(changer), self._changed)

    def action_log(self) -> None:
        from tui.screens.forms.history import log_overlay

        self.app.push_screen(log_overlay(self._changer.log if self._changer else ()))

    # ---- afterwards

    def _changed(self, ended: Ended | None) -> None:
        """A change was made: say so, and have everything read again."""
        from core.operations import is_final
        from core.plan import Plan
        from tui.changer import Waiting

        if ended is None:
            return
        self._made = ended.made
        self.desk.source.refresh()
        title = ended.plan.title if isinstance(ended.plan, Plan) else ""
        if ended.seconds:
            self._ask_to_keep(Waiting(ended.entry_id, title, ended.seconds))
        else:
            final = isinstance(ended.plan, Plan) and is_final(ended.plan.steps)
            hint = "  (u takes it back)" if ended.end == "done" and not final else ""
            self.notify(f"{safe(_done(title))}{hint}", markup=False, timeout=4)

    def on_rows_ready(self, message: RowsReady) -> None:
        """What was just made is selected once a list of it arrives; called before the rows are shown."""
        stop, rows = message.origin, message.shown.rows
        if not self._made or stop is not self.nav.here:
            return
        refs = _made_as(self.desk.scene.topology, self._made)
        found = next((ref for ref in refs if rows.index(ref) is not None), None)
        if found is not None:
            self._made, self._drawn, stop.state.ref = "", None, found
            stop.state.top = self.table.top

    def _ask_to_keep(self, waiting: Waiting) -> None:
        from tui.screens.forms.history import KeepScreen

        if self.changer:
            self.app.push_screen(KeepScreen(waiting, self.changer), self._told)

    def _told(self, words: str | None) -> None:
        """What became of a guarded change."""
        if words:
            self.desk.source.refresh()
            self.notify(safe(words), markup=False)


def _done(title: str) -> str:
    """What a plan's title says, as done: "Made the network shop" of "make the network shop"."""
    verb, _, rest = title.partition(" ")
    if "; " in title or not verb.isalpha():
        return f"Done: {title}"
    past = _PAST.get(verb) or f"{verb}{'d' if verb.endswith('e') else 'ed'}"
    return f"{past.capitalize()} {rest}"


def _made_as(topology: Topology, name: str) -> Iterator[Ref]:
    """What stands in lists for a network or container of that name: the thing itself, or its bridge."""
    yield from things_named(topology, name)
    for network in topology.networks:
        bridge = topology.bridge_link(network) if network.name == name else None
        if bridge:
            yield link_ref(bridge.key)

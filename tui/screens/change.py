"""Change networks: allow or forbid changes, open the forms, report the results."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from core.model import Ref, conntrack_ref, link_ref
from core.text import safe
from core.topology import Topology
from core.topology.related import find_all_by_name
from tui import keys
from tui.command import CommandError
from tui.presenter import Presenter, RowsReady
from tui.screens.layout import Layout
from tui.screens.navigation import NavigationController

if TYPE_CHECKING:
    from core.model.fix import Fix
    from tui.screens.forms.change import Form
    from tui.services import ChangeResult, ChangeService, UnconfirmedChange


_PAST = {"set": "set", "forget": "forgot", "make": "made", "let": "let"}


class ChangeController:
    """Keep the dashboard read-only until the user allows changes; open forms.

    Forms are imported when they are opened.
    """

    def __init__(
        self,
        screen: Layout,
        presenter: Presenter,
        navigation: NavigationController,
        make_service: Callable[[], ChangeService] | None,
    ) -> None:
        self._screen, self._presenter, self._navigation = screen, presenter, navigation
        self._make_service = make_service
        self._service: ChangeService | None = None
        self.writing = False
        self._made = ""  # the name of what was made and is to be selected

    @property
    def service(self) -> ChangeService | None:
        """Plan and execute changes; None where nothing can be changed."""
        if self._service is None and self._make_service is not None and self._presenter.source.live:
            self._service = self._make_service()
        return self._service

    # ---- allow or forbid

    def toggle_writing(self) -> str:
        """Allow changes, or forbid them again; return why that can't be, or ""."""
        service = self.service
        missing = service.missing_rights() if service else self._unchangeable
        if not self.writing and missing:
            self._screen.notify(missing, severity="warning", markup=False)
            return missing
        self.writing = not self.writing
        self._screen.show_bars()
        if self.writing and service:
            self._offer_open_changes(service)
        return ""

    @property
    def _unchangeable(self) -> str:
        """Why nothing here can ever be changed, "" where it can."""
        if self._presenter.source.live and self._make_service:
            return ""
        reason = f"this is a {'recording' if self._presenter.mode == 'replay' else 'file'}"
        if self._presenter.source.live:
            reason = "the dashboard was opened with --read-only"
        return f"can't change networks: {reason}"

    def _offer_open_changes(self, service: ChangeService) -> None:
        """Offer to undo interrupted changes, and to confirm guarded ones."""
        from tui.screens.forms.history import HistoryScreen

        try:
            unconfirmed = service.unconfirmed()
            held = {one.entry_id for one in unconfirmed}
            is_open = any(one.is_open and one.entry_id not in held for one in service.history())
        except CommandError as error:
            self._screen.notify(safe(str(error)), severity="error", markup=False)
            return
        if is_open:
            self._screen.app.push_screen(HistoryScreen(service, only_open=True), self._report)
        for one in unconfirmed:
            self._ask_to_confirm(one)

    @property
    def refusal(self) -> str:
        """Why changes aren't allowed now, "" if they are."""
        return "" if self.writing else self._unchangeable or keys.READ_ONLY

    def require_service(self) -> ChangeService | None:
        """Return the service, or None and a notice if changes aren't allowed."""
        if self.refusal:
            self._screen.notify(self.refusal, severity="warning", markup=False, timeout=3)
            return None
        return self.service

    # ---- open forms

    def make_network(self) -> None:
        """Open the form that makes a network."""
        from tui.screens.forms.network import network_form

        self._open(network_form)

    def attach(self) -> None:
        """Open the form that attaches the selected container."""
        from tui.screens.forms.attach import attach_form

        self._open(lambda: attach_form(self._navigation.ref))

    def detach(self) -> None:
        """Open the form that detaches the selected container."""
        from tui.screens.forms.attach import detach_form

        self._open_selected("detach", detach_form)

    def move(self) -> None:
        """Open the form that moves the selected container to another network."""
        from tui.screens.forms.attach import move_form

        self._open_selected("move", move_form)

    def join(self) -> None:
        """Open the form that connects two networks, or separates them."""
        from tui.screens.forms.network import join_form

        self._open(lambda: join_form(self._navigation.ref))

    def edit(self) -> None:
        """Open the settings of the selected link."""
        from tui.screens.forms.settings import settings_form

        self._open_selected("change settings", settings_form)

    def tune(self) -> None:
        """Open the tuning of the selected bridge."""
        from tui.screens.forms.settings import tune_form

        self._open(lambda: tune_form(self._navigation.ref))

    def publish(self) -> None:
        """Open the form that publishes a port of the selected container."""
        from tui.screens.forms.network import publish_form

        self._open_selected("publish a port", publish_form)

    def make_container(self) -> None:
        """Open the form that makes an unmanaged container."""
        from tui.screens.forms.network import container_form

        self._open(lambda: container_form(self._navigation.ref))

    def delete(self) -> None:
        """Ask whether to delete the selected thing, or to forget a connection."""
        from tui.screens.forms.network import delete_form, forget_form

        ref = self._navigation.ref
        if ref is not None and ref.kind == "flow":
            ref = conntrack_ref(int(ref.key[0]), int(ref.key[1]))
        request = self._presenter.delete_request(ref) if ref and ref.kind == "conntrack" else None
        if ref is None:
            self._open(lambda: None, self._navigation.nothing_selected("delete"))
        elif ref.kind == "event":
            words = "can't delete an event: it is only a record. Try: Enter, which goes to its subject"
            self._open(lambda: None, words)
        elif ref.kind == "conntrack":
            words = "can't forget the connection: it no longer exists"
            self._open(lambda: forget_form(request) if request else None, words)
        else:
            self._open(lambda: delete_form(ref))

    def repair(self, fix: Fix, then: Callable[[], None] | None = None) -> None:
        """Open the preview of a fix; `then` is called after it was applied.

        One without steps is only advice.
        """
        from tui.screens.forms.network import repair_form

        remedy = f". Try: {safe(fix.command)}" if fix.command else ""
        advice = f"can't {safe(fix.sentence)}: vnet-tui can't change this itself{remedy}"
        self._open(lambda: repair_form(fix) if fix.steps else None, advice, then)

    def count(self) -> None:
        """Ask whether the kernel is to count the traffic of connections."""
        from tui.screens.forms.network import counting_form

        words = "Every namespace with connections already counts traffic."
        self._open(lambda: counting_form(self._presenter.uncounted), words)

    def _open(
        self,
        make: Callable[[], Form | None],
        otherwise: str = "",
        then: Callable[[], None] | None = None,
    ) -> None:
        """Open a form, if changes are allowed and there is one; else show `otherwise`.

        `then` is called after a change.
        """
        from tui.screens.forms.change import ChangeScreen

        def report(result: ChangeResult | None) -> None:
            self._report(result)
            if result is not None and then is not None:
                then()

        service = self.require_service()
        form = make() if service else None
        if service and form:
            self._screen.app.push_screen(ChangeScreen(form, service), report)
        elif service:
            self._screen.notify(otherwise, markup=False, timeout=2)

    def _open_selected(self, what: str, make: Callable[[Ref | None], Form]) -> None:
        """Open a form about the selected thing, unless the filter hides all."""
        refusal = self._navigation.refusal(what)
        self._open(lambda: None if refusal else make(self._navigation.ref), refusal)

    def undo(self) -> None:
        """Open the list of past changes."""
        from tui.screens.forms.history import HistoryScreen

        if service := self.require_service():
            self._screen.app.push_screen(HistoryScreen(service), self._report)

    def show_log(self) -> None:
        """Show the commands of this session."""
        from tui.screens.forms.history import log_overlay

        self._screen.app.push_screen(log_overlay(self._service.log if self._service else ()))

    # ---- results

    def _report(self, result: ChangeResult | None) -> None:
        """Report a change, and have everything read again."""
        from core.operations import is_final
        from core.plan import Plan
        from tui.services import UnconfirmedChange

        if result is None:
            return
        self._made = result.made
        self._presenter.source.refresh()
        title = result.plan.title if isinstance(result.plan, Plan) else ""
        if result.seconds:
            self._ask_to_confirm(UnconfirmedChange(result.entry_id, title, result.seconds))
        else:
            final = isinstance(result.plan, Plan) and is_final(result.plan.steps)
            hint = "  (u: undo)" if result.end == "done" and not final else ""
            self._screen.notify(f"{safe(_done(title))}{hint}", markup=False, timeout=4)

    def select_made(self, message: RowsReady) -> None:
        """Select what was just made, if it is here; call it before rows are shown."""
        if not self._made or message.entry is not self._navigation.state.current:
            return
        refs = _made_as(self._presenter.context.topology, self._made)
        found = next((ref for ref in refs if message.data.rows.index(ref) is not None), None)
        if found is not None:
            self._made = ""
            self._navigation.select_again(found)

    def _ask_to_confirm(self, change: UnconfirmedChange) -> None:
        from tui.screens.forms.history import ConfirmScreen

        if self.service:
            self._screen.app.push_screen(ConfirmScreen(change, self.service), self._report_confirmed)

    def _report_confirmed(self, words: str | None) -> None:
        """Report how a guarded change ended."""
        if words:
            self._presenter.source.refresh()
            self._screen.notify(safe(words), markup=False)


def _done(title: str) -> str:
    """Return a plan's title in the past tense.

    "create the network x" becomes "Created the network x".
    """
    verb, _, rest = title.partition(" ")
    if "; " in title or not verb.isalpha():
        return f"Done: {title}"
    past = _PAST.get(verb) or f"{verb}{'d' if verb.endswith('e') else 'ed'}"
    return f"{past.capitalize()} {rest}"


def _made_as(topology: Topology, name: str) -> Iterator[Ref]:
    """Yield the rows of a network or container of that name: itself, or its bridge."""
    yield from find_all_by_name(topology, name)
    for network in topology.networks:
        bridge = topology.bridge_link(network) if network.name == name else None
        if bridge:
            yield link_ref(bridge.key)
